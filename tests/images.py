"""Images for tests, and the folders and archives that hold them."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

import dataset


def photo(seed=0, size=(178, 218), mode="RGB"):
    """An image with the smoothness and noise of a photograph."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 6, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC)) + rng.normal(
        0, 4, (size[1], size[0], 3)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
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


def prepared(folder, archive, name="celeba", **wanted):
    """The prepared images, uint8 (N, C, 64, 64), and the manifest."""
    path, manifest = dataset.find_images(name, folder, archive, num_workers=0, **wanted)
    return np.load(path), manifest


def refusal(capsys, *flags):
    """The one line of a dataset.py that ends with status 1."""
    assert dataset.main(list(map(str, flags))) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if "images/s" not in line and line]
    assert len(err) == 1 and err[0].startswith("dataset.py: ")
    return err[0]


FILES = {f"img_align_celeba/{i:06}.jpg": encoded(photo(i)) for i in (3, 1, 40, 2)}  # not in order
