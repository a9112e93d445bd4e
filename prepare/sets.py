"""The data sets: where their images lie, how they are prepared, and the prepared arrays.

To add a set of images, add an entry to SETS; main.py and `python -m prepare` know it by its key.
"""

import os
import shlex
from pathlib import Path
from typing import NamedTuple

from prepare import dsprites, official_dsprites
from prepare.archives import Source, stamp
from prepare.arrays import check_room, load_array, read_manifest, write_header, write_manifest
from prepare.images import make_array
from utils import UserError, atomic_file, say

VERSION = 2  # of prepared images; those of another version are made again
MANIFEST = {"version", "source", "stamp", "crop", "channels", "count", "crc32"}  # keys, for images
MOST_WORKERS = 256  # threads that decode images


class DataSet(NamedTuple):
    """What is particular to a data set."""

    title: str
    places: tuple  # where its images may lie below --dset_dir; archives first: a folder may be half unpacked
    channels: int = 3  # 1: grey, 3: colour
    crop: int = 0  # side of the centre square that is kept, pixels; 0: the whole frame
    distribution: str = "gaussian"  # of p(x|z); or "bernoulli"
    url: str = ""  # of the official file
    hash: str = ""  # of that file, "md5:..." or "sha256:..."
    images: int = 0  # in the official set
    room: str = ""  # that it takes


NPZ = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
SETS = {
    "dsprites": DataSet(
        "dSprites",
        (NPZ, f"dsprites-dataset/{NPZ}", f"dsprites/{NPZ}"),
        channels=1,
        distribution="bernoulli",
        url=f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{NPZ}",
        hash=f"md5:{official_dsprites.MD5}",
        images=dsprites.COUNT,
    ),
    "celeba": DataSet(  # the frame and the channels of public code
        "CelebA",
        tuple(
            f"{place}img_align_celeba{end}" for end in (".zip", "") for place in ("", "CelebA/", "celeba/")
        ),
        url="https://s3.amazonaws.com/pytorch-tutorial-assets/img_align_celeba.zip",
        hash="sha256:46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
        images=202_599,
        room="1.44 GB to download, 2.49 GB prepared",
    ),
    "3dchairs": DataSet(  # the paper's
        "3D Chairs",
        (
            *(f"{place}rendered_chairs{end}" for end in (".tar", "") for place in ("", "3DChairs/")),
            "3DChairs/images",
        ),
        channels=1,
        crop=400,
        distribution="bernoulli",
        url="https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar",
        hash="md5:7941bff4d19665ed2dd8c82e88293e1b",
        images=86_366,
        room="a tar to download, 0.35 GB prepared",
    ),
    "folder": DataSet("folder", (".",)),
}
DATASETS = tuple(SETS)


def default_distribution(name):
    """p(x|z) of a data set if --dist does not say: "bernoulli" or "gaussian"."""
    return SETS[name].distribution


def command(name, dset_dir, flags="", size=64):
    """What to type to prepare a set."""
    size = f" --image_size {size}" if size != 64 else ""
    return f"python -m prepare {name} --dset_dir {shlex.quote(str(dset_dir))}{size} {flags}".strip()


def first_there(name, dset_dir):
    """The first of the places of a set that exists; None if there is none."""
    return next((path for place in SETS[name].places if (path := Path(dset_dir) / place).exists()), None)


# dSprites.


def find_dsprites(dset_dir, npz=None):
    """dSprites, uint8 (737280, 64, 8), memory-mapped, and its fingerprint.

    It is made in dset_dir if need be: from the official file, which is npz or lies in dset_dir, else drawn.
    """
    npz = npz or first_there("dsprites", dset_dir)
    path, shape = Path(dset_dir) / "dsprites_official_64x64_packed.npy", (dsprites.COUNT, 64, 8)
    crc32 = read_manifest(path).get("crc32")
    packed = load_array(path, shape, crc32)
    if packed is None and npz:
        check_room(path, 377e6, command("dsprites", "OTHER", f"--archive {shlex.quote(str(npz))}"))
        say(f"packing {npz} into {path} (377 MB, some ten seconds)")
        crc32 = official_dsprites.pack(npz, path, command("dsprites", dset_dir, "--download"))
        write_manifest(path, {"source": str(npz), "crc32": crc32})
        packed = load_array(path, shape, crc32)
    if packed is not None:
        return packed, f"dSprites, official, checksum {crc32:08x}"
    return draw_dsprites(dset_dir, shape), f"dSprites, drawn, checksum {dsprites.CRC32:08x}"


def draw_dsprites(dset_dir, shape):
    path = Path(dset_dir) / "dsprites_64x64_packed.npy"
    packed = load_array(path, shape, dsprites.CRC32)
    if packed is None:
        check_room(path, 377e6, command("dsprites", "OTHER"))
        damaged = f"{path} is damaged: " if path.exists() else ""
        say(f"{damaged}drawing dSprites into {path} (377 MB, a few seconds)")
        with atomic_file(path) as file:
            write_header(file, shape)
            file.write(dsprites.render())
        packed = load_array(path, shape, dsprites.CRC32)
    if packed is None:
        raise UserError(f"{path} differs from the reference drawing: please report machine and numpy version")
    return packed


# Sets of images.


RUNS = ("outputs", "checkpoints")  # where main.py writes by default


def find_images(name, dset_dir, size, archive=None, crop=None, channels=None, workers=2, leave_out=RUNS):
    """A prepared set of images, uint8 (N, C, size, size), memory-mapped, and its manifest.

    It is made in dset_dir if it is not there or its images have changed. archive: folder, zip or tar of the images,
    if they are elsewhere. crop, channels: as in DataSet; None: as the prepared set has them, or else the table.
    leave_out: folders that are not searched for images.
    """
    spec, path = SETS[name], Path(dset_dir) / f"{name}_{size}x{size}.npy"
    manifest = read_manifest(path)
    if manifest.get("version") != VERSION or not MANIFEST <= manifest.keys():
        manifest = {}
    crop = manifest.get("crop", spec.crop) if crop is None else crop
    channels = channels or manifest.get("channels", spec.channels)
    before = Path(dset_dir, manifest["source"]) if manifest else None  # where its images were
    found = archive or (before if before and before.exists() else None)
    fault = what_changed(manifest, before, found, crop, channels, leave_out)
    images = None if fault else load_images(path, manifest, size)
    if images is None:
        fault = f"{path} {fault or 'is damaged'}" if path.exists() else ""
        found = found or first_there(name, dset_dir)
        if found is None:
            gone = f"{fault}, and its images are gone: " if fault else ""
            raise UserError(gone + how_to_get(name, dset_dir, size))
        if fault:
            say(f"{fault}: making it again")
        manifest = make_images(name, path, found, size, crop, channels, workers, leave_out)
        images = load_images(path, manifest, size)
    say(f"{spec.title}: {describe(manifest)}, from {Path(dset_dir, manifest['source']).resolve()}")
    return images, manifest


def load_images(path, manifest, size):
    return load_array(path, (manifest["count"], manifest["channels"], size, size), manifest["crc32"])


def what_changed(manifest, before, found, crop, channels, leave_out):
    """Why a prepared set is not what is asked for, as the rest of a sentence; None if it is.

    before: where its images were. found: where they are; None if they are gone, which counts as unchanged.
    """
    if not manifest:
        return "is not whole, or of another version"
    if (manifest["crop"], manifest["channels"]) != (crop, channels):
        return f"was made with crop {manifest['crop']} and {manifest['channels']} channels, not {crop} and {channels}"
    if found and stamp(found, leave_out) != manifest["stamp"]:
        same = before.resolve() == Path(found).resolve()
        return f"was made from {before}, {'which has changed' if same else f'not from {found}'}"
    return None


def make_images(name, path, found, size, crop, channels, workers, leave_out):
    """Prepare the images of found, a folder or archive, in path, with a manifest beside it, which is returned."""
    elsewhere = command(name, "OTHER", f"--archive {shlex.quote(str(found))}", size)
    check_room(path, 0, elsewhere)
    with Source(found, leave_out, scratch=path.parent) as source:
        if not source.images:
            raise UserError(f"no image in {found}{f': {source.skipped}' if source.skipped else ''}")
        check_room(path, len(source.images) * channels * size**2, elsewhere)
        say(f"preparing {len(source.images):,} images of {found} into {path}")
        count, depth, crc32 = make_array(path, source, size, crop, channels, workers)
        inside = Path(found).resolve().is_relative_to(path.parent.resolve())  # so that dset_dir may be moved
        manifest = dict(
            version=VERSION, crop=crop, channels=channels, count=count, depth=depth, crc32=crc32,
            source=os.path.relpath(found, path.parent) if inside else str(Path(found).resolve()),
            stamp=source.stamp, skipped=source.skipped,
        )  # fmt: skip
        write_manifest(path, manifest)
    if source.skipped:
        say(f"skipped {source.skipped}")
    if depth:
        say(f"16-bit images: of the {depth} bits in use the upper 8 are kept")
    if count < SETS[name].images:
        say(f"the official set has {SETS[name].images:,} images, this one {count:,}")
    return manifest


def describe(manifest):
    """What a prepared set holds, in words and a checksum: with other pixels it is another text."""
    crop = f"centre {manifest['crop']} x {manifest['crop']} pixels" if manifest["crop"] else "whole frames"
    kind = "grey" if manifest["channels"] == 1 else "colour"
    return f"{manifest['count']:,} images, {kind}, {crop}, checksum {manifest['crc32']:08x}"


def how_to_get(name, dset_dir, size):
    """What to type when there are no images."""
    spec = SETS[name]
    if name == "folder":
        return f"no folder {dset_dir}"
    lines = [f"no {spec.title} in {dset_dir}, looked for {', '.join(spec.places)}."]
    if spec.url:
        lines += [f"To get it ({spec.room}):", f"    {command(name, dset_dir, '--download', size)}"]
    lines += ["From an archive or a folder that you have:"]
    return "\n".join([*lines, f"    {command(name, dset_dir, '--archive FILE', size)}"])
