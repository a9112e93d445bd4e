"""The data sets: where their images lie, and how they become the arrays that training reads.

To add a set of images, add an entry to SETS; main.py and `python -m prepare` know it by its key.
"""

import os
import shlex
from pathlib import Path
from typing import NamedTuple

from prepare import dsprites, official_dsprites
from prepare.archives import open_images, stamp
from prepare.arrays import load_array, read_manifest, write_header, write_manifest
from prepare.images import make_array
from utils import UserError, atomic_file

VERSION = 2  # of the way in which images are prepared; arrays of another version are made again
MOST_WORKERS = 256  # threads that decode images
RUNS = ("outputs", "checkpoints")  # where main.py writes by default


class DataSet(NamedTuple):
    """What is particular to a data set. Its key in SETS is lower-case."""

    title: str
    places: tuple  # where its images may lie below --dset_dir; archives first: a folder may be half unpacked
    channels: int = 3  # 1: grey, 3: colour
    crop: int = 0  # side in pixels of the centre square that is kept; 0: the whole frame
    distribution: str = "gaussian"  # of p(x|z); or "bernoulli"
    url: str = ""  # of the official file
    hash: str = ""  # of that file, "md5:..." or "sha256:..."
    images: int = 0  # in the official set


NPZ = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
SETS = {
    "dsprites": DataSet(
        "dSprites",
        (NPZ, f"dsprites-dataset/{NPZ}", f"dsprites/{NPZ}"),
        channels=1,
        distribution="bernoulli",
        url=f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{NPZ}",
        hash=f"md5:{official_dsprites.MD5}",
    ),
    "celeba": DataSet(  # the whole frame in colour, as in public code
        "CelebA",
        tuple(f"{place}img_align_celeba{end}" for end in (".zip", "") for place in ("", "CelebA/", "celeba/")),
        url="https://s3.amazonaws.com/pytorch-tutorial-assets/img_align_celeba.zip",
        hash="sha256:46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
        images=202_599,
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
        images=86_366,
    ),
    "folder": DataSet("images", (".",)),
}  # fmt: skip
DATASETS = tuple(SETS)


def default_distribution(name):
    """p(x|z) of a data set if --dist does not say: "bernoulli" or "gaussian"."""
    return SETS[name].distribution


# Sets of images.


def find_images(name, dset_dir, size, archive=None, crop=None, channels=None, workers=2, leave_out=RUNS):
    """A prepared set, uint8 (N, C, size, size), mapped into memory, and its manifest, a dict.

    It is made in dset_dir, and made again if its images or these settings have changed.
    archive: folder, zip or tar of the images; None: where they were, or else the first of the set's places.
    crop, channels: as in DataSet; None: as the set was prepared, or else as in SETS.
    leave_out: folders that are not searched for images.
    """
    spec, path = SETS[name], Path(dset_dir, f"{name}_{size}x{size}.npy")
    manifest = read_manifest(path, crop=int, channels=int, count=int, crc32=int, source=str)
    before = Path(dset_dir, manifest.get("source", "nowhere"))
    source = archive or (before if before.exists() else None)  # None: the array is all that training needs
    settings = {
        "version": VERSION,
        "stamp": stamp(source, leave_out) if source else manifest.get("stamp"),
        "crop": manifest.get("crop", spec.crop) if crop is None else crop,
        "channels": channels or manifest.get("channels", spec.channels),
    }
    changed = [key for key in settings if settings[key] != manifest.get(key)]
    images = None if changed else load_array(path, manifest.get("crc32"))
    if images is None:
        fault = f"was made from other images or settings ({', '.join(changed)})" if changed else "is damaged"
        fault = fault if manifest else f"has no manifest, or a damaged one ({path.with_suffix('.json').name})"
        source = source or first_there(name, dset_dir)
        if source is None:
            gone = f"{path} {fault}, and its images are gone: " if path.exists() else ""
            raise UserError(gone + how_to_get(name, dset_dir))
        if path.exists():
            print(f"{path} {fault}: making it again")
        settings["stamp"] = stamp(source, leave_out)
        manifest = make_images(name, path, source, size, settings, workers, leave_out)
        images = load_array(path, manifest["crc32"])
    print(f"{spec.title}: {describe(manifest)}, from {Path(dset_dir, manifest['source']).resolve()}")
    return images, manifest


def make_images(name, path, source, size, settings, workers, leave_out):
    """Prepare the images of source, a folder or archive, as the array at path; returns the manifest beside it."""
    check_writable(path.parent, name, source)
    with open_images(source, leave_out) as (images, skipped):
        if not images:
            raise UserError(f"no image in {source}: {skipped or 'it is empty'}")
        print(f"preparing {len(images):,} images of {source} into {path}")
        array = make_array(path, images, size, settings["crop"], settings["channels"], workers)
    skipped |= array["skipped"]
    inside = Path(source).resolve().is_relative_to(path.parent.resolve())  # so that dset_dir may be moved
    where = os.path.relpath(source, path.parent) if inside else str(Path(source).resolve())
    manifest = {**settings, **array, "source": where, "skipped": skipped}
    write_manifest(path, manifest)
    if skipped:
        print(f"skipped {skipped}")
    if manifest["depth"]:
        print(f"16-bit images: of the {manifest['depth']} bits in use the upper 8 are kept")
    if manifest["count"] < SETS[name].images:
        print(f"the official set has {SETS[name].images:,} images, this one {manifest['count']:,}")
    return manifest


def describe(manifest):
    """What a prepared set holds, in words and a checksum: with other pixels it is another text."""
    crop = f"centre {manifest['crop']} x {manifest['crop']} pixels" if manifest["crop"] else "whole frames"
    kind = "grey" if manifest["channels"] == 1 else "colour"
    return f"{manifest['count']:,} images, {kind}, {crop}, checksum {manifest['crc32']:08x}"


# dSprites.


def find_dsprites(dset_dir, npz=None):
    """dSprites, uint8 (737280, 64, 8), mapped into memory, and its fingerprint.

    It is made in dset_dir if need be: packed from the official file, npz or one in dset_dir, or else drawn.
    """
    npz = npz or first_there("dsprites", dset_dir)
    path = Path(dset_dir, "dsprites_official_64x64_packed.npy")
    kind, crc32 = "official", read_manifest(path, crc32=int).get("crc32")
    packed = load_array(path, crc32)
    if packed is None and not npz:
        path = Path(dset_dir, "dsprites_64x64_packed.npy")
        kind, crc32 = "drawn", dsprites.CRC32
        packed = load_array(path, crc32)
    if packed is None:
        check_writable(path.parent, "dsprites", npz)
        damaged = f"{path} is damaged: " if path.exists() else ""
        print(f"{damaged}{f'packing {npz}' if npz else 'drawing dSprites'} into {path} (377 MB, some seconds)")
        if npz:
            crc32 = official_dsprites.pack(npz, path)
            write_manifest(path, {"source": str(npz), "crc32": crc32})
        else:
            with atomic_file(path) as file:
                write_header(file, dsprites.PACKED)
                file.write(dsprites.render())
        packed = load_array(path, crc32)
    if packed is None:
        raise UserError(f"{path} differs from the reference drawing: please report machine and numpy version")
    return packed, f"dSprites, {kind}, checksum {crc32:08x}"


# Where the files are, and how to get them.


def first_there(name, dset_dir):
    """The first of the places of a set that exists; None if there is none."""
    return next((path for place in SETS[name].places if (path := Path(dset_dir, place)).exists()), None)


def how_to_get(name, dset_dir):
    """What to say when there are no images."""
    spec, prepare = SETS[name], f"python -m prepare {name} --dset_dir {shlex.quote(str(dset_dir))}"
    lines = [f"no {spec.title} in {dset_dir}, looked for {', '.join(spec.places)}. To get it:"]
    lines += [f"    {prepare} --download"] if spec.url else []
    return "\n".join([*lines, f"    {prepare} --archive FILE      # a zip, a tar or a folder"])


def check_writable(folder, name, source):
    """UserError if nothing can be written to folder, with the command that prepares the set in another one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        pass
    if not os.access(folder, os.W_OK):
        archive = f" --archive {shlex.quote(str(source))}" if source else ""
        raise UserError(
            f"{folder} cannot be written to. To prepare the set elsewhere, and use it with --dset_dir OTHER:\n"
            f"    python -m prepare {name} --dset_dir OTHER{archive}"
        )
