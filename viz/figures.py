"""Figures with axes (matplotlib). Knows arrays, tensors and paths, no runs or flags.

For arguments that several functions take, see pictures.py.
"""

import contextlib
import math
import os

import numpy as np

from run.log import read_log
from viz.pictures import active, label, not_shown, save

COLORS = "C0 C1 C2 C3 C4 C5 C6 C8 C9 navy".split()  # of the ten latents with the highest KL; others are grey
SHAPE_COLORS = {"square": "tab:red", "ellipse": "tab:green", "heart": "tab:blue"}  # Higgins et al., Fig. 7
NATS = "nats per image"
UNITS = {"recon_loss": NATS, "total_kld": NATS, "total_correlation": "nats"}  # scores have none

# Title, unit of the y axis, and columns of log.csv with their names; kld_ stands for the KL of each active latent.
CURVES = {
    "recon": ("Reconstruction loss", NATS, {"recon_loss": "reconstruction"}),
    "kld": ("KL from the prior", NATS, {"total_kld": "total", "C": "C", "kld_": "z_"}),
    "mu": ("Posterior mean", "mean of \u03bc (prior: \u03c3 = 1)", {"mu_": "z_"}),
    "var": ("Posterior variance", "mean of \u03c3\u00b2 (prior: 1)", {"var_": "z_"}),
}


@contextlib.contextmanager
def figure(path, width, height, foot=""):
    """Within `with`: an empty figure, size in inches, which is then saved to path; foot: a text below, at the right.

    It has the same bytes whatever MPLBACKEND and matplotlibrc say: matplotlib's own defaults, drawn by Agg.
    """
    backend = os.environ.pop("MPLBACKEND", "")  # a notebook's may be missing here: the import would fail
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if backend:
        os.environ["MPLBACKEND"] = backend
    with style.context("default"):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        drawn.supxlabel(foot, x=0.99, ha="right", fontsize=10)
        yield drawn
        save(path, drawn.savefig)


# Which latent codes what.


def latent_response(codes, kld, top_factor, path):
    """Draw the mean of each active latent against the factors of dSprites: Higgins et al. (2017), Fig. 7, without traversals.

    codes: means on the grid of factors, (3 shapes, scales, orientations, posX, posY, z_dim). A column per latent; each row
    averages over the factors that it does not name.
    """
    order = active(kld)
    position = codes.mean(axis=(0, 1, 2))  # posX, posY, z_dim
    scale, rotation = codes.mean(axis=(2, 3, 4)), codes.mean(axis=(1, 3, 4))  # 3 shapes, values, z_dim
    most = 1.1 * max(abs(part[..., order]).max() for part in (position, scale, rotation))
    with figure(path, 2.2 + len(order), 5, not_shown(kld)) as drawn:
        panels = drawn.subplots(3, len(order), squeeze=False, height_ratios=[1.3, 1, 1])
        for (heat, *curves), j in zip(panels.T, order):
            heat.set_title(label(j, kld, top_factor).replace("  ", "\n"), fontsize=10)
            # A row of the map is a posY, from top to bottom as in the images.
            mesh = heat.imshow(position[..., j].T, cmap="RdBu_r", vmin=-most, vmax=most)
            heat.set(xticks=[], yticks=[], xlabel="posX \u2192")
            for axes, name, means, end in zip(
                curves, ("scale", "rotation (\u00b0)"), (scale, rotation), ((0.5, 1), (0, 360))
            ):
                x = np.linspace(*end, means.shape[1], endpoint=name == "scale")
                for (shape, color), mean in zip(SHAPE_COLORS.items(), means[..., j]):
                    axes.plot(x, mean, color=color, label=shape)
                axes.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
                axes.set(xlabel=name, ylim=(-most, most), xticks=end)
                axes.tick_params(labelsize=8, labelleft=j == order[0])
        for axes, name in zip(panels[:, 0], ("\u2190 posY", "mean", "mean")):
            axes.set_ylabel(name)
        drawn.colorbar(mesh, ax=panels[0, :], pad=0.01, aspect=10, label="mean")
        drawn.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3)


def mutual_information(information, entropy, names, kld, path):
    """Draw the mutual information of each active latent and factor, in nats and as a share of the factor's entropy.

    information: (z_dim, K) nats; entropy: of each factor, (K,) nats; names: K factors.
    """
    order = active(kld)
    share = information[order] / entropy
    with figure(path, 2.5 + 1.25 * len(names), 1.7 + 0.52 * len(order), not_shown(kld)) as drawn:
        axes = drawn.subplots()
        mesh = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(share.shape):
            text = f"{information[order[row], column]:.2f}  ({share[row, column]:.0%})"
            color = "white" if share[row, column] > 0.55 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(len(names)), [f"{name}\n{h:.2f} nats" for name, h in zip(names, entropy)])
        axes.set_yticks(range(len(order)), [label(j, kld) for j in order])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_title(
            "Mutual information of latent and factor: nats (share of the factor's entropy)", fontsize=10
        )
        drawn.colorbar(mesh, label="share of the factor's entropy", pad=0.02)


# Curves of log.csv; without a row in it, none is drawn.


def read_curves(log):
    """Lines {name: values} of each of CURVES, {win: lines}, and the last KL of each latent; log: {column: values}."""
    kld = [log[f"kld_{j}"][-1] for j in range(sum(name.startswith("kld_") for name in log))]
    lines = {}
    for win, (_, _, columns) in CURVES.items():
        lines[win] = {}
        for column, name in columns.items():
            for j in active(kld) if column.endswith("_") else [""]:
                lines[win][f"{name}{j}"] = log.get(f"{column}{j}", math.nan)
    if np.isnan(lines["kld"]["C"]).all():  # of another objective than B
        del lines["kld"]["C"]
    return lines, kld


def plot(axes, x, lines, title, unit, names=None):
    """Draw lines {name: values} against iterations x: latents, by KL, in colours; C dashed; names: for the legend."""
    colors, marker = iter(COLORS), "." if len(x) < 50 else ""
    for name, y in lines.items():
        color = "darkgrey" if name == "C" else next(colors, "grey") if name.startswith("z_") else "black"
        style = "--" if name == "C" else "-"
        axes.plot(x, y, style, color=color, marker=marker, label=names[name] if names else name)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel="iterations", ylabel=unit)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.3)


def log_scale(axes):
    """Make the y axis logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")


def curves(log_path, path):
    """Draw log.csv: a panel for each of CURVES."""
    log = read_log(log_path)
    if not log["iter"]:
        return
    lines, kld = read_curves(log)
    with figure(path, 11, 8, not_shown(kld)) as drawn:
        panels = dict(zip(CURVES, drawn.subplots(2, 2).flat))
        for win, (title, unit, _) in CURVES.items():
            plot(panels[win], log["iter"], lines[win], title, unit)
        log_scale(panels["recon"])
        panels["kld"].set_ylim(0)
        drawn.legend(*panels["kld"].get_legend_handles_labels(), loc="outside right upper", frameon=False)


def capacity(log_path, top_factor, path, iteration):
    """Draw C and the KL of each active latent up to iteration; the legend says what each codes there.

    Burgess et al. (2018), Fig. 3, draw the same of a generator that is given the true factors: one factor after the other
    comes into use as C grows. top_factor: at that iteration.
    """
    log = read_log(log_path)
    count = sum(i <= iteration for i in log["iter"])
    if not count:
        return
    log = {column: values[:count] for column, values in log.items()}
    lines, kld = read_curves(log)
    lines = {name: values for name, values in lines["kld"].items() if name != "total"}
    names = {f"z_{j}": label(j, kld, top_factor, "  ") for j in active(kld)}
    if "C" in lines:
        names["C"] = f"C  up to {np.nanmax(lines['C']):.2f} nats"
    title = "KL of each latent from the prior"
    if top_factor:
        title += "\nand the factor it is most informative about (share of its mutual information)"
    with figure(path, 10, max(4.5, 0.25 * len(lines) + 1), not_shown(kld)) as drawn:
        axes = drawn.subplots()
        plot(axes, log["iter"], lines, title, NATS, names)
        axes.set_ylim(0)
        drawn.legend(loc="outside right upper", frameon=False)


def rate_distortion(runs, results, path):
    """Draw reconstruction loss against KL: a line for each run, a labelled point for each published result.

    runs: {name: (KL, reconstruction loss)}, each (rows,) nats; results: {name: (KL, reconstruction loss)} in nats.
    """
    with figure(path, 9, 7) as drawn:
        axes = drawn.subplots()
        for name, (kl, recon) in runs.items():
            axes.plot(kl, recon, "o-", markevery=[-1], label=name)
        for name, (kl, recon) in results.items():
            axes.plot(kl, recon, "x", color="black")
            axes.annotate(name, (kl, recon), (6, 4), textcoords="offset points", fontsize=9)
        axes.set(xlabel=f"KL from the prior, {NATS}", ylabel=f"reconstruction loss, {NATS}")
        log_scale(axes)
        axes.margins(x=0.12, y=0.1)
        axes.grid(alpha=0.3, which="both")
        drawn.legend(loc="outside lower center", ncols=2, frameon=False)


# Many runs.


def study(values, path):
    """Draw how far runs spread: a panel per metric, a column per setting, a dot per run, a line at the median.

    values: {metric: {setting: values of its runs}}, with settings and runs in the same order everywhere: a run's
    dot has the same place in its column in all panels.
    """
    settings = list(next(iter(values.values())))
    columns = min(len(values), 4 if len(settings) <= 6 else 2)
    rows = math.ceil(len(values) / columns)
    width = max(2.6, 0.6 + 0.45 * len(settings))
    foot = "A dot is a seed, a line the median of its setting."
    with figure(path, columns * width, 2.6 * rows + 0.4, foot) as drawn:
        panels = list(drawn.subplots(rows, columns, squeeze=False).flat)
        for axes in panels[len(values) :]:
            axes.set_axis_off()
        for axes, (metric, runs) in zip(panels, values.items()):
            for place, setting in enumerate(settings):
                points = runs[setting]
                x = place + 0.5 * (np.arange(len(points)) + 0.5) / len(points) - 0.25
                axes.plot(x, points, "o", color="C0", alpha=0.6, markeredgewidth=0)
                axes.hlines(np.median(points), place - 0.32, place + 0.32, color="black", linewidth=1.5)
            axes.set_title(f"{metric} ({UNITS[metric]})" if metric in UNITS else metric, fontsize=10)
            below = metric in list(values)[-columns:]  # no panel stands below
            axes.set_xticks(
                range(len(settings)), settings if below else [], rotation=90 * (len(settings) > 3)
            )
            axes.set_xlim(-0.6, len(settings) - 0.4)
            axes.margins(y=0.12)
            if all(isinstance(value, int) for points in runs.values() for value in points):
                axes.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.grid(axis="y", alpha=0.3)
