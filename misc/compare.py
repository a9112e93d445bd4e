"""Draw runs and published results in one plane, reconstruction loss against KL (misc/capacity.md).

    python -m misc.compare outputs/dsprites_B outputs/other --results "beta 4 (public):15.4:35.6" --out outputs/compare.png

A run is a line through the rows of its log.csv, with a dot at the last one. Of two runs at the same KL the lower one
reconstructs better from as many nats.
"""

import sys
from pathlib import Path

from run.log import read_log
from utils import Parser, UserError, run_cli
from viz import figures


def read_run(folder, to_recon):
    """KL and reconstruction loss of each row of a run's log whose loss is at most to_recon nats, and its last iteration."""
    log = read_log(folder / "log.csv")
    if not {"iter", "recon_loss", "total_kld"} <= log.keys():
        raise UserError(f"{folder}/log.csv is not of a run: it has no iter, recon_loss and total_kld")
    columns = zip(log["total_kld"], log["recon_loss"], log["iter"])
    rows = [(kl, recon, iteration) for kl, recon, iteration in columns if recon <= to_recon]
    if not rows:
        raise UserError(f"{folder} has no row of at most {to_recon:g} nats")
    kl, recon, iterations = zip(*rows)
    return kl, recon, iterations[-1]


def point(text):
    """argparse type: "name:KL:reconstruction" as (name, (KL, reconstruction))."""
    name, kl, recon = text.rsplit(":", 2)
    return name, (float(kl), float(recon))


def compare(folders, labels, results, to_recon, out):
    """Writes the picture of the runs in folders, each with a log.csv, and of known results to the file out."""
    runs = {}
    for folder, label in zip(folders, labels or [folder.name for folder in folders]):
        kl, recon, iteration = read_run(folder, to_recon)
        runs[f"{label}: {recon[-1]:.1f} nats after {iteration:,.0f}"] = kl, recon
    out.parent.mkdir(parents=True, exist_ok=True)
    figures.rate_distortion(runs, dict(results), out)


def main(argv=None):
    parser = Parser(prog="compare.py", description=__doc__.split("\n")[0])
    # fmt: off
    add = parser.add_argument
    add("folders", nargs="+", type=Path, help="folders of runs, in each a log.csv")
    add("--labels", nargs="+", help="their names in the picture; default: names of the folders")
    add("--results", nargs="+", type=point, default=[], help="known results as points, name:KL:reconstruction")
    add("--to_recon", type=float, default=float("inf"), help="highest reconstruction loss to draw, nats")
    add("--out", type=Path, default="outputs/compare.png", help="file of the picture")
    # fmt: on
    args = parser.parse_args(argv)
    if args.labels and len(args.labels) != len(args.folders):
        parser.error(f"--labels must name each of the {len(args.folders)} runs, not {len(args.labels)}")
    if args.out.suffix not in (".png", ".pdf", ".svg"):
        parser.error(f"--out must end in .png, .pdf or .svg, not {args.out}")
    return run_cli("compare.py", "interrupted", lambda: compare(**vars(args)))


if __name__ == "__main__":
    sys.exit(main())
