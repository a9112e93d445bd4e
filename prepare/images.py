"""Decodes images, and turns many of them into one array on disk, uint8 (N, C, size, size)."""

import io
import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError

from prepare.archives import Skipped, readable
from prepare.arrays import file_crc32, write_header
from utils import UserError, atomic_file, progress

Image.MAX_IMAGE_PIXELS = 2**27  # Pillow refuses images of more than twice as many: 800 MB in colour
ORIENTATION = 0x0112  # tag of EXIF
TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270",
                        "TRANSVERSE", "ROTATE_90"), start=2))  # fmt: skip
AHEAD = 64  # images handed to the threads at a time, so that results do not pile up where a disk is slow


def decode(data, size, crop=0, channels=3, depth=16):
    """Decode the bytes of an image file; an exception says what is wrong with them.

    size: side of the result in pixels. crop: side in pixels of the centre square that is kept; 0: the whole frame.
    depth: number of bits in use, for images that store 16. Of an animation the first frame counts.

    Returns uint8 (channels, size, size), and how many bits this image uses; 0 if it does not store 16.
    """
    mode = "L" if channels == 1 else "RGB"
    with Image.open(io.BytesIO(data), formats=readable()[0]) as file:
        width, height = file.size
        # colours of 16 bits, of which Pillow reads the upper 8
        deep = ";16" in str(file.tile) and not file.mode.startswith("I")
        if crop > min(width, height):
            raise ValueError(f"smaller than the crop of {crop} pixels")
        kept_width, kept_height = (crop, crop) if crop else (width, height)
        # A JPEG is decoded at 1/2, 1/4 or 1/8, in a fraction of the time, if that leaves size pixels of what is kept.
        least = math.ceil(size * width / kept_width), math.ceil(size * height / kept_height)
        drafted = file.draft(mode, least)
        scale = drafted[1][2] / width if drafted else 1
        left, top = scale * ((width - kept_width) // 2), scale * ((height - kept_height) // 2)
        right, bottom = left + scale * kept_width, top + scale * kept_height
        # Cropped first: the filter of resize() would reach beyond the box.
        x, y = int(left), int(top)
        image, bits = to_8_bits(file.crop((x, y, math.ceil(right), math.ceil(bottom))), depth)
        box = (left - x, top - y, right - x, bottom - y)
        small = image.convert(mode).resize((size, size), Image.Resampling.BILINEAR, box=box)
        if turn := turned(file):
            small = small.transpose(Image.Transpose[turn])
    pixels = np.asarray(small)
    if deep and pixels.max() < 16:
        raise ValueError("dark colours that use 12 of 16 bits at most: save it with 8")
    return pixels.reshape(size, size, channels).transpose(2, 0, 1), bits


def to_8_bits(image, depth):
    """An image of 8 bits a channel, on white where it was transparent; and the bits it uses if it stores 16, else 0."""
    bits = 0
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):  # convert() would clip to 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError("pixels of more than 16 bits")
        bits = max(8, int(values.max()).bit_length())
        image = Image.fromarray((values >> (depth - 8)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image, bits


def turned(image):
    """How to turn an image as its camera was held; None if not at all, or if its metadata cannot be read."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # Pillow raises a dozen types for malformed EXIF, and the pixels may be good
        return None


def reason(error):
    """Why an image cannot be decoded, in the same words for all images with one kind of damage."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known kind"
    if isinstance(error, (ValueError, Image.DecompressionBombError)):
        return str(error)
    if "truncated" in str(error).lower():
        return "cut short"
    return f"not decodable ({getattr(error, 'strerror', None) or type(error).__name__})"


def make_array(path, images, size, crop, channels, workers):
    """Decode images, {name: read}, into the file path: npy, uint8 (N, channels, size, size), in their order.

    path holds the old content or all of the new, whenever this is interrupted. workers: number of threads.
    Returns a dict: count, N; depth, the bits in use of 16-bit images, 0 if there are none; crc32, of the array;
    skipped, a Skipped.
    """
    with atomic_file(path) as file:
        start = write_header(file, (0, channels, size, size))
        count, depth, skipped = write_rows(file, images, workers, size, crop, channels)
        if 0 < depth < 16:  # again, with one scale for the whole set: its dark images stay darker than others
            file.truncate(file.seek(start))
            count, _, skipped = write_rows(file, images, workers, size, crop, channels, depth)
        if not count:
            raise UserError(f"none of {len(images):,} images can be read: {skipped}")
        write_header(file, (count, channels, size, size))  # no longer than before: numpy leaves room for N
        return dict(count=count, depth=depth, crc32=file_crc32(file, start), skipped=skipped)


def write_rows(file, images, workers, *settings):
    """Decode images with these settings, and append them to file; returns how many, the most bits, and a Skipped."""

    def decoded(name):
        try:
            return *decode(images[name](), *settings), None
        except MemoryError:
            raise UserError(f"out of memory at {name!r}: fewer --num_workers, down to 1, need less") from None
        except Exception as error:  # decoders raise a dozen types
            return None, 0, reason(error)

    names, count, most_bits, skipped = list(images), 0, 0, Skipped()
    bar = progress(total=len(names), unit=" images", delay=0, leave=True)
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(max(workers, 1)) as pool, bar:
        for first in range(0, len(names), AHEAD):
            some = names[first : first + AHEAD]
            for name, (pixels, bits, why) in zip(some, pool.map(decoded, some)):
                bar.update()
                if why:
                    skipped.add(why, name)
                else:
                    file.write(pixels.tobytes())
                    count, most_bits = count + 1, max(most_bits, bits)
    return count, most_bits, skipped
