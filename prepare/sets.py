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

VERSION = 3  # of the way in which images are prepared; arrays of another version are made again


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


def default_distribution(name):
    """p(x|z) of a data set if --dist does not say: "bernoulli" or "gaussian"."""
    return SETS[name].distribution


def find_images(name, dset_dir, size, archive=None, crop=None, channels=None, workers=2):
    """Return a prepared set, uint8 (N, C, size, size), mapped into memory, and its fingerprint.

    It is made in dset_dir, and made again if its images or these settings have changed.
    archive: folder, zip or tar of the images; None: where they were, or else the first of the set's places.
    crop, channels: as in DataSet; None: as the set was prepared, or else as in SETS.
    """
    spec, path = SETS[name], Path(dset_dir, f"{name}_{size}x{size}.npy")
    manifest = read_manifest(path)
    source = archive or first_there([manifest["source"]] if manifest else [], dset_dir)
    wanted = {
        "crop": manifest.get("crop", spec.crop) if crop is None else crop,
        "channels": channels or manifest.get("channels", spec.channels),
    }
    if source:  # else the array is all that training needs
        wanted |= {"version": VERSION, "images": checksum(source)}
    changed = [key for key in wanted if wanted[key] != manifest.get(key)]
    images = None if changed else load_array(path, manifest["crc32"])
    if images is None:
        source = source or first_there(spec.places, dset_dir)
        if source is None:
            raise UserError(how_to_get(name, dset_dir))
        check_writable(path.parent)
        if path.exists():
            print(f"making {path} again: {', '.join(changed) or 'checksum'} changed")
        crc32 = make_array(path, source, size, wanted["crop"], wanted["channels"], workers)
        where = os.path.relpath(Path(source).resolve(), path.parent.resolve())  # so that both may be moved
        wanted |= {"version": VERSION, "images": checksum(source)}
        manifest = {**wanted, "source": where, "crc32": crc32}
        write_manifest(path, manifest)
        images = load_array(path, crc32)
    kind = "grey" if manifest["channels"] == 1 else "colour"
    side = manifest["crop"]
    frame = f"centre {side} x {side} pixels" if side else "whole frames"
    fingerprint = f"{size}x{size}, {len(images):,} images, {kind}, {frame}, checksum {manifest['crc32']:08x}"
    print(f"{spec.title}: {fingerprint}, from {Path(dset_dir, manifest['source']).resolve()}", flush=True)
    return images, fingerprint


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
        check_writable(path.parent)
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


def check_writable(folder):
    """Make folder if need be; UserError if nothing can be written to it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"{folder} cannot be written to: use python -m prepare DATASET --dset_dir OTHER --archive FILE"
        )


def load_array(path, crc32):
    """Map an npy file into memory, uint8; None if there is none, or its pixels have another CRC-32."""
    if not path.exists():
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
