"""Turns the images of a folder or archive into one array on disk, uint8 (N, C, size, size)."""

import contextlib
import io
import math
import warnings
import zipfile
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from prepare.archives import readable
from prepare.arrays import file_crc32, write_header
from utils import UserError, atomic_file, progress

MOST_PIXELS = 2**27  # decoded of one image: 512 MB in colour
ORIENTATION = 0x0112  # tag of EXIF
TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270",
                        "TRANSVERSE", "ROTATE_90"), start=2))  # fmt: skip


def decode(data, size, crop=0, channels=3, depth=16):
    """Decode the bytes of an image file; an exception says what is wrong with them.

    size: side of the result, pixels. crop: side of the centre square that is kept, pixels; 0: the whole frame.
    depth: bits in use of images that store 16. Of an animation the first frame counts.

    Returns uint8 (channels, size, size), and the bits that this image uses if it stores 16, else None.
    """
    mode = "L" if channels == 1 else "RGB"
    with Image.open(io.BytesIO(data), formats=readable()[0]) as file:
        width, height = file.size
        if crop > min(width, height):
            raise ValueError(f"smaller than the crop of {crop} pixels")
        kept = (crop, crop) if crop else (width, height)
        left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
        # A JPEG is decoded at 1/2, 1/4 or 1/8, at a fraction of the time, if that leaves size pixels in what is kept.
        drafted = file.draft(mode, (-(-size * width // kept[0]), -(-size * height // kept[1])))
        scale = drafted[1][2] / width if drafted else 1
        if file.size[0] * file.size[1] > MOST_PIXELS:
            raise ValueError(f"more than {MOST_PIXELS:,} pixels to decode")
        box = [scale * edge for edge in (left, top, left + kept[0], top + kept[1])]
        x, y = int(box[0]), int(box[1])
        # Cropped first, or the resize would look around the box.
        deep_colour = file.mode != "L" and any(";16" in str(tile) for tile in getattr(file, "tile", ()))
        image, bits = eight_bits(file.crop((x, y, math.ceil(box[2]), math.ceil(box[3]))), mode, depth)
        if deep_colour:  # of which Pillow reads the upper 8 bits
            bits = bits or 16
        box = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
        small = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if turn := turned(file):
            small = small.transpose(Image.Transpose[turn])
    return np.asarray(small).reshape(size, size, channels).transpose(2, 0, 1), bits


def eight_bits(image, mode, depth):
    """An image in mode L or RGB, on white where it is transparent, and the bits it uses if it stores 16."""
    bits = None
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):  # convert() would clip
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels of more than 16 bits")
        bits = max(8, int(values.max()).bit_length())
        image = Image.fromarray((values >> (depth - 8)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode), bits


def turned(image):
    """How to turn an image as its camera was held; None if not, or if the file says it in a way that cannot be read."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # Pillow raises a dozen types for malformed EXIF, and the pixels may be good
        return None


def reason(error):
    """An error of decoding in a few words, the same for all images with one kind of damage."""
    text = str(error).split("\n")[0]
    if "cannot identify" in text:
        return "not an image of a known kind"
    if "truncated" in text.lower() or "end of data" in text:
        return "cut short"
    if isinstance(error, (zipfile.BadZipFile, zlib.error)):
        return "damaged in the zip"
    if isinstance(error, ValueError) and text:
        return text
    return f"not decodable ({getattr(error, 'strerror', None) or text or type(error).__name__})"


@contextlib.contextmanager
def own_limits():
    """Pillow without its limit of pixels, in place of which decode() has its own, and without its warnings."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def in_threads(function, items, workers):
    """Yield function(item) for each item, in order; threads work a few items ahead."""
    if not workers:
        yield from map(function, items)
        return
    pool, pending = ThreadPoolExecutor(workers), deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def decode_all(source, names, size, crop, channels, depth, workers):
    """Yield (name, decode()'s result, None) for each image, or (name, None, reason) if it cannot be decoded."""

    def one(name):
        try:
            return name, decode(source.images[name](), size, crop, channels, depth), None
        except MemoryError:
            raise UserError(f"out of memory at {name!r}: fewer --num_workers, down to 0, need less") from None
        except Exception as error:  # decoders raise a dozen types
            return name, None, reason(error)

    bar = progress(total=len(names), unit=" images", delay=0, leave=True)
    with bar, own_limits(), contextlib.closing(in_threads(one, names, workers)) as results:
        for result in results:
            yield result
            bar.update()


def make_array(path, source, size, crop, channels, workers):
    """Write the images of source to path, npy, uint8 (N, channels, size, size), in the order of their names.

    path holds nothing, the old array or all of the new one, whenever this is interrupted. What cannot be decoded
    is added to source.skipped. Returns the number of images, the bits in use of 16-bit images (None without any)
    and the CRC-32 of the array.
    """
    rows, bits = {}, {}
    with atomic_file(path) as file:
        start = write_header(file, (0, channels, size, size))

        def write(names, depth):
            results = decode_all(source, names, size, crop, channels, depth, workers)
            with contextlib.closing(results):
                for name, decoded, why in results:
                    if why:
                        source.skipped.add(why, name)
                        continue
                    pixels, bits[name] = decoded
                    file.seek(start + rows.setdefault(name, len(rows)) * pixels.size)
                    file.write(pixels.tobytes())

        write(source.images, 16)
        bits = {name: used for name, used in bits.items() if used}
        depth = max(bits.values(), default=None)
        if depth and depth < 16:  # one scale for the set, or dark images would come out as bright as others
            write(list(bits), depth)
        if not rows:
            raise UserError(f"no image remains of {len(source.images):,} in {source.path}: {source.skipped}")
        if write_header(file, (len(rows), channels, size, size)) != start:
            raise RuntimeError("numpy's header changed its length")
        return len(rows), depth, file_crc32(file, start)
