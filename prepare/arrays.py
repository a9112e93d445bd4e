"""Prepared sets on disk: an array in npy format, memory-mapped, and a manifest in JSON beside it."""

import json
import os
import shutil
import zlib

import numpy as np

from utils import UserError, atomic_file


def write_header(file, shape):
    """Write the npy header of a uint8 array of that shape at the start of file; returns its length in bytes."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def file_crc32(file, start):
    """CRC-32 of an open file from byte start on. Read, not mapped, so it does not count as memory of the process."""
    crc32 = 0
    file.seek(start)
    while data := file.read(2**22):
        crc32 = zlib.crc32(data, crc32)
    return crc32


def load_array(path, shape, crc32):
    """Memory-map a prepared array, uint8 of that shape; None if it is not there or its bytes have another CRC-32."""
    if not path.exists():
        return None
    with open(path, "rb") as file:  # errors of reading are the caller's to see
        try:
            array = np.load(path, mmap_mode="c")  # "c": torch wants it writable; the file stays as it is
        except Exception:  # numpy raises a dozen types for damaged headers
            return None
        if array.dtype != np.uint8 or array.shape != tuple(shape):
            return None
        return array if file_crc32(file, array.offset) == crc32 else None


def manifest_path(path):
    return path.with_suffix(".json")


def read_manifest(path):
    """The manifest of the array at path, a dict; empty if there is none that can be read."""
    try:
        manifest = json.loads(manifest_path(path).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def write_manifest(path, manifest):
    with atomic_file(manifest_path(path)) as file:
        file.write(json.dumps(manifest, indent=2).encode())


def check_room(path, size, elsewhere):
    """UserError if path cannot be written, or fewer than size bytes are free.

    elsewhere: the command that prepares the set in another folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(
            f"{path.parent} cannot be written to. To prepare the set elsewhere, and use it with --dset_dir OTHER:\n"
            f"    {elsewhere}"
        )
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise UserError(f"{path} will take {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")
