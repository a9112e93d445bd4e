"""Prepare a data set.

    python -m prepare celeba --dset_dir data --download         # 1.44 GB, and 2.5 GB when prepared
    python -m prepare celeba --archive ~/img_align_celeba.zip   # from an archive or folder that is there
    python -m prepare 3dchairs --download
    python -m prepare dsprites --download                       # the official file; without it, the set is drawn

main.py does the same by itself if the images are in --dset_dir already, as an archive or unpacked.
"""

import argparse
import sys
from pathlib import Path

from prepare.sets import SETS, find_dsprites, find_images, prepare_images
from utils import Parser, UserError, count, file_name, progress, run_cli, within


def parse(argv=None):
    """Flags as a namespace; what makes no sense ends the program with one line and status 2."""
    usage, about = "python -m prepare DATASET [flags]", __doc__.split("\n")[0]
    parser = Parser("prepare", usage, about, allow_abbrev=False)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    # fmt: off
    add("dataset", type=str.lower, choices=SETS, help="data set, case-insensitive")
    add("--dset_dir", type=file_name, default="data", help="folder of the data sets; for folder, of the images")
    add("--archive", type=file_name, help="zip, tar or folder of the images, or npz file of dSprites, if not where it is looked for")
    add("--download", action="store_true", help="download the official file into dset_dir, unless it is there")
    add("--image_size", type=within(count, 1, 2**16), default=64, help="side of the prepared images in pixels")
    add("--crop", type=within(count, 0, 2**16), help="side in pixels of the centre square that is kept, or the short side where that is shorter; "
        "0: the whole frame; if not given: chairs 400, others 0 (CelebA in later papers: 148)")
    add("--channels", type=int, choices=[1, 3], help="1: grey, 3: colour; if not given: chairs 1, others 3")
    add("--num_workers", type=within(count, 0, 257), default=2, help="number of threads that decode images")
    # fmt: on
    args = parser.parse_args(argv)
    if args.dataset == "dsprites" and (args.crop is not None or args.channels or args.image_size != 64):
        parser.error("dSprites is 64x64 and grey: --crop, --channels and --image_size are for sets of images")
    if args.download and (args.archive is not None or not SETS[args.dataset].url):
        parser.error("--download is for sets that have an official file, and does not go with --archive")
    return args


def fetch(spec, folder):
    """Download the official file of a data set into folder; return its path, or None if it was there already.

    Its hash must be the one in SETS.
    """
    import pooch  # no other use needs the network's libraries

    path = Path(folder).absolute() / Path(spec.url).name
    there = path.exists()
    pooch.get_logger().setLevel("WARNING")
    try:
        with progress(total=1, unit="B", unit_scale=True, delay=0, leave=True) as bar:  # pooch sets the total
            downloader = pooch.HTTPDownloader(progressbar=bar, timeout=30)
            pooch.retrieve(spec.url, spec.hash, path.name, path.parent, downloader=downloader)
    except (OSError, ValueError) as error:  # ValueError: another hash
        why = " ".join(str(error).split())
        by_hand = f"Try again, or put the file at {path} by hand"
        raise UserError(f"{spec.url} could not be fetched ({why}). {by_hand}") from None
    return None if there else path


def run(args):
    if args.download:
        args.archive = fetch(SETS[args.dataset], args.dset_dir)
    if args.dataset == "dsprites":
        find_dsprites(args.dset_dir, args.archive)
        return
    here = args.dataset, args.dset_dir, args.image_size
    if args.archive or args.crop is not None or args.channels:
        prepare_images(*here, args.archive, args.crop, args.channels, args.num_workers)
    find_images(*here, args.num_workers)


def main(argv=None):
    """Run the program; return its exit status."""
    args = parse(argv)
    return run_cli("prepare", "interrupted: what was prepared before is as it was", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
