"""Turn the images of a folder, zip or tar into one array on disk, uint8 (N, C, size, size).

Archives are read in place, and no name in them is ever used as a path.
"""

import contextlib
import glob
import hashlib
import io
import re
import tarfile
import zipfile
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils import UserError, progress

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow; others start programs
SUFFIXES = set(".bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pgm .png .pnm .ppm .tif .tiff .webp".split())
HIDDEN = re.compile(r"(^|/)(\.|__MACOSX)")
SAMPLED = 100  # files of a set, at most, whose content checksum() reads
HEADER = 128  # bytes of the header of an npy file with few dimensions
AHEAD = 64  # images handed to the threads at a time, so that results do not pile up where a disk is slow


def find_files(source):
    """Find the image files of a folder, zip or tar, without hidden ones.

    Return a list of (name, size in bytes, function that returns the content, in any thread), sorted by name, and notes:
    {text: [names]} of what is left out.
    """
    files, notes = {}, defaultdict(list)
    if Path(source).is_dir():
        found = list_folder(Path(source), notes)
    else:
        found = list_zip(source) if zipfile.is_zipfile(source) else list_tar(source)
    for name, size, read in found:
        if HIDDEN.search(name):
            continue
        if Path(name).suffix.lower() in SUFFIXES:
            files[name] = size, read  # of two entries of one name in an archive the last counts
        else:
            notes["left out: of a kind that is not read"].append(name)
    return [(name, *files[name]) for name in sorted(files)], notes


def list_folder(folder, notes):
    """Yield each file in a folder and below, except where runs keep their pictures: in theirs, and beside it."""
    names = glob.glob("**", root_dir=folder, recursive=True)
    runs = {place for name in names if name.endswith("/args.json") for place in list(Path(name).parents)[:2]}
    runs.discard(Path("."))
    for name in names:
        path = folder / name
        if runs and not runs.isdisjoint(Path(name).parents):
            notes["left out: files of runs"].append(name)
        elif path.is_file():
            yield name, path.stat().st_size, path.read_bytes


def list_zip(path):
    archive = zipfile.ZipFile(path)  # open as long as its files are in use
    for info in archive.infolist():
        if not info.is_dir():
            yield info.filename, info.file_size, partial(archive.read, info)


def list_tar(path):
    try:
        with tarfile.open(path, "r:") as archive:
            for info in filter(tarfile.TarInfo.isreg, archive):
                read = partial(read_part, path, info.offset_data, info.size)
                yield info.name.removeprefix("./"), info.size, read
    except tarfile.TarError:
        what = "is cut short, or neither a zip nor an uncompressed tar: get it again, or unpack it"
        raise UserError(f"{path} {what}") from None


def read_part(path, start, size):
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def summary(notes):
    """The notes of find_files() and make_array() in words, with the first name of each."""
    return "; ".join(f"{len(names):,} {text} (first: {names[0]!r})" for text, names in notes.items())


def checksum(source):
    """Checksum of the names and sizes of the images of a folder or archive and of the content of some; no times."""
    files, _ = find_files(source)
    digest = hashlib.sha256(repr([(name, size) for name, size, _ in files]).encode())
    for _, _, read in files[:: len(files) // SAMPLED + 1]:
        with contextlib.suppress(Exception):  # decode() names what cannot be read
            digest.update(read())
    return digest.hexdigest()


def decode(read, size, channels, crop=0):
    """Decode an image, on white where it is transparent, turned as the camera was held.

    read: function that returns the bytes of its file. size: side of the result in pixels. channels: 1 (grey) or 3.
    crop: side in pixels of the centre square that is kept, the whole short side where that is shorter; 0: the whole frame.

    Return uint8 (channels, size, size), or None if it cannot be read, and a note on it, a text or None.
    """
    from torchvision.transforms.v2 import functional  # takes seconds: not for runs on prepared sets

    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(read()), formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                return None, "16-bit or float pixels: save it with 8 bits"
            frames = getattr(image, "n_frames", 1)
            width, height = image.size
            side = min(crop or width, width, height)
            # A JPEG is decoded at 1/2, 1/4 or 1/8, in a fraction of the time; finer for a crop, whose edges are whole pixels.
            shrink = max(side // (2 * size if crop else size), 1)
            image.draft(mode, (width // shrink, height // shrink))
            side = round(side * image.width / width)
            ImageOps.exif_transpose(image, in_place=True)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert(mode)
            if crop:
                image = functional.center_crop(image, side)
            pixels = np.asarray(functional.resize(image, [size, size]))  # size, size or size, size, 3
    except Exception as error:  # decoders and archives raise a dozen types
        return None, f"cannot be read ({type(error).__name__})"
    note = "with more frames: the first is used" if frames > 1 else None
    return pixels.reshape(size, size, channels).transpose(2, 0, 1), note


def read_image(path, size, channels):
    """Read an image file as uint8 (channels, size, size), as decode() does; UserError if it cannot be read."""
    pixels, note = decode(Path(path).read_bytes, size, channels)
    if pixels is None:
        raise UserError(f"{path}: {note}")
    return pixels


def make_array(array, source, size, crop, channels, workers):
    """Decode the images of source into the open file array: npy, uint8 (N, channels, size, size), in the order of names.

    workers: number of threads. Return the CRC-32 of the pixels.
    """
    files, notes = find_files(source)
    if not files:
        raise UserError(f"no image in {source}: {summary(notes) or 'it is empty'}")
    print(f"preparing {len(files):,} images of {source}", flush=True)
    count = crc32 = 0
    bar = progress(total=len(files), unit=" images", delay=0, leave=True)
    with ThreadPoolExecutor(max(workers, 1)) as pool, bar:
        array.seek(HEADER)
        for first in range(0, len(files), AHEAD):
            some = files[first : first + AHEAD]
            decoded = pool.map(lambda file: decode(file[2], size, channels, crop), some)
            for (name, _, _), (pixels, note) in zip(some, decoded):
                bar.update()
                if note:
                    notes[f"skipped: {note}" if pixels is None else note].append(name)
                if pixels is not None:
                    array.write(pixels.tobytes())
                    count, crc32 = count + 1, zlib.crc32(pixels.tobytes(), crc32)
    if not count:
        raise UserError(f"no image in {source} can be read: {summary(notes)}")
    array.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, channels, size, size)}
    np.lib.format.write_array_header_1_0(array, header)
    if notes:
        print(summary(notes))
    return crc32
