"""Turn the images of a folder, zip or tar into one array on disk, uint8 (N, C, size, size).

Archives are read in place, and no name in them is ever used as a path.
"""

import contextlib
import hashlib
import io
import os
import re
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from prepare.arrays import file_crc32, write_header
from utils import UserError, atomic_file, progress

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow; others start programs
SUFFIXES = set(".bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pgm .png .pnm .ppm .tif .tiff .webp".split())
PREPARED = re.compile(r"\w+_\d+x\d+(_packed)?\.(npy|json)")  # files that this package writes
HIDDEN = re.compile(r"(^|/)(\.|__MACOSX)")
SAMPLED = 100  # files of a set, at most, whose content checksum() reads
AHEAD = 64  # images handed to the threads at a time, so that results do not pile up where a disk is slow


class File(NamedTuple):
    name: str  # in its folder or archive
    size: int  # bytes
    read: Callable  # returns the content, in any thread


class Skipped(dict):
    """What was left out: {reason: [count, first name]}."""

    def add(self, reason, name):
        self.setdefault(reason, [0, name])[0] += 1

    def __str__(self):
        return "; ".join(f"{count:,} {reason} (first: {name!r})" for reason, (count, name) in self.items())


@contextlib.contextmanager
def open_images(source, leave_out=()):
    """Open a folder, zip or tar for `with`; yield its image files, a list of File sorted by name, and a Skipped.

    leave_out: folders that hold no images of the set, such as those of runs.
    """
    source, files, skipped = Path(source), {}, Skipped()
    with contextlib.ExitStack() as opened:
        try:
            if source.is_dir():
                found = list_folder(source, {Path(each).resolve() for each in leave_out}, skipped)
            elif zipfile.is_zipfile(source):
                found = list_zip(opened.enter_context(zipfile.ZipFile(source)))
            else:
                found = list_tar(opened.enter_context(tarfile.open(source, "r:")))
            for file in found:
                if HIDDEN.search(file.name):
                    skipped.add("hidden", file.name)
                elif os.path.splitext(file.name)[1].lower() not in SUFFIXES:
                    skipped.add("of a kind that is not read", file.name)
                else:
                    files[file.name] = file  # of two entries of one name in an archive the last counts
        except (tarfile.TarError, zipfile.BadZipFile) as error:
            what = "is cut short, or neither a zip nor an uncompressed tar: get it again, or unpack it"
            raise UserError(f"{source} {what} ({error})") from None
        yield [files[name] for name in sorted(files)], skipped


def list_folder(folder, leave_out, skipped):
    """Yield each File in a folder and below, except in folders of runs."""
    for place, subfolders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        if here != folder and (here.resolve() in leave_out or "args.json" in names):
            skipped.add("folders of runs", here.relative_to(folder).as_posix())
            subfolders.clear()
            continue
        for path in (here / name for name in names if not PREPARED.fullmatch(name)):
            size = path.stat().st_size if path.exists() else 0  # 0: a link to nowhere, named when it is read
            yield File(path.relative_to(folder).as_posix(), size, path.read_bytes)


def list_zip(archive):
    for info in archive.infolist():
        if not info.is_dir():
            yield File(info.filename, info.file_size, partial(archive.read, info))


def list_tar(archive):
    for info in archive:
        if info.isreg():
            read = partial(os.pread, archive.fileobj.fileno(), info.size, info.offset_data)
            yield File(info.name.removeprefix("./"), info.size, read)


def checksum(source, leave_out=()):
    """Checksum of the names and sizes of the images of a folder or archive and of the content of some; no times."""
    with open_images(source, leave_out) as (files, _):
        digest = hashlib.sha256(repr([(file.name, file.size) for file in files]).encode())
        for file in files[:: len(files) // SAMPLED + 1]:
            with contextlib.suppress(Exception):  # decode() names what cannot be read
                digest.update(file.read())
    return digest.hexdigest()


def decode(read, size, channels, crop=0):
    """Decode an image, on white where it is transparent, turned as the camera was held.

    read: function that returns the bytes of its file. size: side of the result in pixels. channels: 1 (grey) or 3.
    crop: side in pixels of the centre square that is kept, the whole short side where that is shorter; 0: the whole frame.

    Return uint8 (channels, size, size), the number of frames in the file, of which the first is used, and None; or None, 0
    and the reason why not, in the same words for all images with one kind of damage.
    """
    from torchvision.transforms.v2 import functional  # takes seconds: not for runs on prepared sets

    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(read()), formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                return None, 0, "16-bit or float pixels: save it with 8 bits"
            # cameras add a small second picture to a JPEG ("MPO"), which is no frame
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
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
            return pixels.reshape(size, size, channels).transpose(2, 0, 1), frames, None
    except Exception as error:  # decoders and archives raise a dozen types
        if isinstance(error, UnidentifiedImageError):
            return None, 0, "not an image of a known kind"
        cut = "truncated" in str(error).lower()
        return None, 0, "cut short" if cut else f"not decodable ({type(error).__name__})"


def read_image(path, size, channels, crop=0):
    """Read an image file as uint8 (channels, size, size), as decode() does; UserError if it cannot be read."""
    if not Path(path).is_file():
        raise UserError(f"there is no image file {path}")
    pixels, _, why = decode(Path(path).read_bytes, size, channels, crop)
    if why:
        raise UserError(f"{path}: {why}")
    return pixels


def make_array(path, files, size, crop, channels, workers):
    """Decode images, a list of File, into the file path: npy, uint8 (N, channels, size, size), in their order.

    path holds the old content or all of the new, whenever this is interrupted. workers: number of threads.
    Return a dict: count, N; crc32, of the array; skipped, a Skipped; frames, [(name, frames)] of files with more than one.
    """
    result = dict(count=0, crc32=0, skipped=Skipped(), frames=[])
    bar = progress(total=len(files), unit=" images", delay=0, leave=True)
    with atomic_file(path) as array, ThreadPoolExecutor(max(workers, 1)) as pool, bar:
        start = write_header(array, (0, channels, size, size))
        for first in range(0, len(files), AHEAD):
            some = files[first : first + AHEAD]
            decoded = pool.map(lambda file: decode(file.read, size, channels, crop), some)
            for file, (pixels, frames, why) in zip(some, decoded):
                bar.update()
                if why:
                    result["skipped"].add(why, file.name)
                    continue
                array.write(pixels.tobytes())
                result["count"] += 1
                if frames > 1:
                    result["frames"].append((file.name, frames))
        if not result["count"]:
            raise UserError(f"none of {len(files):,} images can be read: {result['skipped']}")
        write_header(array, (result["count"], channels, size, size))  # as long as before: numpy leaves room
        return {**result, "crc32": file_crc32(array, start)}
