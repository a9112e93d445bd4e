"""Draw runs and published results in one plane, reconstruction loss against KL (misc/capacity.md).

    python -m misc.compare outputs/dsprites_B outputs/other --results "beta 4:15.4:35.6" --out outputs/compare.png

A run is a line through the rows of its log.csv, with a dot at the last one. Of two runs at the same KL the lower one
reconstructs better from as many nats. The default is the picture in misc.
"""

import sys
from pathlib import Path

from run.log import read_log
from utils import Parser, UserError, run_cli
from viz.figures import figure

MISC = Path(__file__).resolve().parent
RUNS = {  # folders in misc/runs and their names in the picture
    "dsprites_S_seed1": "the recipe, network S",
    "dsprites_B_paper": "objective B",
    "dsprites_B": "objective B, smoothed penalty",
    "dsprites_H_modelB": "objective H, beta 4",
    "dsprites_TC_muon": "beta-TCVAE, beta 6.4, Muon",
}
PUBLIC = {  # read off logs and plots of other code: (KL, reconstruction loss) in nats per image
    "H, beta 1: 345,600": (25.4, 18.0),
    "H, beta 4: 345,600": (15.4, 35.6),
    "beta-TCVAE, beta 6.4: 345,600": (13.6, 42.2),
    "B, gamma 100, C 25: 345,600": (25, 81.1),
    "B, gamma 100, C 20: 100,000": (20, 100),
    "B, gamma 100, C 20: 500,000": (20, 75),
    "B, gamma 100, C 20: 825,000": (20, 50),
}


def read_run(folder, to_recon):
    """Return KL and reconstruction loss of the rows with a loss of at most to_recon nats, and the last iteration."""
    log = read_log(folder / "log.csv")
    columns = zip(log["total_kld"], log["recon_loss"], log["iter"])
    rows = [(kl, recon, iteration) for kl, recon, iteration in columns if recon <= to_recon]
    if not rows:
        raise UserError(f"{folder} has no row of at most {to_recon:g} nats")
    kl, recon, iterations = zip(*rows)
    return kl, recon, iterations[-1]


def draw(runs, results, path):
    """Draw a line for each run and a labelled cross for each result.

    runs: {name: (KL, reconstruction loss)}, each (rows,) nats; results: {name: (KL, reconstruction loss)} in nats.
    """
    with figure(path, 9, 7.5) as drawn:
        axes = drawn.subplots()
        for name, (kl, recon) in runs.items():
            axes.plot(kl, recon, "o-", markevery=[-1], label=name)
        right = 1.35 * max(axes.get_xlim()[1], *(kl for kl, _ in results.values()))  # room for labels
        axes.plot(*zip(*results.values()), "x", color="black", label="public code: objective, iterations")
        behind = dict(facecolor="white", edgecolor="none", pad=0.5, alpha=0.8)  # of labels, over the lines
        for name, (kl, recon) in results.items():
            before = kl < right / 2
            place = dict(xytext=(-8 if before else 8, 0), ha="right" if before else "left", va="center")
            axes.annotate(name, (kl, recon), textcoords="offset points", fontsize=9, bbox=behind, **place)
        axes.set(xlabel="KL from the prior, nats per image", ylabel="reconstruction loss, nats per image")
        axes.set(yscale="log", xlim=(0, right))
        axes.set_yticks([20, 30, 50, 100, 200, 300], [20, 30, 50, 100, 200, 300])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        drawn.legend(loc="outside lower center", ncols=2, frameon=False)


def point(text):
    """argparse type: read "name:KL:reconstruction" as (name, (KL, reconstruction))."""
    name, kl, recon = text.rsplit(":", 2)
    return name, (float(kl), float(recon))


def compare(folders, results, to_recon, out):
    """Draw runs, each a folder with a log.csv, and known results to the file out."""
    runs = {}
    for folder in folders or [MISC / "runs" / name for name in RUNS]:
        kl, recon, iteration = read_run(folder, to_recon)
        name = RUNS.get(folder.name, folder.name)
        runs[f"{name}: {recon[-1]:.1f} nats after {iteration:,.0f}"] = kl, recon
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(runs, dict(results) or PUBLIC, out)


def main(argv=None):
    parser = Parser(prog="compare.py", description=__doc__.split("\n")[0])
    # fmt: off
    add = parser.add_argument
    add("folders", nargs="*", type=Path, help="folders of runs, in each a log.csv; default: those of misc/capacity.md")
    add("--results", nargs="+", type=point, default=[], help="known results, name:KL:reconstruction; default: public code's")
    add("--to_recon", type=float, default=300, help="highest reconstruction loss to draw, nats")
    add("--out", type=Path, default=MISC / "compare.png", help="file of the picture")
    # fmt: on
    args = parser.parse_args(argv)
    return run_cli("compare.py", "interrupted", lambda: compare(**vars(args)))


if __name__ == "__main__":
    sys.exit(main())
