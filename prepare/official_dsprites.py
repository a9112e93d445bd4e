"""Packs the official file of dSprites, a bit a pixel. Its 3 GB of images are streamed, its pickled metadata never read."""

import hashlib
import zipfile

import numpy as np

from prepare.arrays import file_crc32, write_header
from prepare.dsprites import PACKED
from utils import UserError, atomic_file

MD5 = "7da33b31b13a06f4b04a70402ce90c2e"
CHUNK = 4096 * 64 * 64  # bytes of 4,096 images, a pixel each


def pack(npz, path):
    """Write the images of the official npz file to path, npy, uint8 (737280, 64, 8); returns the array's CRC-32."""
    with open(npz, "rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if md5 != MD5:
        raise UserError(
            f"{npz} is not the official file of dSprites, or cut short (md5 {md5}, not {MD5}): remove it, and dSprites "
            "is drawn, or get it again with python -m prepare dsprites --download"
        )
    with zipfile.ZipFile(npz) as archive, archive.open("imgs.npy") as images, atomic_file(path) as file:
        start = write_header(file, PACKED)
        np.lib.format.read_magic(images)
        np.lib.format.read_array_header_1_0(images)  # uint8 (737280, 64, 64), as the md5 says
        while data := images.read(CHUNK):
            file.write(np.packbits(np.frombuffer(data, np.uint8)))  # rows of 64 pixels are whole bytes
        return file_crc32(file, start)
