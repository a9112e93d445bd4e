"""Where images are: in a folder, a zip or a tar. They are read in place, nothing is unpacked to disk.

What is read may come from anywhere: members count only if they are regular files with the name of an
image, sizes have a limit, and a header is believed only after it was checked.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from utils import UserError, is_web_page

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
MAX_BYTES = 2**26  # of one image: 64 MB
PACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # by their first bytes


class Member(NamedTuple):
    """One image of a source."""

    name: str  # parts separated by /
    offset: int  # of its bytes; in a zip, of its header; in a packed tar, counted after unpacking
    size: int  # bytes as they are stored
    method: int = 0  # of compression, in a zip
    unpacked: int = 0  # bytes, in a zip
    crc32: int = 0  # in a zip
    changed: int = 0  # when, of a file in a folder, ns


class Skipped(dict):
    """What was left out: {reason: [how often, name of the first]}."""

    def add(self, reason, name, times=1):
        self.setdefault(reason, [0, name])[0] += times

    def __str__(self):
        return "; ".join(f"{times:,} {reason} (first: {name!r})" for reason, (times, name) in self.items())


class Source:
    """A folder or archive: path, kind ("folder", "zip", "tar" or "packed tar"), its images, sorted by name
    (members), and what was left out (skipped)."""

    def __init__(self, path):
        self.path, self.skipped, self.unpack = Path(path), Skipped(), None
        try:
            self.kind = self.find_kind()
            listing = {"folder": self.list_folder, "zip": self.list_zip}.get(self.kind, self.list_tar)
            members = {}
            for member in listing():
                if self.acceptable(member):
                    members[member.name] = member  # a later one of the same name replaces it, as in unpacking
        except Exception as error:  # a dozen types, for as many kinds of damage
            if isinstance(error, UserError) or isinstance(error, OSError) and error.errno:
                raise
            raise UserError(
                f"{path} cannot be read, it may be cut short: {error or type(error).__name__}"
            ) from None
        self.members = [members[name] for name in sorted(members)]

    def find_kind(self):
        if self.path.is_dir():
            return "folder"
        with open(self.path, "rb") as file:
            start = file.read(512)
        if start[257:262] == b"ustar":
            return "tar"
        if zipfile.is_zipfile(self.path):
            return "zip"
        for magic, opener in PACKERS.items():
            if start.startswith(magic):
                self.unpack = opener
                return "packed tar"
        if is_web_page(start):
            raise UserError(
                f"{self.path} is a web page, not an archive: the server may have had a quota; get it again"
            )
        raise UserError(f"{self.path} is neither a folder nor a zip or tar, or its end is missing")

    def acceptable(self, member):
        """Whether to read a member, by its name and size."""
        parts = member.name.split("/")
        if os.path.splitext(parts[-1])[1].lower() not in SUFFIXES:
            return False
        if ".." in parts or parts[0] == "" or "\\" in member.name:
            self.skipped.add("with a name that leads out of the archive", member.name)
        elif parts[-1].startswith(".") or "__MACOSX" in parts:
            self.skipped.add("hidden", member.name)
        elif max(member.size, member.unpacked) > MAX_BYTES:
            self.skipped.add(f"larger than {MAX_BYTES:,} bytes", member.name)
        else:
            return True
        return False

    def list_folder(self):
        """Yields the files in a folder and below; links to folders are not followed."""
        for folder, _, names in os.walk(self.path, onerror=raise_error):
            prefix = Path(folder).relative_to(self.path).as_posix() + "/"
            for name in names:
                if os.path.splitext(name)[1].lower() in SUFFIXES:
                    try:
                        status = os.stat(os.path.join(folder, name))
                    except OSError as error:
                        self.skipped.add(f"not there ({error.strerror})", prefix + name)
                        continue
                    if stat.S_ISREG(status.st_mode):
                        yield Member(
                            (prefix + name).removeprefix("./"), 0, status.st_size, changed=status.st_mtime_ns
                        )
                    else:
                        self.skipped.add("not regular files", prefix + name)

    def list_zip(self):
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the writer knew no kinds
                if info.is_dir():
                    continue
                if kind not in (0, stat.S_IFREG):
                    self.skipped.add("not regular files", info.filename)
                elif info.flag_bits & 1:
                    self.skipped.add("encrypted", info.filename)
                elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    self.skipped.add("in a kind of compression that is not read", info.filename)
                else:
                    yield Member(
                        info.filename,
                        info.header_offset,
                        info.compress_size,
                        info.compress_type,
                        info.file_size,
                        info.CRC,
                    )

    def list_tar(self):
        with self.open() as file:
            bounded = Bounded(file)
            archive = tarfile.open(fileobj=bounded, mode="r:")
            while (info := archive.next()) is not None:
                archive.members.clear()  # it would keep them all
                if info.isreg() and info.sparse is None:
                    yield Member(info.name.removeprefix("./"), info.offset_data, info.size)
                elif not info.isdir():
                    self.skipped.add("not regular files", info.name)
            if bounded.last != bytes(512):  # tarfile takes a header that is cut short for the end
                raise UserError(f"{self.path} is cut short: get it again")

    def open(self):
        """Opens an archive file, in a packed tar at the unpacked bytes."""
        return (self.unpack or open)(self.path, "rb")

    def stamp(self):
        """What changes when the source does: the size of an archive; of a folder's files a checksum of names, sizes and times."""
        if self.kind != "folder":
            return self.path.stat().st_size
        return hashlib.sha256(repr([(m.name, m.size, m.changed) for m in self.members]).encode()).hexdigest()

    def checksum(self):
        """sha256 of the list of images, which also gives the order of the rows."""
        digest = hashlib.sha256()
        for member in self.members:
            digest.update(member.name.encode(errors="surrogateescape") + b"\0")
        return digest.hexdigest()


class Bounded:
    """A file for tarfile, which would believe a header that claims to be gigabytes long."""

    def __init__(self, file):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size):
        if size > 2**20:
            raise ValueError("a header of more than 1 MB")
        self.last = self.file.read(size)
        return self.last


def raise_error(error):
    raise error


def read_member(path, kind, member):
    """The bytes of an image in a folder, zip or tar; ValueError or OSError if they are not whole."""
    if kind == "folder":
        with open(path / member.name, "rb") as file:
            return file.read(MAX_BYTES)
    with open(path, "rb") as file:
        file.seek(member.offset)
        if kind == "zip":
            return unzip(file, member)
        return read_exactly(file, member.size)


def read_exactly(file, size):
    data = file.read(size)
    if len(data) != size:
        raise ValueError("cut short")
    return data


def unzip(file, member):
    """A member of a zip whose header is next in file. zipfile itself would need its list of all in each process."""
    header = struct.unpack("<4s5H3L2H", read_exactly(file, 30))
    if header[0] != b"PK\x03\x04":
        raise ValueError("no zip header where it should be")
    file.seek(header[-2] + header[-1], os.SEEK_CUR)  # name and extra field
    data = read_exactly(file, member.size)
    if member.method == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-15).decompress(data, member.unpacked + 1)
    if len(data) != member.unpacked or zlib.crc32(data) != member.crc32:
        raise ValueError("wrong checksum in the zip")
    return data
