"""Draws the logs of several runs into one plane, reconstruction loss against KL (misc/capacity.md).

    python -m misc.compare outputs/dsprites_B outputs/dsprites_B_rounded --out outputs/compare.png

Each row of log.csv is a point, so that a run is a line, to a dot at its last row. Of two runs at the same KL the lower
one tells more of the image in the same nats.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from training.log import read_log
from utils import Parser, UserError, run_cli
from viz.pictures import save


def compare(folders, labels, to_recon, out):
    """Writes the picture of the runs in folders, each with a log.csv, to the file out."""
    if Path(out).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out must end in .png, .pdf or .svg, not {out}")
    if len(labels) != len(folders):
        raise UserError(f"--labels must name each of the {len(folders)} runs, not {len(labels)}")
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots()
    for folder, label in zip(folders, labels):
        log = read_log(Path(folder) / "log.csv")
        if not {"iter", "recon_loss", "total_kld"} <= log.keys():
            raise UserError(f"{folder}/log.csv is not of a run: it has no iter, recon_loss and total_kld")
        rows = [i for i, recon in enumerate(log["recon_loss"]) if recon <= to_recon]
        if not rows:
            raise UserError(f"{folder} has no row of at most {to_recon:g} nats")
        kld, recon = ([log[name][i] for i in rows] for name in ("total_kld", "recon_loss"))
        (line,) = axes.plot(
            kld, recon, label=f"{label}: {recon[-1]:.1f} nats after {log['iter'][rows[-1]]:,.0f}"
        )
        axes.plot(kld[-1], recon[-1], "o", color=line.get_color())
    axes.set(xlabel="KL, nats an image", ylabel="reconstruction loss, nats an image", yscale="log")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save(Path(out), figure.savefig)


def main():
    parser = Parser(prog="compare.py", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", help="folders of runs, in each a log.csv")
    parser.add_argument("--labels", nargs="+", help="what to call them; without: their folders' names")
    parser.add_argument(
        "--to_recon", type=float, default=float("inf"), help="leave out what lies above, nats"
    )
    parser.add_argument("--out", default="outputs/compare.png", help="file of the picture")
    args = parser.parse_args()
    labels = args.labels or [Path(folder).name for folder in args.folders]
    return run_cli(
        "compare.py", "interrupted", lambda: compare(args.folders, labels, args.to_recon, args.out)
    )


if __name__ == "__main__":
    sys.exit(main())
