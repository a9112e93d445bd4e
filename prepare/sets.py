"""The data sets: where their images lie, and how they become the arrays that training reads.

To add a set of images, add an entry to SETS; main.py and `python -m prepare` know it by its key.
"""

import os
import shlex
from pathlib import Path
from typing import NamedTuple

from prepare import dsprites
from prepare.arrays import load_array, read_manifest, write_manifest
from prepare.images import checksum, make_array, open_images
from utils import UserError

VERSION = 3  # of the way in which images are prepared; arrays of another version are made again
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
        hash=f"md5:{dsprites.MD5}",
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


def find_images(name, dset_dir, size, archive=None, crop=None, channels=None, workers=2, leave_out=RUNS):
    """Return a prepared set, uint8 (N, C, size, size), mapped into memory, and its manifest, a dict.

    It is made in dset_dir, and made again if its images or these settings have changed.
    archive: folder, zip or tar of the images; None: where they were, or else the first of the set's places.
    crop, channels: as in DataSet; None: as the set was prepared, or else as in SETS.
    leave_out: folders that are not searched for images.
    """
    spec, path = SETS[name], Path(dset_dir, f"{name}_{size}x{size}.npy")
    manifest = read_manifest(path)
    before = Path(dset_dir, manifest.get("source", "nowhere"))
    source = archive or (before if before.exists() else None)
    wanted = {
        "crop": manifest.get("crop", spec.crop) if crop is None else crop,
        "channels": channels or manifest.get("channels", spec.channels),
    }
    if source:  # else the array is all that training needs
        wanted |= {"version": VERSION, "images": checksum(source, leave_out)}
    changed = [key for key in wanted if wanted[key] != manifest.get(key)]
    images = None if changed else load_array(path, manifest["crc32"])
    if images is None:
        fault = f"was made from other images or settings ({', '.join(changed)})" if changed else "is damaged"
        source = source or first_there(name, dset_dir)
        if source is None:
            gone = f"{path} {fault}, and its images are gone: " if path.exists() else ""
            raise UserError(gone + how_to_get(name, dset_dir))
        if path.exists():
            print(f"{path} {fault}: making it again", flush=True)
        wanted |= {"version": VERSION, "images": checksum(source, leave_out)}
        manifest = make_images(name, path, source, size, wanted, workers, leave_out)
        images = load_array(path, manifest["crc32"])
    print(
        f"{spec.title}: {describe(manifest)}, from {Path(dset_dir, manifest['source']).resolve()}", flush=True
    )
    return images, manifest


def make_images(name, path, source, size, wanted, workers, leave_out):
    """Prepare the images of source, a folder or archive, as the array at path; return the manifest beside it."""
    check_writable(path.parent, name, source)
    with open_images(source, leave_out) as (files, skipped):
        if not files:
            why = "; ".join(filter(None, (str(skipped), other_sets(name, source)))) or "it is empty"
            raise UserError(f"no image in {source}: {why}")
        print(f"preparing {len(files):,} images of {source} into {path}", flush=True)
        array = make_array(path, files, size, wanted["crop"], wanted["channels"], workers)
    skipped |= array["skipped"]
    frames = array.pop("frames")
    inside = Path(source).resolve().is_relative_to(path.parent.resolve())  # so that dset_dir may be moved
    where = os.path.relpath(source, path.parent) if inside else str(Path(source).resolve())
    manifest = {**wanted, **array, "source": where, "skipped": skipped}
    write_manifest(path, manifest)
    if skipped:
        print(f"skipped {skipped}")
    if frames:
        have = "1 file has" if len(frames) == 1 else f"{len(frames):,} files have"
        print(f"{have} more frames; the first is used (first: {frames[0][0]!r}, {frames[0][1]})")
    if manifest["count"] < SETS[name].images:
        print(f"the official set has {SETS[name].images:,} images, this one {manifest['count']:,}")
    return manifest


def describe(manifest):
    """What a prepared set holds, in words and a checksum: with other pixels it is another text."""
    crop = f"centre {manifest['crop']} x {manifest['crop']} pixels" if manifest["crop"] else "whole frames"
    kind = "grey" if manifest["channels"] == 1 else "colour"
    return f"{manifest['count']:,} images, {kind}, {crop}, checksum {manifest['crc32']:08x}"


def find_dsprites(dset_dir, npz=None):
    """Return dSprites, uint8 (737280, 64, 8), mapped into memory, and its fingerprint.

    It is made in dset_dir if need be: packed from the official file, npz or one in dset_dir, or else drawn.
    """
    npz = npz or first_there("dsprites", dset_dir)
    path = Path(dset_dir, "dsprites_official_64x64_packed.npy")
    kind, crc32 = "official", read_manifest(path).get("crc32")
    packed = load_array(path, crc32)
    if packed is None and not npz:
        path = Path(dset_dir, "dsprites_64x64_packed.npy")
        kind, crc32 = "drawn", dsprites.CRC32
        packed = load_array(path, crc32)
    if packed is None:
        check_writable(path.parent, "dsprites", npz)
        damaged = f"{path} is damaged: " if path.exists() else ""
        how = f"packing {npz}" if npz else "drawing dSprites"
        print(f"{damaged}{how} into {path} (377 MB, some seconds)", flush=True)
        if npz:
            crc32 = dsprites.pack(npz, path)
            write_manifest(path, {"source": str(npz), "crc32": crc32})
        else:
            dsprites.draw(path)
        packed = load_array(path, crc32)
    if packed is None:
        raise UserError(f"{path} differs from the reference drawing: please report machine and numpy version")
    return packed, f"dSprites, {kind}, checksum {crc32:08x}"


def first_there(name, dset_dir):
    """The first of the places of a set that exists; None if there is none."""
    return next((path for place in SETS[name].places if (path := Path(dset_dir, place)).exists()), None)


def how_to_get(name, dset_dir):
    """What to say when there are no images."""
    spec, prepare = SETS[name], f"python -m prepare {name} --dset_dir {shlex.quote(str(dset_dir))}"
    if Path(dset_dir).exists():
        lines = [f"no {spec.title} in {dset_dir}, looked for {', '.join(spec.places)}. To get it:"]
    else:
        lines = [f"the folder {dset_dir} does not exist. To get {spec.title}:"]
    lines += [f"    {prepare} --download"] if spec.url else []
    return "\n".join([*lines, f"    {prepare} --archive FILE      # a zip, a tar or a folder"])


def other_sets(name, folder):
    """Words for a folder without images that holds other data sets."""
    others = [f"{SETS[key].title} (--dataset {key})" for key in SETS if key not in (name, "folder")
              if first_there(key, folder) or list(Path(folder).glob(f"{key}_*.npy"))]  # fmt: skip
    return f"it holds {', '.join(others)}" if others else ""


def check_writable(folder, name, source):
    """UserError if nothing can be written to folder, with the command that prepares the set in another one."""
    if not folder.exists():
        folder.mkdir(parents=True)
    if not os.access(folder, os.W_OK):
        archive = f" --archive {shlex.quote(str(source))}" if source else ""
        raise UserError(
            f"{folder} cannot be written to. To prepare the set elsewhere, and use it with --dset_dir OTHER:\n"
            f"    python -m prepare {name} --dset_dir OTHER{archive}"
        )
