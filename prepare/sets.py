"""The data sets: where their images lie, and how they become the arrays that training reads.

To add a set of images, add an entry to SETS; main.py and `python -m prepare` know it by its key.
"""

import json
import os
import shlex
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prepare import dsprites
from prepare.images import HEADER, checksum, make_array
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
    images = load_array(path, manifest.get("crc32"))
    if images is None or source and checksum(source) != manifest.get("images"):
        if path.exists():
            print(f"making {path} again: it is damaged, or its images have changed")
        settings = manifest.get("crop"), manifest.get("channels")
        manifest = prepare_images(name, dset_dir, size, source, *settings, workers)
        images = load_array(path, manifest["crc32"])
    kind = "grey" if manifest["channels"] == 1 else "colour"
    side = manifest["crop"]
    frame = f"centre {side} x {side} pixels" if side else "whole frames"
    fingerprint = f"{size}x{size}, {len(images):,} images, {kind}, {frame}, checksum {manifest['crc32']:08x}"
    print(
        f"{SETS[name].title}: {fingerprint}, from {Path(dset_dir, manifest['source']).resolve()}", flush=True
    )
    return images, fingerprint


def prepare_images(name, dset_dir, size, archive=None, crop=None, channels=None, workers=2):
    """Make the array of a set of images in dset_dir; return what is known of it, a dict, also kept in JSON beside it.

    archive: folder, zip or tar of the images; None: the first of the set's places that is there.
    crop, channels: as in DataSet; None: as in SETS.
    """
    spec, path = SETS[name], Path(dset_dir, f"{name}_{size}x{size}.npy")
    source = archive or first_there(spec.places, dset_dir)
    if source is None:
        raise UserError(how_to_get(name, dset_dir))
    path.parent.mkdir(parents=True, exist_ok=True)
    crop, channels = spec.crop if crop is None else crop, channels or spec.channels
    crc32 = make_array(path, source, size, crop, channels, workers)
    where = os.path.relpath(Path(source).resolve(), path.parent.resolve())  # so that both may be moved
    manifest = {
        "crop": crop,
        "channels": channels,
        "images": checksum(source),
        "source": where,
        "crc32": crc32,
    }
    write_manifest(path, manifest)
    return manifest


def find_dsprites(dset_dir, npz=None):
    """Return dSprites, uint8 (737280, 64, 8), mapped into memory, and its fingerprint.

    It is made in dset_dir if need be: packed from the official file, npz or one in dset_dir, or else drawn.
    """
    npz = npz or first_there(SETS["dsprites"].places, dset_dir)
    path = Path(dset_dir, "dsprites_official_64x64_packed.npy")
    kind, crc32 = "official", read_manifest(path).get("crc32")
    packed = load_array(path, crc32)
    if packed is None and not npz:
        path = Path(dset_dir, "dsprites_64x64_packed.npy")
        kind, crc32 = "drawn", dsprites.CRC32
        packed = load_array(path, crc32)
    if packed is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {path} (377 MB, some seconds) from {npz or 'its definition'}", flush=True)
        images = dsprites.read_official(npz) if npz else dsprites.render()
        with atomic_file(path) as file:
            np.save(file, images)
        if npz:
            crc32 = zlib.crc32(images)
            write_manifest(path, {"crc32": crc32})
        packed = load_array(path, crc32)
    if packed is None:
        raise UserError(f"{path} differs from the reference drawing: please report machine and numpy version")
    fingerprint = f"dSprites, {kind}, checksum {crc32:08x}"
    print(fingerprint, flush=True)
    return packed, fingerprint


def first_there(places, folder):
    """The first of some places below folder that exists, a Path; None if none does."""
    return next((path for place in places if (path := Path(folder, place)).exists()), None)


def how_to_get(name, dset_dir):
    """What to say when there are no images."""
    spec = SETS[name]
    what = f"no {spec.title} in {dset_dir}, looked for {', '.join(spec.places)}"
    if not Path(dset_dir).exists():
        what = f"the folder {dset_dir} does not exist"
    ways = "--download, or --archive FILE" if spec.url else "--archive FILE"
    return f"{what}. To get it: python -m prepare {name} --dset_dir {shlex.quote(str(dset_dir))} {ways}"


def load_array(path, crc32):
    """Map an npy file into memory, uint8; None if it is not there, or its pixels have another CRC-32."""
    if crc32 is None or not path.exists():
        return None
    found = 0
    with open(path, "rb") as file:  # read, not mapped, so that it does not count as memory in use
        file.seek(HEADER)
        while data := file.read(2**22):
            found = zlib.crc32(data, found)
    # "c", copy on write: torch wants an array that can be written to; the file stays as it is
    return np.load(path, mmap_mode="c") if found == crc32 else None


def read_manifest(path):
    """What is known of the array at path, a dict, kept in JSON beside it; empty if there is none."""
    beside = path.with_suffix(".json")
    return json.loads(beside.read_bytes()) if beside.exists() else {}


def write_manifest(path, manifest):
    with atomic_file(path.with_suffix(".json")) as file:
        file.write(json.dumps(manifest, indent=2).encode())
