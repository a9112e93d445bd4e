"""Figures with axes, by matplotlib. Knows arrays, tensors and paths, nothing of runs or flags.

For arguments that several functions take, see pictures.py.
"""

import contextlib
import math
import os

import numpy as np

from training.log import read_log
from viz.pictures import active, label, not_shown, save

COLORS = "C0 C1 C2 C3 C4 C5 C6 C8 C9 navy".split()  # of the ten highest KL; others are grey
SHAPE_COLORS = {"square": "tab:red", "ellipse": "tab:green", "heart": "tab:blue"}  # Higgins et al., Fig. 7
# Units of what is not a score.
UNITS = {"recon_loss": "nats per image", "total_kld": "nats per image", "total_correlation": "nats"}


@contextlib.contextmanager
def figure(path, width, height):
    """Within `with`: an empty figure of that size in inches; after it, it is in path.

    The same bytes whatever MPLBACKEND and matplotlibrc say: matplotlib's own defaults, drawn by Agg.
    """
    # A notebook's backend may not be installed here: the import would fail.
    backend = os.environ.pop("MPLBACKEND", "")
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    os.environ.update({"MPLBACKEND": backend} if backend else {})
    with style.context("default"):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn
        save(path, drawn.savefig)


# Which latent codes what.


def latent_response(codes, kld, top_factor, path):
    """Draws how each active latent answers to the factors of dSprites: Higgins et al. (2017), Fig. 7, without traversals.

    codes: means on a grid, (3 shapes, scales, orientations, posX, posY, z_dim); each row of panels shows their mean
    over the factors that it does not name. A column a latent.
    """
    order = active(kld)
    position = codes.mean(axis=(0, 1, 2))  # posX, posY, z_dim
    scale, rotation = codes.mean(axis=(2, 3, 4)), codes.mean(axis=(1, 3, 4))  # shapes, values, z_dim
    most = 1.1 * max(abs(part[..., order]).max() for part in (position, scale, rotation))

    with figure(path, 2.2 + len(order), 5) as drawn:
        panels = drawn.subplots(3, len(order), squeeze=False, height_ratios=[1.3, 1, 1])
        for column, j in enumerate(order):
            heat = panels[0, column]
            heat.set_title(label(j, kld, top_factor).replace("  ", "\n"), fontsize=10)
            # Rows of the picture are posY, downwards, as in the images.
            shown = heat.imshow(position[..., j].T, cmap="RdBu_r", vmin=-most, vmax=most)
            heat.set(xticks=[], yticks=[], xlabel="posX \u2192")
            for axes, curves, values in (
                (panels[1, column], scale[..., j], np.linspace(0.5, 1, 6)),
                (panels[2, column], rotation[..., j], np.linspace(0, 360, 40)),
            ):
                values = values[:: math.ceil(len(values) / curves.shape[1])]
                for (shape, color), curve in zip(SHAPE_COLORS.items(), curves):
                    axes.plot(values, curve, color=color, label=shape)
                axes.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
                axes.set(ylim=(-most, most))
                axes.set_xticks(values[[0, -1]], [f"{value:.3g}" for value in values[[0, -1]]])
                axes.tick_params(labelsize=8, labelleft=column == 0)
            panels[1, column].set_xlabel("scale")
            panels[2, column].set_xlabel("rotation (\u00b0)")
        panels[0, 0].set_ylabel("\u2190 posY")
        for axes in panels[1:, 0]:
            axes.set_ylabel("mean")
        drawn.colorbar(shown, ax=panels[0, :], pad=0.01, aspect=10, label="mean")
        drawn.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
        drawn.supxlabel(not_shown(kld), x=0.99, ha="right", fontsize=10)


def mutual_information(information, entropy, names, kld, path):
    """Draws the mutual information of each active latent and factor, in nats and as a share of the factor's entropy.

    information: (z_dim, K) nats; entropy: of each factor, (K,) nats; names: K factors.
    """
    order = active(kld)
    share = information[order] / entropy
    with figure(path, 2.5 + 1.25 * len(names), 1.7 + 0.52 * len(order)) as drawn:
        axes = drawn.subplots()
        shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(share.shape):
            text = f"{information[order[row], column]:.2f}  ({share[row, column]:.0%})"
            color = "white" if share[row, column] > 0.55 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(len(names)), [f"{name}\n{h:.2f} nats" for name, h in zip(names, entropy)])
        axes.set_yticks(range(len(order)), [label(j, kld) for j in order])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_xlabel(not_shown(kld))
        axes.set_title(
            "Mutual information of latent and factor: nats (share of the factor's entropy)", fontsize=10
        )
        drawn.colorbar(shown, label="share of the factor's entropy", pad=0.02)


# Curves. Without a row in log.csv, none is drawn.


def latent_lines(axes, iterations, values, kld, names=None):
    """Draws values (rows, z_dim) of the active latents against iterations; names: z_dim texts for the legend."""
    for place, j in enumerate(active(kld)):
        color = COLORS[place] if place < len(COLORS) else "grey"
        name = names[j] if names else f"z_{j}"
        axes.plot(iterations, values[:, j], color=color, label=name, marker=mark(iterations))
    axes.set(xlabel="iterations", ylabel="nats per image", ylim=(0, None))
    axes.grid(alpha=0.3)


def mark(iterations):
    return "." if len(iterations) < 50 else ""


def latents(log, name):
    """Columns of a log, {column: values}, that are of each latent, as an array (rows, z_dim)."""
    return np.array([values for column, values in log.items() if column.startswith(f"{name}_")]).T


def curves(log_path, path):
    """Draws log.csv: reconstruction loss, KL with C, and posterior variance, against iterations."""
    log = read_log(log_path)
    if not log["iter"]:
        return
    x, kld = log["iter"], latents(log, "kld")
    with figure(path, 15, 4.5) as drawn:
        recon, total, variance = drawn.subplots(1, 3)
        recon.plot(x, log["recon_loss"], color="black", marker=mark(x))
        recon.set(title="Reconstruction loss", xlabel="iterations", ylabel="nats per image", yscale="log")
        recon.yaxis.set_major_formatter("{x:.0f}")
        recon.yaxis.set_minor_formatter("{x:.0f}")
        recon.grid(alpha=0.3)
        total.plot(x, log["total_kld"], color="black", label="total", marker=mark(x))
        if not np.isnan(C := log.get("C", math.nan)).all():
            total.plot(x, C, color="black", linestyle="--", label="C")
        latent_lines(total, x, kld, kld[-1])
        total.set(title="KL from the prior")
        total.legend(ncols=2, fontsize="small")
        latent_lines(variance, x, latents(log, "var"), kld[-1])
        variance.set(title="Posterior variance", ylabel="mean of \u03c3\u00b2")
        drawn.supxlabel(not_shown(kld[-1]), x=0.99, ha="right", fontsize=10)
        for axes in (recon, total, variance):
            axes.locator_params(axis="x", nbins=6)  # six digits each


def capacity(log_path, top_factor, path, iteration, restarted=()):
    """Draws log.csv up to iteration as latent_kl does; top_factor: of the weights at that iteration."""
    log = read_log(log_path)
    count = sum(i <= iteration for i in log["iter"])
    if count:
        log = {name: values[:count] for name, values in log.items()}
        latent_kl(log["iter"], latents(log, "kld"), path, log.get("C", ()), top_factor, restarted)


def latent_kl(iterations, kld, path, C=(), top_factor=None, restarted=()):
    """Draws the KL of each active latent, and C, against iterations; the legend says what each codes at the end.

    Burgess et al. (2018), Fig. 3, draw the same of a generator that is given the true factors: these are taken into use
    one after the other as C grows. kld: (rows, z_dim) nats; C: (rows,) nats, NaN or () where there is none; restarted:
    iterations at which the encoder was restarted.
    """
    with figure(path, 11, max(4.5, 0.25 * len(active(kld[-1])) + 1)) as drawn:
        axes = drawn.subplots()
        if not np.isnan(C).all():
            axes.plot(iterations, C, color="black", linestyle="--", label=f"C  {C[-1]:.2f} nats")
        names = [label(j, kld[-1], top_factor, end="  ") for j in range(kld.shape[1])]
        latent_lines(axes, iterations, kld, kld[-1], names)
        for at in restarted:
            axes.axvline(at, color="black", linestyle=":")
            axes.text(at, 0.98, " encoder restarted", transform=axes.get_xaxis_transform(), va="top")
        named = ": the factor it is most informative about, the share of its mutual information"
        axes.set_title("KL of each latent from the prior" + named * bool(top_factor), loc="left", fontsize=11)
        axes.set_xlim(right=iterations[-1] if len(iterations) > 1 else None)
        drawn.legend(loc="outside right upper", frameon=False)
        drawn.supxlabel(not_shown(kld[-1]), x=0.99, ha="right", fontsize=10)


def rate_distortion(runs, results, path):
    """Draws reconstruction loss against KL: a line for each run, a labelled point for each known result.

    runs: {name: (KL, reconstruction loss)}, each (rows,) nats; results: {name: (KL, reconstruction loss)} in nats.
    """
    with figure(path, 9, 7) as drawn:
        axes = drawn.subplots()
        for name, (kl, recon) in runs.items():
            (line,) = axes.plot(kl, recon, label=name)
            axes.plot(kl[-1], recon[-1], "o", color=line.get_color())
        for name, (kl, recon) in results.items():
            axes.plot(kl, recon, "x", color="black")
            axes.annotate(name, (kl, recon), (6, 4), textcoords="offset points", fontsize=9)
        axes.set(
            xlabel="KL from the prior, nats per image",
            ylabel="reconstruction loss, nats per image",
            yscale="log",
        )
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter("{x:.0f}")
        axes.margins(x=0.12, y=0.1)
        axes.grid(alpha=0.3, which="both")
        drawn.legend(loc="outside lower center", ncols=2, frameon=False)


# Many runs.


def study(values, path):
    """Draws how far runs spread: a panel a metric, a column a setting, a dot a run, a line at the median.

    values: {metric: {setting: values of its runs}}, with settings and runs in the same order everywhere: a run's
    dot has the same place in its column in all panels.
    """
    settings = list(next(iter(values.values())))
    columns = min(len(values), 5 if len(settings) <= 6 else 2)
    rows = math.ceil(len(values) / columns)
    width = max(2.6, 0.6 + 0.45 * len(settings))
    with figure(path, columns * width, 2.6 * rows + 0.4) as drawn:
        panels = list(drawn.subplots(rows, columns, squeeze=False).flat)
        for i, (axes, (metric, runs)) in enumerate(zip(panels, values.items())):
            for place, setting in enumerate(settings):
                points = runs[setting]
                x = place + 0.5 * (np.arange(len(points)) + 0.5) / len(points) - 0.25
                axes.plot(x, points, "o", color="C0", alpha=0.6, markersize=6, markeredgewidth=0)
                axes.hlines(np.median(points), place - 0.32, place + 0.32, color="black", linewidth=1.5)
            unit = f" ({UNITS[metric]})" if metric in UNITS else ""
            axes.set_title(metric + unit, fontsize=10)
            names = settings if i + columns >= len(values) else []
            axes.set_xticks(range(len(settings)), names, rotation=0 if len(settings) <= 3 else 90)
            axes.set_xlim(-0.6, len(settings) - 0.4)
            axes.margins(y=0.12)
            if all(isinstance(value, int) for points in runs.values() for value in points):
                axes.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.grid(axis="y", alpha=0.3)
        for axes in panels[len(values) :]:
            axes.set_axis_off()
        drawn.suptitle("A dot is a seed, a line the median of its setting", x=0.01, ha="left", fontsize=10)
