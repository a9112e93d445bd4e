"""dSprites (Matthey et al., 2017), drawn from its definition or packed from its official file.

The set holds every combination of shape (square, ellipse, heart), scale, orientation and
position, once each, as binary 64x64 images. The last factor changes fastest, as in the
official file. Geometry and raster rule were fitted to official images; the 320 frames of the
official animation come out exactly.
"""

import hashlib

import numpy as np

from utils import UserError

FACTOR_NAMES = ("shape", "scale", "orientation", "posX", "posY")
FACTOR_SIZES = (3, 6, 40, 32, 32)
SHAPES = ("square", "ellipse", "heart")
COUNT = int(np.prod(FACTOR_SIZES))  # 737,280
MD5 = "7da33b31b13a06f4b04a70402ce90c2e"  # of the official file

UNIT = 0.15 * 64  # half a side of the largest square, in pixels
SUBPIXEL = 256  # vertices lie on a grid of 1/256 pixel, as in a GPU's rasteriser


def outline(shape):
    """Vertices (V, 2) of a shape's outline in pixels at scale 1, unrotated, y pointing down."""
    if shape == "square":
        return UNIT * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)
    if shape == "ellipse":
        t = 2 * np.pi * np.arange(100) / 100
        return UNIT * np.stack([1.33 * np.cos(t), np.sin(t) / 1.33], axis=1)
    t = 2 * np.pi * np.arange(150) / 150
    heart = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return UNIT * np.stack([np.sin(t) ** 3, -2 * (heart / 29 + 0.075)], axis=1)


def fill(x, y):
    """Fill one polygon at 32 columns and 32 rows of positions.

    A pixel is lit if a ray from its centre to the left crosses the outline an odd number of
    times: so each crossing flips every pixel to its right, and the crossings of a row of pixels
    are combined by XOR of 64-bit rows. Centres exactly on a left or bottom edge are inside.

    x, y: int (V, 32) vertices in 1/256 pixel, for each posX and for each posY.
    Return uint64 (32 posX, 32 posY, 64 rows); the most significant bit is the leftmost pixel.
    """
    x_next, y_next = np.roll(x, -1, axis=0), np.roll(y, -1, axis=0)
    # Rows of pixels whose centres, at 256 row + 128, satisfy low < centre <= high.
    first, last = (np.minimum(y, y_next) + 128) // SUBPIXEL, (np.maximum(y, y_next) + 128) // SUBPIXEL
    crossings = last - first  # (V, 32) rows crossed
    edge, pos_y = np.repeat(np.indices(y.shape).reshape(2, -1), crossings.ravel(), axis=1)
    start = np.cumsum(crossings) - crossings.ravel()  # of each edge's rows
    row = np.arange(len(edge)) - np.repeat(start - first.ravel(), crossings.ravel())

    # Where edge meets centre line, exactly: x + dx (centre - y) / dy. First pixel at or right of it.
    rise = (y_next - y)[edge, pos_y]  # (R,)
    along = SUBPIXEL * row + 128 - y[edge, pos_y]
    numerator = (x[edge] - 128) * rise[:, None] + (x_next - x)[edge] * along[:, None]  # (R, 32 posX)
    first_lit = -(-numerator // (SUBPIXEL * rise[:, None]))
    flips = RIGHT_OF[first_lit]  # (R, 32) uint64

    cell = pos_y * 64 + row
    order = np.argsort(cell, kind="stable")
    cells, begin = np.unique(cell[order], return_index=True)
    image = np.zeros((32 * 64, 32), dtype=np.uint64)
    image[cells] = np.bitwise_xor.reduceat(flips[order], begin, axis=0)
    return image.reshape(32, 64, 32).transpose(2, 0, 1)


RIGHT_OF = np.array([(1 << (64 - k)) - 1 for k in range(65)], dtype=np.uint64)  # pixels k..63 lit


def render():
    """Draw the whole set in about three seconds on one core.

    Return uint8 (737280, 64, 8): image, row, eight pixels a byte, most significant bit left.
    """
    packed = np.empty(FACTOR_SIZES[:3] + (32, 32, 64), dtype=">u8")
    offset = 16 + 32 * np.linspace(0, 1, 32)  # pixels, posX and posY alike
    for i, shape in enumerate(SHAPES):
        for j, scale in enumerate(np.linspace(0.5, 1, 6)):
            for k, angle in enumerate(np.linspace(0, 2 * np.pi, 40)):
                cos, sin = np.cos(angle), np.sin(angle)
                x, y = scale * outline(shape).T  # (V,) each
                vertices = np.stack([x * cos + y * sin, y * cos - x * sin])[..., None] + offset
                packed[i, j, k] = fill(*np.rint(vertices * SUBPIXEL).astype(np.int64))
    return packed.reshape(COUNT, 64).view(np.uint8).reshape(COUNT, 64, 8)


def read_official(npz):
    """Read the images of the official npz file as render() returns them; its pickled metadata are never read."""
    with open(npz, "rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if md5 != MD5:
        raise UserError(f"{npz} is not the official file of dSprites (md5 {md5}): remove it, or get it again")
    with np.load(npz) as arrays:
        return np.packbits(arrays["imgs"], axis=-1)  # of uint8 (737280, 64, 64), 3 GB
