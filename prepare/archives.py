"""Lists and reads the images of a folder, a zip or a tar.

Archives are read in place, and no name in them is ever used as a path. Everything left out is counted and named.
"""

import contextlib
import functools
import hashlib
import os
import re
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from PIL import Image

from utils import UserError

# Pillow's formats, except those that run other programs, hold films or are not decoded by Pillow itself.
FORMATS = "AVIF BMP DIB GIF JPEG JPEG2000 PCX PNG PPM QOI SGI TGA TIFF WEBP".split()
MAX_BYTES = 2**29  # of one image file
HIDDEN = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")  # besides names that start with a dot
PREPARED = re.compile(r"\w+_\d+x\d+(_packed)?\.(npy|json)")  # written by this package


@functools.cache
def readable():
    """Formats that the installed Pillow reads, and the suffixes of their files."""
    suffixes = Image.registered_extensions()
    formats = [name for name in FORMATS if name in Image.OPEN]
    return formats, {suffix for suffix, name in suffixes.items() if name in formats}


class Skipped(dict):
    """What was left out: {reason: [count, first name]}."""

    def add(self, reason, name):
        self.setdefault(reason, [0, name])[0] += 1

    def __str__(self):
        return "; ".join(f"{count:,} {reason} (first: {name!r})" for reason, (count, name) in self.items())


@contextlib.contextmanager
def open_images(path, leave_out=()):
    """Open a folder, zip or tar for `with`; yields images and skipped.

    images: {name: read}, sorted by name; read() returns the bytes of the file, in any thread.
    skipped: a Skipped. leave_out: folders that hold no images of the set, such as those of runs.
    """
    path, images, skipped = Path(path), {}, Skipped()
    with contextlib.ExitStack() as opened:
        try:
            if path.is_dir():
                files = list_folder(path, leave_out, skipped)
            elif tarfile.is_tarfile(path):
                files = list_tar(opened.enter_context(tarfile.open(path, "r:")), skipped)
            else:
                files = list_zip(opened.enter_context(zipfile.ZipFile(path)))
            for name, size, read in files:
                if why := why_skipped(name, size):
                    skipped.add(why, name)
                    continue
                if name in images:
                    skipped.add("there twice: the last counts", name)
                images[name] = read
        except Exception as error:  # zipfile and tarfile raise a dozen types
            if isinstance(error, OSError) and error.errno:
                raise
            what = "is cut short, or neither a zip nor an uncompressed tar: get it again, or unpack it"
            raise UserError(f"{path} {what} ({type(error).__name__}: {error})") from None
        yield dict(sorted(images.items())), skipped


def why_skipped(name, size):
    """Why a file is left out, by its name in the folder or archive and its size in bytes; None if it is not."""
    if any(part in HIDDEN or part.startswith(".") for part in name.split("/")):  # also ".."
        return "hidden"
    if Path(name).suffix.lower() not in readable()[1]:
        return "of a kind that is not read"
    return f"larger than {MAX_BYTES:,} bytes" if size > MAX_BYTES else None


def list_folder(folder, leave_out, skipped):
    """Yield name, size and read of each file in a folder and below; links are followed, but never in circles."""
    seen = {os.path.realpath(each) for each in (*folder.resolve().parents, *leave_out)}
    walk = os.walk(folder, onerror=lambda e: skipped.add("cannot be listed", e.filename), followlinks=True)
    for place, subfolders, names in walk:
        here, real = Path(place), os.path.realpath(place)
        if here != folder and (real in seen or "args.json" in names):
            skipped.add("folders of runs, or linked twice", here.relative_to(folder).as_posix())
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        for file in (here / name for name in sorted(names) if not PREPARED.fullmatch(name)):
            name = file.relative_to(folder).as_posix()
            if file.is_file():
                yield name, file.stat().st_size, file.read_bytes
            else:
                skipped.add("not regular files", name)


def plain(name):
    """A name in an archive without "./" and "//"; some programs write backslashes."""
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def list_zip(archive):
    """Yield name, size and read of each file in a ZipFile."""
    for info in archive.infolist():
        if not info.is_dir():
            yield plain(info.filename), info.file_size, functools.partial(archive.read, info)


def list_tar(archive, skipped):
    """Yield name, size and read of each regular file in an uncompressed TarFile."""
    for info in archive:
        if info.isreg():
            read = functools.partial(os.pread, archive.fileobj.fileno(), info.size, info.offset_data)
            yield plain(info.name), info.size, read
        elif not info.isdir():
            skipped.add("not regular files", info.name)
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(512) != bytes(512):  # tarfile takes a damaged header for the end
        raise ValueError("its end is missing")


def stamp(path, leave_out=()):
    """A value, as JSON holds it, that changes when the images of a folder or the file of an archive do."""
    path = Path(path)
    if path.is_dir():
        digest = hashlib.sha256()
        with open_images(path, leave_out) as (images, _):
            for name in images:
                status = os.stat(path / name)
                digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
        return digest.hexdigest()
    if not path.is_file():
        raise UserError(f"{path} is neither a folder nor a file")
    return [path.stat().st_size, path.stat().st_mtime_ns]
