"""The data sets: where their images lie, and how they become the arrays that training reads.

To add a set of images, add an entry to SETS; main.py and `python -m prepare` know it by its key.
"""

import contextlib
import json
import os
import shlex
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prepare import dsprites
from prepare.images import checksum, make_array
from utils import UserError, atomic_file


class DataSet(NamedTuple):
    """What is particular to a data set. Its key in SETS is lower-case."""

    title: str
    places: tuple  # where its images may lie below --dset_dir; archives first: a folder may be half unpacked
    channels: int = 3  # 1: grey, 3: colour
    crop: int = 0  # side in pixels of the centre square that is kept; 0: the whole frame
    distribution: str = "gaussian"  # of p(x|z); or "bernoulli"
    url: str = ""  # of the official file
    hash: str = ""  # of that file, "md5:..." or "sha256:..."


NPZ = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
SETS = {
    "dsprites": DataSet(
        "dSprites",
        (NPZ, f"dsprites-dataset/{NPZ}", f"dsprites/{NPZ}"),
        channels=1,
        distribution="bernoulli",
        url=f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{NPZ}",
        hash=f"md5:{dsprites.MD5}",
    ),
    "celeba": DataSet(  # the whole frame in colour, as in public code
        "CelebA",
        tuple(f"{place}img_align_celeba{end}" for end in (".zip", "") for place in ("", "CelebA/", "celeba/")),
        url="https://s3.amazonaws.com/pytorch-tutorial-assets/img_align_celeba.zip",
        hash="sha256:46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
    ),
    "3dchairs": DataSet(  # the centre in grey, as in the paper
        "3D Chairs",
        ("rendered_chairs.tar", "3DChairs/rendered_chairs.tar", "rendered_chairs", "3DChairs/rendered_chairs",
         "3DChairs/images"),
        channels=1,
        crop=400,
        distribution="bernoulli",
        url="https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar",
        hash="md5:7941bff4d19665ed2dd8c82e88293e1b",
    ),
    "folder": DataSet("images", (".",)),
}  # fmt: skip


def find_images(name, dset_dir, size, workers=2):
    """Return a prepared set, uint8 (N, C, size, size), mapped into memory, and its fingerprint.

    It is made in dset_dir if need be, and made again in the same way if its images have changed since. Without them,
    the array is all that training needs.
    """
    path = Path(dset_dir, f"{name}_{size}x{size}.npy")
    manifest = read_manifest(path)
    source = first_there([manifest["source"]], dset_dir) if manifest else None
    if not path.exists() or not manifest or source and checksum(source) != manifest.get("images"):
        if path.exists():
            print(f"making {path} again: its images have changed")
        settings = manifest.get("crop"), manifest.get("channels")
        manifest = prepare_images(name, dset_dir, size, source, *settings, workers)
    images = np.load(path, mmap_mode="c")  # copy on write: torch wants an array that can be written to
    kind = "grey" if manifest["channels"] == 1 else "colour"
    side = manifest["crop"]
    frame = f"centre {side} x {side} pixels" if side else "whole frames"
    fingerprint = f"{size}x{size}, {len(images):,} images, {kind}, {frame}, checksum {manifest['crc32']:08x}"
    origin = Path(dset_dir, manifest["source"]).resolve()
    print(f"{SETS[name].title}: {fingerprint}, from {origin}", flush=True)
    return images, fingerprint


def prepare_images(name, dset_dir, size, archive=None, crop=None, channels=None, workers=2):
    """Make the array of a set of images in dset_dir; return its manifest.

    archive: folder, zip or tar of the images; None: the first of the set's places that is there.
    crop, channels: as in DataSet; None: as in SETS.
    """
    spec, path = SETS[name], Path(dset_dir, f"{name}_{size}x{size}.npy")
    source = archive or first_there(spec.places, dset_dir)
    if source is None:
        raise UserError(how_to_get(name, dset_dir))
    crop, channels = spec.crop if crop is None else crop, channels or spec.channels
    with new_array(path) as (file, manifest):
        manifest["crc32"] = make_array(file, source, size, crop, channels, workers)
        where = os.path.relpath(Path(source).resolve(), path.parent.resolve())  # so that both may be moved
        manifest |= {"crop": crop, "channels": channels, "images": checksum(source), "source": where}
    return manifest


def find_dsprites(dset_dir, npz=None):
    """Return dSprites, uint8 (737280, 64, 8), mapped into memory, and its fingerprint.

    It is made in dset_dir if need be: packed from the official file, npz or one in dset_dir, or else drawn.
    """
    npz = npz or first_there(SETS["dsprites"].places, dset_dir)
    path, kind = Path(dset_dir, "dsprites_official_64x64_packed.npy"), "official"
    if not npz and not path.exists():
        path, kind = Path(dset_dir, "dsprites_64x64_packed.npy"), "drawn"
    manifest = read_manifest(path)
    if not path.exists() or not manifest:
        print(f"making {path} (377 MB, some seconds) from {npz or 'its definition'}", flush=True)
        with new_array(path) as (file, manifest):
            packed = dsprites.read_official(npz) if npz else dsprites.render()
            np.save(file, packed)
            manifest["crc32"] = zlib.crc32(packed)
    fingerprint = f"dSprites, {kind}, checksum {manifest['crc32']:08x}"
    print(fingerprint, flush=True)
    return np.load(path, mmap_mode="c"), fingerprint


def first_there(places, folder):
    """Return the first of some places below folder that exists, a Path; None if none does."""
    return next((path for place in places if (path := Path(folder, place)).exists()), None)


def how_to_get(name, dset_dir):
    """Return what to say when there are no images."""
    spec = SETS[name]
    what = f"no {spec.title} in {dset_dir}, looked for {', '.join(spec.places)}"
    if not Path(dset_dir).exists():
        what = f"the folder {dset_dir} does not exist"
    ways = "--download, or --archive FILE" if spec.url else "--archive FILE"
    return f"{what}. To get it: python -m prepare {name} --dset_dir {shlex.quote(str(dset_dir))} {ways}"


# Arrays, npy files. What is known of one, its manifest, is written last, beside it in JSON: without it there is no array.


@contextlib.contextmanager
def new_array(path):
    """Within `with`, write an array to the file, and what is to be known of it into the dict. path is only changed at the end."""
    manifest, beside = {}, path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        yield file, manifest
        beside.unlink(missing_ok=True)
    with atomic_file(beside) as file:
        file.write(json.dumps(manifest, indent=2).encode())


def read_manifest(path):
    """Return what is known of the array at path, a dict; empty if nothing is."""
    beside = path.with_suffix(".json")
    return json.loads(beside.read_bytes()) if beside.exists() else {}
