"""Lists and reads the images of a folder, a zip or a tar.

Archives are read in place, and no name in them is ever used as a path. Their content may come from anywhere: only
regular members of a bounded size count, and everything left out is counted and named.
"""

import contextlib
import functools
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
from pathlib import Path

from PIL import Image

from utils import UserError, named

# Pillow's formats, but for those that run other programs, hold films or are not decoded by Pillow itself.
FORMATS = "AVIF BMP DIB GIF JPEG JPEG2000 PCX PNG PPM QOI SGI TGA TIFF WEBP".split()
MOST_BYTES = 2**29  # of one image file
HIDDEN = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")  # beside names that start with a dot
PREPARED = re.compile(r"\w+_\d+x\d+(_packed)?\.(npy|json)")  # written by this program


@functools.cache
def readable():
    """Formats that this Pillow reads, and the suffixes of their files."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    return formats, {suffix for suffix, name in Image.registered_extensions().items() if name in formats}


class Skipped(dict):
    """What was left out, {reason: [count, first name]}."""

    def add(self, reason, name):
        self.setdefault(reason, [0, name])[0] += 1

    def __str__(self):
        return "; ".join(f"{count:,} {reason} (first: {name!r})" for reason, (count, name) in self.items())


class Source:
    """The images of a folder, zip or tar, to be closed after use.

    images: {name: read}, sorted by name; read() returns the bytes of the file, in any thread.
    skipped: what was left out. stamp: changes when the folder or archive does.

    path: folder or archive. leave_out: folders below it that hold no images, such as the pictures of runs.
    scratch: folder for what a packed tar unpacks to, a file without a name that is gone with the process.
    """

    def __init__(self, path, leave_out=(), scratch=None):
        self.path, self.scratch, self.skipped = Path(path), scratch, Skipped()
        self.leave_out = {os.path.realpath(folder) for folder in leave_out}
        self.opened, self.lock, images = contextlib.ExitStack(), threading.Lock(), {}
        try:
            for name, size, read in self.list_members():
                if why := self.why_not(name, size):
                    self.skipped.add(why, name)
                else:
                    images[name] = read  # a later member replaces one of the same name, as in unpacking
        except Exception as error:
            self.opened.close()
            if isinstance(error, UserError) or isinstance(error, OSError) and error.errno:
                raise
            why = str(error).split("\n")[0] or type(error).__name__
            raise UserError(f"{path} cannot be read, it may be cut short: get it again ({why})") from None
        self.images = dict(sorted(images.items()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.opened.close()

    def list_members(self):
        """Yields name, size in bytes and read of each regular file."""
        if self.path.is_dir():
            return self.list_folder()
        self.stamp = file_stamp(self.path)
        if tarfile.is_tarfile(self.path):
            return self.list_tar()
        if zipfile.is_zipfile(self.path):
            return self.list_zip()
        raise UserError(f"{self.path} is no folder, zip or tar, or its end is missing: get it again")

    def why_not(self, name, size):
        """Why a file is left out, by its name and size; None if it is read."""
        parts = name.split("/")
        if ".." in parts or parts[0] == "" or "\\" in name and self.path.is_file():
            return "with a name that leads out of the archive"
        if any(part in HIDDEN or part.startswith(".") and part != "." for part in parts):
            return "hidden"
        if os.path.splitext(name)[1].lower() not in readable()[1]:
            return "of a kind that is not read"
        return f"larger than {MOST_BYTES:,} bytes" if size > MOST_BYTES else None

    def list_folder(self):
        """Files in the folder and below; links are followed, but not to what was read already or lies above."""
        seen, digest = {identity(folder) for folder in self.path.resolve().parents}, hashlib.sha256()
        for folder, folders, names in os.walk(self.path, onerror=self.cannot_list, followlinks=True):
            if self.is_of_runs(folder, names) or identity(folder) in seen:
                folders.clear()
                continue
            seen.add(identity(folder))
            folders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                relative = path.relative_to(self.path).as_posix()
                if PREPARED.fullmatch(relative):
                    continue
                if not os.path.isfile(path):
                    self.skipped.add("not regular files", relative)
                    continue
                status = path.stat()
                digest.update(repr((relative, status.st_size, status.st_mtime_ns)).encode())
                yield relative, status.st_size, path.read_bytes
        self.stamp = digest.hexdigest()

    def is_of_runs(self, folder, names):
        """Whether a folder below the source holds what training wrote."""
        of_runs = "args.json" in names or os.path.realpath(folder) in self.leave_out
        if of_runs and Path(folder) != self.path:
            self.skipped.add("folders of runs", Path(folder).relative_to(self.path).as_posix())
        return of_runs and Path(folder) != self.path

    def cannot_list(self, error):
        self.skipped.add(f"folders that cannot be listed ({error.strerror})", error.filename)

    def list_zip(self):
        archive = self.opened.enter_context(zipfile.ZipFile(self.path))
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the writer knew no kinds
            if info.is_dir():
                continue
            if kind not in (0, stat.S_IFREG):
                self.skipped.add("not regular files", info.filename)
            elif info.flag_bits & 1:
                self.skipped.add("encrypted", info.filename)
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                self.skipped.add("of a compression that is not read", info.filename)
            else:
                yield info.filename.removeprefix("./"), info.file_size, functools.partial(archive.read, info)

    def list_tar(self):
        archive = self.opened.enter_context(tarfile.open(self.path))
        if not isinstance(archive.fileobj, io.BufferedReader):  # packed: there is no quick way back in it
            unpacked = self.opened.enter_context(tempfile.TemporaryFile(dir=self.scratch))
            archive.fileobj.seek(0)
            with named(self.scratch or tempfile.gettempdir()):
                shutil.copyfileobj(archive.fileobj, unpacked, 2**20)
            unpacked.seek(0)
            archive = self.opened.enter_context(tarfile.open(fileobj=unpacked))
        while (info := archive.next()) is not None:
            archive.members.clear()  # it would keep them all
            if info.isreg():
                yield info.name.removeprefix("./"), info.size, functools.partial(self.read_tar, archive, info)
            elif not info.isdir():
                self.skipped.add("not regular files", info.name)
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(512) != bytes(512):  # tarfile takes a damaged header for the end
            raise ValueError("no end mark")

    def read_tar(self, archive, info):
        with self.lock, archive.extractfile(info) as file:
            return file.read()


def stamp(path, leave_out=()):
    """What changes when a folder or archive of images does, as JSON can hold it."""
    if not os.path.isdir(path):
        return file_stamp(path)
    with Source(path, leave_out) as source:
        return source.stamp


def file_stamp(path):
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is neither a folder nor a file")
    return [status.st_size, status.st_mtime_ns]


def identity(folder):
    status = os.stat(folder)
    return status.st_dev, status.st_ino
