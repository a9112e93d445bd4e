"""Turns a folder or archive of images into one array on disk, uint8 (N, C, 64, 64), with a manifest.

Images are decoded in processes of their own; whatever the size of the set, little of it is in memory.
"""

import contextlib
import io
import json
import math
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from prepare.archives import Source, read_exactly, read_member
from utils import UserError, atomic_file, progress

VERSION = 1  # of the cache; one of another version is made anew
SIDE = 64  # pixels
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 2**24  # of one image: it takes 64 MB and more when decoded
CHUNK = 32  # images a task of a process
INTERPOLATION = "bilinear, antialiased; JPEGs decoded at 1/2, 1/4 or 1/8 where that leaves enough pixels"


# One image.


def decode(data, crop, channels):
    """Decodes the bytes of an image file; an exception says what is wrong with them.

    crop: side of the centre square that is kept, in pixels; 0: the whole frame.
    Returns uint8 (channels, 64, 64). Of an animation the first frame counts.
    """
    mode = "L" if channels == 1 else "RGB"
    with (
        warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
        Image.open(io.BytesIO(data), formats=FORMATS) as image,
    ):
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS:,} pixels")
        if crop > min(width, height):
            raise ValueError(f"smaller than the crop of {crop} pixels")
        exif = image.info.get("exif", b"")
        kept = (crop, crop) if crop else (width, height)
        left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
        # A JPEG comes out smaller, at a fraction of the time, but with no fewer than 64 pixels in what is kept.
        drafted = image.draft(mode, (-(-SIDE * width // kept[0]), -(-SIDE * height // kept[1])))
        scale = drafted[1][2] / width if drafted else 1
        box = [scale * edge for edge in (left, top, left + kept[0], top + kept[1])]
        x, y = int(box[0]), int(box[1])
        # or the resize would look around the box
        image = image.crop((x, y, math.ceil(box[2]), math.ceil(box[3])))
        small = eight_bits(image, mode).resize(
            (SIDE, SIDE), Image.Resampling.BILINEAR, box=(box[0] - x, box[1] - y, box[2] - x, box[3] - y)
        )
        small.info["exif"] = exif
        small = ImageOps.exif_transpose(small)  # as cameras held upright mean it; a square stays one
    return np.asarray(small).reshape(SIDE, SIDE, channels).transpose(2, 0, 1)


def eight_bits(image, mode):
    """An image in mode L or RGB: of 16 bits the upper 8, on white where it is transparent."""
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):  # convert() would clip
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels of more than 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


# What runs in the processes.


def start_process():
    """Leaves Ctrl-C to the parent, and ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def decode_all(path, kind, crop, channels, chunk):
    """Decodes a chunk: rows, and for each a Member to read from path, or its name and bytes.

    Returns the rows; their images, uint8 (len(chunk), channels, 64, 64); and {row: (name, error)}.
    """
    images, errors = np.zeros((len(chunk), channels, SIDE, SIDE), np.uint8), {}
    for i, (row, member, data) in enumerate(chunk):
        try:
            if data is None:
                data = read_member(path, kind, member)
            images[i] = decode(data, crop, channels)
        except Exception as error:  # decoders raise a dozen types
            errors[row] = member.name, reason(error)
    return [row for row, _, _ in chunk], images, errors


def reason(error):
    """An error as a few words that are the same for all images of one kind of damage."""
    text = str(error).split("\n")[0]
    if "decompression bomb" in text:
        return f"more than {MAX_PIXELS:,} pixels"
    if "cannot identify" in text:
        return "not an image of a known kind"
    if "truncated" in text.lower() or "cut short" in text:
        return "cut short"
    return (
        text if isinstance(error, ValueError) and text else f"not decodable: {text or type(error).__name__}"
    )


# The set.


def make_cache(path, source, crop, channels, num_workers):
    """Writes the images of source, a Source, to path, and the manifest beside it; returns the manifest.

    path holds nothing, or the old array, or all of the new one, whenever this is interrupted.
    """
    if not source.members:
        raise UserError(f"no image in {source.path}" + (f": {source.skipped}" if source.skipped else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(source.members), channels, SIDE, SIDE)
    free = shutil.disk_usage(path.parent).free
    if free < np.prod(shape):
        raise UserError(f"{path} will take {np.prod(shape) / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")
    manifest_path(path).unlink(missing_ok=True)
    with atomic_file(path) as file:
        errors = write_rows(file, shape, source, crop, channels, num_workers)
    skipped = source.skipped
    for name, why in errors.values():
        skipped.add(why, name)
    manifest = {
        "version": VERSION,
        "source": str(source.path.resolve()),
        "stamp": source.stamp(),
        "listed": len(source.members),
        "checksum": source.checksum(),
        "skipped": skipped,
        "count": len(source.members) - len(errors),
        "channels": channels,
        "side": SIDE,
        "crop": crop,
        "interpolation": INTERPOLATION,
    }
    # A folder that holds its own cache is named as such, so that it may be copied or renamed.
    itself = source.path.resolve() == path.parent.resolve()
    with atomic_file(manifest_path(path)) as file:
        file.write(
            json.dumps({**manifest, "source": "." if itself else manifest["source"]}, indent=2).encode()
        )
    return manifest


def write_rows(file, shape, source, crop, channels, num_workers):
    """Writes an array of shape (N, C, 64, 64) in npy format, less the images that cannot be decoded: returns those."""
    errors, row_bytes = {}, int(np.prod(shape[1:]))
    start = write_header(file, shape)
    bar = progress(total=shape[0], unit=" images", delay=0, leave=True)
    with bar, contextlib.closing(decoded(source, crop, channels, num_workers)) as results:
        for rows, images, bad in results:
            for row, image in zip(rows, images):
                file.seek(start + row * row_bytes)  # a packed tar comes in its own order
                file.write(image)
            errors.update(bad)
            bar.update(len(rows))
    if len(errors) == shape[0]:
        ((name, why),) = list(errors.values())[:1]
        raise UserError(
            f"no image remains of {len(errors):,} in {source.path}: the first, {name!r}, is {why}"
        )
    if errors:
        close_gaps(file, start, row_bytes, shape[0], errors)
    assert write_header(file, (shape[0] - len(errors), *shape[1:])) == start
    return errors


def write_header(file, shape):
    """Writes the npy header for uint8 of a shape at the start of file; returns its length."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def close_gaps(file, start, row_bytes, count, gaps):
    """Moves rows down over those in gaps."""
    kept = [row for row in range(count) if row not in gaps]
    for to, row in enumerate(kept):
        if to != row:
            file.seek(start + row * row_bytes)
            data = file.read(row_bytes)
            file.seek(start + to * row_bytes)
            file.write(data)
    file.truncate(start + len(kept) * row_bytes)


def decoded(source, crop, channels, num_workers):
    """Yields what decode_all returns for all chunks of source, in their order."""
    tasks = ((source.path, source.kind, crop, channels, chunk) for chunk in chunks(source))
    if not num_workers:
        for task in tasks:
            yield decode_all(*task)
        return
    # Forked, where that can be: they share what is loaded. They run no torch, nor any thread of it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(num_workers, context, start_process)
    pending = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(decode_all, *task))
            if len(pending) > 2 * num_workers:  # all at once would be all in memory
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError("a decoding process ended early: too little memory? Try --num_workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def chunks(source):
    """Yields lists of (row, Member, its bytes or None if they can be read from the file where they are needed)."""
    if source.kind != "packed tar":
        numbered = list(enumerate(source.members))
        for i in range(0, len(numbered), CHUNK):
            yield [(row, member, None) for row, member in numbered[i : i + CHUNK]]
        return
    chunk, size = [], 0
    with source.open() as file:
        for row, member in sorted(enumerate(source.members), key=lambda pair: pair[1].offset):
            file.seek(member.offset)  # forward only: an archive of this kind is unpacked from its start
            chunk.append((row, member, read_exactly(file, member.size)))
            size += member.size
            if len(chunk) == CHUNK or size > 2**20:
                yield chunk
                chunk, size = [], 0
    yield chunk


# The cache.


def manifest_path(path):
    return path.with_suffix(".json")


def read_manifest(path):
    """The manifest of the array at path; None if there is no such array, whole and of this version."""
    try:
        manifest = json.loads(manifest_path(path).read_text())
        manifest["source"] = str((path.parent / manifest["source"]).resolve())
        images = np.load(path, mmap_mode="r")  # no pickles
        whole = (
            manifest["version"] == VERSION
            and images.dtype == np.uint8
            and images.shape == (manifest["count"], manifest["channels"], SIDE, SIDE)
        )
        return manifest if whole and {"crop", "source", "stamp", "checksum"} <= manifest.keys() else None
    except Exception:  # of json, numpy and the comparisons, a dozen types
        return None


def what_changed(manifest, archive=None, crop=None, channels=None):
    """Why a cache is not what is wanted, as text; None if it is. A source that is gone counts as unchanged."""
    wanted = {"source": archive and str(Path(archive).resolve()), "crop": crop, "channels": channels}
    for name, value in wanted.items():
        if value is not None and manifest[name] != value:
            return f"was made with {name} {manifest[name]}, now it is to be {value}"
    path = Path(manifest["source"])
    stamp = (
        (Source(path).stamp() if path.is_dir() else path.stat().st_size)
        if path.exists()
        else manifest["stamp"]
    )
    return None if stamp == manifest["stamp"] else f"was made from {path}, which has changed"
