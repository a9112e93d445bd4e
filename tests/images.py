"""Images for tests, and the folders and archives that hold them."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

import prepare.__main__ as program
from prepare.images import decode
from prepare.sets import find_images, prepare_images


def photo(seed=0, size=(178, 218), mode="RGB"):
    """An image with the smoothness and noise of a photograph."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 6, 3), dtype=np.uint8))
    pixels = small.resize(size, Image.Resampling.BICUBIC) + rng.normal(0, 4, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(level, size=(80, 80)):
    return encoded(Image.new("RGB", size, (level,) * 3), "PNG")


def write_folder(path, files):
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


WRITERS = {"folder": write_folder, "zip": write_zip, "tar": write_tar}
FILES = {f"img_align_celeba/{i:06}.jpg": encoded(photo(i)) for i in (3, 1, 40, 2)}  # not in order


def prepared(folder, archive=None, name="celeba", **wanted):
    """The prepared images, uint8 (N, C, 64, 64)."""
    if archive or wanted:
        prepare_images(name, folder, 64, archive, **wanted)
    return find_images(name, folder, 64)[0]


def decoded(data, crop=0, channels=3):
    return decode(lambda: data, 64, channels, crop)[0]


def run(*flags, status=0):
    assert program.main(list(map(str, flags))) == status


def refusal(capsys, *flags):
    """The one line that `python -m prepare` ends with, at status 1, below the progress bar."""
    run(*flags, status=1)
    [line] = [line for line in capsys.readouterr().err.splitlines() if line and "%|" not in line]
    assert line.startswith("prepare: ")
    return line
