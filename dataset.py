"""Data sets as one object: len(), channels, distribution, factor sizes and batch(indices).

    python dataset.py celeba --dset_dir data --download         # 1.44 GB, and 2.5 GB when prepared
    python dataset.py celeba --archive ~/img_align_celeba.zip   # or from an archive that is there
    python dataset.py 3dchairs --download
    python dataset.py dsprites --export dsprites.npz            # the drawn set, for other projects

main.py does the same by itself where the images are in --dset_dir already, as archives or unpacked.
"""

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from prepare import download, dsprites, official
from prepare.archives import Source
from prepare.images import make_cache, manifest_path, read_manifest, what_changed
from utils import Parser, UserError, atomic_file, count, run_cli


class ImageSet(NamedTuple):
    """What is particular to a set of images. Paths are relative to --dset_dir, the first that is there is taken."""

    title: str
    channels: int
    crop: int  # side of the centre square kept, pixels; 0: the whole frame
    distribution: str  # of p(x|z)
    sources: tuple  # archives first: a folder may have been unpacked by half
    images: int = 0  # in the official set
    sizes: str = ""  # of the download and of the prepared set


# Frame and channels of CelebA are those of public code, those of chairs the paper's.
IMAGE_SETS = {
    "celeba": ImageSet(
        "CelebA",
        3,
        0,
        "gaussian",
        (
            "img_align_celeba.zip",
            "CelebA/img_align_celeba.zip",
            "CelebA/img_align_celeba",
            "img_align_celeba",
        ),
        202_599,
        "1.44 GB to download, 2.49 GB prepared",
    ),
    "3dchairs": ImageSet(
        "3D Chairs",
        1,
        400,
        "bernoulli",
        (
            "rendered_chairs.tar",
            "3DChairs/rendered_chairs.tar",
            "3DChairs/images",
            "rendered_chairs",
            "3DChairs/rendered_chairs",
        ),
        86_366,
        "a tar to download, 0.35 GB prepared",
    ),
    "folder": ImageSet("folder", 3, 0, "gaussian", (".",)),
}
DATASETS = ("dsprites", *IMAGE_SETS)
MOST_WORKERS = 256  # processes that prepare images; all are started at once


def default_distribution(name):
    """p(x|z) of the data set of that name, where --dist does not say: "bernoulli" or "gaussian"."""
    return IMAGE_SETS[name].distribution if name in IMAGE_SETS else DSprites.distribution


def return_data(args, device="cpu"):
    """The data set of args.dataset, from or into the folder args.dset_dir.

    Returns an object with
        len()          number of images
        channels       1 or 3
        distribution   of p(x|z): "bernoulli" or "gaussian"
        factor_names   of the known factors
        identity       what images these are, in words: a run goes on with the same ones only
        factor_sizes   sizes of the grid of known factors, last one fastest; None if unknown
        fixed_images   {name: index} of images whose traversals tell something
        batch(indices) int64 (B,) -> float32 (B, C, 64, 64) in [0, 1] on device
    """
    if args.dataset == "dsprites":
        return DSprites(args.dset_dir, device)
    path, manifest = find_images(args.dataset, args.dset_dir, num_workers=getattr(args, "num_workers", 2))
    print(f"{IMAGE_SETS[args.dataset].title}: {describe(manifest)}")
    return Images(path, identity(manifest), IMAGE_SETS[args.dataset].distribution, device)


# dSprites.


class DSprites:
    """dSprites, a bit a pixel: 377 MB, and 32 KB of it are read for a batch of 64.

    On the CPU the cache file is memory-mapped; on another device the packed set lives there.
    """

    channels = 1
    distribution = "bernoulli"
    identity = "dSprites"
    factor_names = dsprites.FACTOR_NAMES
    factor_sizes = dsprites.FACTOR_SIZES
    # The largest of each shape, upright, in the middle.
    fixed_images = {
        shape: int(np.ravel_multi_index((i, 5, 0, 16, 16), dsprites.FACTOR_SIZES))
        for i, shape in enumerate(dsprites.SHAPES)
    }

    def __init__(self, dset_dir, device="cpu"):
        self.packed = torch.from_numpy(load_packed(dset_dir)).to(device)  # N, 64, 8 uint8
        self.shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)

    def __len__(self):
        return len(self.packed)

    def batch(self, indices):
        rows = self.packed[indices.to(self.packed.device)]  # B, 64, 8 uint8
        pixels = (rows[..., None] >> self.shifts) & 1  # B, 64, 8, 8
        return pixels.float().view(len(indices), 1, 64, 64)


def load_packed(dset_dir):
    """dSprites, uint8 (737280, 64, 8), memory-mapped from its cache, which is made if need be.

    The official file is used where it is in dset_dir (or was when its cache was made), else the set is drawn.
    """
    packed = load_official(Path(dset_dir))
    return load_drawn(dset_dir) if packed is None else packed


def load_drawn(dset_dir):
    path = Path(dset_dir) / "dsprites_64x64_packed.npy"
    try:
        if not path.exists():
            print(f"drawing dSprites into {path} (377 MB, a few seconds)", flush=True)
        elif (packed := map_cache(path)) is not None:
            return packed
        else:
            print(f"{path} is damaged: drawing dSprites again", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            np.save(file, dsprites.render())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    packed = map_cache(path)
    if packed is None:
        raise UserError(f"{path} differs from the reference drawing: please report machine and numpy version")
    return packed


def load_official(dset_dir):
    """The set of the official file; None if there is neither the file nor its cache."""
    path = dset_dir / "dsprites_official_64x64_packed.npy"
    found = [
        p for p in (dset_dir / official.NAME, dset_dir / "dsprites-dataset" / official.NAME) if p.exists()
    ]
    try:
        manifest = json.loads(manifest_path(path).read_text())
        unchanged = not found or manifest["stamp"] == found[0].stat().st_size
        packed = map_cache(path, manifest["crc32"]) if unchanged else None
    except (OSError, ValueError, KeyError, TypeError):
        packed = None
    if packed is None and found:
        print(f"packing {found[0]} into {path} (377 MB, some ten seconds)", flush=True)
        manifest_path(path).unlink(missing_ok=True)
        with atomic_file(path) as file:
            manifest = official.pack(found[0], file)
        with atomic_file(manifest_path(path)) as file:
            file.write(json.dumps(manifest, indent=2).encode())
        packed = map_cache(path, manifest["crc32"])
    if packed is not None:
        print(official.describe(manifest))
    return packed


def map_cache(path, crc32=dsprites.CRC32):
    """Maps a cached set into memory, or returns None if its checksum is not that of the set."""
    try:
        packed = np.load(path, mmap_mode="c")  # "c": torch wants it writable; the file stays as it is
    except OSError:
        raise
    except Exception:  # numpy's for headers that lie, a dozen types
        return None
    whole = packed.dtype == np.uint8 and packed.shape == (dsprites.COUNT, 64, 8)
    return packed if whole and file_crc32(path, packed.offset) == crc32 else None


def file_crc32(path, start):
    """CRC-32 of a file from start on. It is read, not mapped: so it does not count as memory of the process."""
    crc32 = 0
    with open(path, "rb") as file:
        file.seek(start)
        while data := file.read(2**22):
            crc32 = zlib.crc32(data, crc32)
    return crc32


# Sets of images.


class Images:
    """A prepared set of images, 12 KB each in colour: on the CPU memory-mapped, and read as batches need it.

    On another device the set lives there if it leaves half of the memory free, else batches go there.
    """

    factor_names = factor_sizes = None
    fixed_images = {}

    def __init__(self, path, identity, distribution, device="cpu"):
        # N, C, 64, 64 uint8; "c" as in map_cache
        self.images = torch.from_numpy(np.load(path, mmap_mode="c"))
        self.channels, self.identity = self.images.shape[1], identity
        self.distribution, self.device = distribution, torch.device(device)
        if self.device.type == "cuda" and self.images.nbytes < torch.cuda.mem_get_info(self.device)[0] / 2:
            self.images = self.images.to(self.device)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        # B, C, 64, 64 uint8; faster than [indices]
        rows = self.images.index_select(0, indices.to(self.images.device))
        return rows.to(self.device).float().div_(255)


def find_images(name, dset_dir, archive=None, crop=None, channels=None, num_workers=2):
    """Path and manifest of a prepared set of images, which is prepared if need be.

    archive, crop, channels: what they must be, None if a prepared set may have any.
    """
    spec, path = IMAGE_SETS[name], Path(dset_dir) / f"{name}_64x64.npy"
    manifest = read_manifest(path)
    if manifest:
        fault = what_changed(manifest, archive, crop, channels)
        if not fault:
            return path, manifest
    else:
        fault = "is not whole, or of another version" if path.exists() else ""
    places = (
        [archive]
        if archive
        else [manifest and manifest["source"], *(Path(dset_dir) / each for each in spec.sources)]
    )
    places = [place for place in places if place and (archive or Path(place).exists())]
    if not places:
        raise UserError(
            (f"{path} {fault}, and its images are gone: " if fault else "") + how_to_get(name, dset_dir)
        )
    if fault:
        print(f"{path} {fault}: making it again", flush=True)
    source = Source(places[0])
    print(f"preparing {len(source.members):,} images of {source.path} into {path}", flush=True)
    manifest = make_cache(
        path, source, spec.crop if crop is None else crop, channels or spec.channels, num_workers
    )
    if manifest["skipped"]:
        print(f"skipped {manifest['skipped']}", flush=True)
    return path, manifest


def identity(manifest):
    crop = f"centre {manifest['crop']} x {manifest['crop']} pixels" if manifest["crop"] else "whole frames"
    return (
        f"{manifest['count']:,} images, {'grey' if manifest['channels'] == 1 else 'colour'}, {crop}, "
        f"list {manifest['checksum'][:8]}"
    )


def describe(manifest):
    return f"{identity(manifest)}, from {manifest['source']}"


def how_to_get(name, dset_dir):
    """What to type when there are no images."""
    spec, command = IMAGE_SETS[name], f"    python dataset.py {name} --dset_dir {dset_dir}"
    if name == "folder":
        return f"no folder {dset_dir}"
    return (
        f"no {spec.title} in {dset_dir}. To get it ({spec.sizes}):\n{command} --download\n"
        f"or, from an archive or a folder that you have:\n{command} --archive FILE"
    )


# The command line.


def make_parser():
    parser = Parser(
        prog="dataset.py",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", type=str.lower, choices=DATASETS, help="data set, in any case")
    add("--dset_dir", default="data", help="folder of the data sets; of the images, for the data set folder")
    add("--archive", help="zip, tar or folder with the images, if it is not where it is looked for")
    add("--download", action="store_true", help="fetch the official file into dset_dir, if it is not there")
    add(
        "--crop",
        type=count,
        help="side in pixels of the centre square that is kept; 0: the whole frame; "
        "CelebA 0 (later papers 148), chairs 400",
    )
    add("--channels", type=int, choices=[1, 3], help="1: grey, 3: colour; chairs 1, others 3")
    add("--num_workers", type=count, default=2, help="processes that decode images; 0: none but this one")
    add("--export", metavar="FILE.npz", help="write the drawn dSprites in the official format")
    return parser


def parse(argv=None):
    """Flags as a namespace; what makes no sense ends the program with one line and status 2."""
    parser = make_parser()
    args = parser.parse_args(argv)
    sprites = args.dataset == "dsprites"
    for name in ("archive", "crop", "channels"):
        if sprites and getattr(args, name) is not None:
            parser.error(f"--{name} is for sets of images, not for dsprites")
    if args.export is not None and not sprites:
        parser.error("--export is for dsprites")
    if args.download and (args.archive or args.dataset == "folder"):
        parser.error("--download goes with neither --archive nor the data set folder")
    if args.crop is not None and args.crop < 0 or not 0 <= args.num_workers <= MOST_WORKERS:
        parser.error(f"--crop must be at least 0, --num_workers 0 to {MOST_WORKERS}")
    return args


def prepare_dsprites(args):
    if args.download:
        download.fetch("dsprites", args.dset_dir)
    if args.export is not None:
        official.export(load_drawn(args.dset_dir), args.export)
        return print(f"{args.export}: the drawn dSprites, with the official keys, shapes and types")
    load_packed(args.dset_dir)
    print(f"dSprites in {args.dset_dir} is ready")


def prepare_images(args):
    spec = IMAGE_SETS[args.dataset]
    if args.download:
        download.fetch(args.dataset, args.dset_dir)
    path, manifest = find_images(
        args.dataset,
        args.dset_dir,
        args.archive,
        spec.crop if args.crop is None else args.crop,
        args.channels or spec.channels,
        args.num_workers,
    )
    print(f"{path} is ready: {describe(manifest)}")
    if manifest["count"] < spec.images:
        print(f"the official set has {spec.images:,} images")


def main(argv=None):
    """Runs the program; returns its exit status."""
    args = parse(argv)
    prepare = prepare_dsprites if args.dataset == "dsprites" else prepare_images
    return run_cli("dataset.py", "interrupted", lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
