"""Prepared sets on disk: an array in npy format, mapped into memory, and a manifest in JSON beside it."""

import json
import zlib

import numpy as np

from utils import atomic_file


def write_header(file, shape):
    """Write the npy header of a uint8 array of that shape at the start of file; return its length in bytes."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def file_crc32(file, start):
    """CRC-32 of an open file from byte start on. Read, not mapped, so that it does not count as memory in use."""
    crc32 = 0
    file.seek(start)
    while data := file.read(2**22):
        crc32 = zlib.crc32(data, crc32)
    return crc32


def load_array(path, crc32):
    """Map a prepared array into memory, uint8; None if there is none, or its bytes have another CRC-32."""
    if not path.exists():
        return None
    try:
        array = np.load(path, mmap_mode="c")  # "c": torch wants it writable; the file stays as it is
    except (ValueError, EOFError):  # cut short
        return None
    with open(path, "rb") as file:
        return array if file_crc32(file, array.offset) == crc32 else None


def read_manifest(path):
    """The manifest of the array at path, a dict; empty if there is none or it was cut short."""
    beside = path.with_suffix(".json")
    try:
        return json.loads(beside.read_bytes()) if beside.exists() else {}
    except ValueError:
        return {}


def write_manifest(path, manifest):
    with atomic_file(path.with_suffix(".json")) as file:
        file.write(json.dumps(manifest, indent=2).encode())
