"""The official file of dSprites: reads it into bits, and writes the drawn set in its format.

Its arrays are streamed, the 3 GB of images are never in memory at once; its pickled metadata is never read.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from prepare.download import FILES, file_checksum
from prepare.dsprites import COUNT, FACTOR_NAMES, FACTOR_SIZES
from utils import UserError, atomic_file

NAME = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
NAMES, SIZES = ("color", *FACTOR_NAMES), (1, *FACTOR_SIZES)
ARRAYS = {
    "imgs": ((COUNT, 64, 64), np.dtype(np.uint8)),
    "latents_classes": ((COUNT, 6), np.dtype(np.int64)),
    "latents_values": ((COUNT, 6), np.dtype(np.float64)),
}
CHUNK = 4096  # images, 16 MB


def pack(path, file):
    """Writes the images of the npz file at path to file as packed bits, npy format, uint8 (737280, 64, 8).

    Returns a manifest: where the npz is, its bytes (stamp) and md5, and crc32 of the packed array. UserError
    says what is wrong with the npz.
    """
    md5 = file_checksum(path, "md5")
    try:
        with zipfile.ZipFile(path) as archive:
            check_classes(archive)
            for _ in chunks(archive, "latents_values"):  # the zip's own checksum is compared at its end
                pass
            crc32 = pack_images(archive, file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path} cannot be read: {str(error) or type(error).__name__}") from None
    return {"source": str(path), "stamp": Path(path).stat().st_size, "md5": md5, "crc32": crc32}


def describe(manifest):
    official = manifest["md5"] == FILES["dsprites"].checksum
    return f"dSprites from {manifest['source']}, md5 {manifest['md5']}: {'' if official else 'not '}the official file"


def pack_images(archive, file):
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (COUNT, 64, 8)}
    )
    crc32 = 0
    for images in chunks(archive, "imgs"):
        if images.max() > 1:
            raise UserError("imgs holds other values than 0 and 1")
        packed = np.packbits(images, axis=-1)  # CHUNK, 64, 8
        crc32 = zlib.crc32(packed, crc32)
        file.write(packed)
    return crc32


def check_classes(archive):
    """The classes must be the whole grid in its order: then the index of an image tells its factors."""
    start = 0
    for classes in chunks(archive, "latents_classes"):
        grid = np.stack(np.unravel_index(np.arange(start, start + len(classes)), SIZES), axis=1)
        if not np.array_equal(classes, grid):
            raise UserError("latents_classes is not the whole grid in its order")
        start += len(classes)


def chunks(archive, key):
    """Yields parts of an array in an npz, at most CHUNK rows each, after checking shape and type."""
    shape, dtype = ARRAYS[key]
    with archive.open(key + ".npy") as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):  # as numpy writes for names as short as these; its header is at most 64 KB long
            raise UserError(f"{key} is in npy format {version}")
        found = np.lib.format.read_array_header_1_0(member)  # reads no pickle
        if found != (shape, False, dtype):
            order = " in Fortran's order" if found[1] else ""
            raise UserError(f"{key} is {found[2]} {found[0]}{order}, not {dtype} {shape}")
        row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        for start in range(0, shape[0], CHUNK):
            rows = min(CHUNK, shape[0] - start)
            data = member.read(rows * row_bytes)
            if len(data) != rows * row_bytes:
                raise UserError(f"{key} is cut short")
            yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])
        if member.read(1):
            raise UserError(f"{key} is longer than it says")


def export(packed, path):
    """Writes packed, uint8 (737280, 64, 8), in the official format: its keys, shapes and types."""
    possible = [
        np.ones(1),
        np.arange(1.0, 4),
        np.linspace(0.5, 1, 6),
        np.linspace(0, 2 * np.pi, 40),
        np.linspace(0, 1, 32),
        np.linspace(0, 1, 32),
    ]
    classes = np.stack(np.unravel_index(np.arange(COUNT), SIZES), axis=1)  # N, 6 int64
    values = np.stack([each[classes[:, k]] for k, each in enumerate(possible)], axis=1)
    metadata = {
        "title": "dSprites, redrawn: not the official file",
        "version": 1,
        "latents_names": NAMES,
        "description": "drawn anew from the geometry of dSprites (Matthey et al., 2017); a handful of images "
        "may differ from the official ones by a pixel",
        "latents_sizes": np.array(SIZES),
        "latents_possible_values": dict(zip(NAMES, possible)),
    }
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("imgs.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "|u1", "fortran_order": False, "shape": (COUNT, 64, 64)}
            )
            for start in range(0, COUNT, CHUNK):
                member.write(np.unpackbits(packed[start : start + CHUNK], axis=-1))
        for key, array in (
            ("latents_classes", classes),
            ("latents_values", values),
            ("metadata", np.array(metadata, dtype=object)),  # pickled, as the official one is
        ):
            with archive.open(key + ".npy", "w") as member:
                np.lib.format.write_array(member, array)
