"""Packs the official file of dSprites into bits. Its 3 GB of images are streamed, its pickled metadata never read."""

import hashlib
import zipfile

import numpy as np

from prepare.arrays import file_crc32, write_header
from prepare.dsprites import COUNT
from utils import UserError, atomic_file

MD5 = "7da33b31b13a06f4b04a70402ce90c2e"
CHUNK = 4096  # images, 16 MB


def pack(npz, path, get):
    """Write the images of the official npz file to path, npy, uint8 (737280, 64, 8); returns the array's CRC-32.

    get: the command that fetches the official file, for the UserError if npz is another one.
    """
    with open(npz, "rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if md5 != MD5:
        raise UserError(
            f"{npz} is not the official file of dSprites, or cut short (md5 {md5}, not {MD5}): remove it, and dSprites "
            f"is drawn; or get it again:\n    {get}"
        )
    with zipfile.ZipFile(npz) as archive, archive.open("imgs.npy") as images, atomic_file(path) as file:
        start = write_header(file, (COUNT, 64, 8))
        np.lib.format.read_magic(images)
        np.lib.format.read_array_header_1_0(images)  # uint8 (737280, 64, 64), as the md5 says
        while data := images.read(CHUNK * 64 * 64):
            file.write(np.packbits(np.frombuffer(data, np.uint8)))  # rows of 64 pixels are whole bytes
        return file_crc32(file, start)
