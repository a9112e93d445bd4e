"""Figures with axes, by matplotlib. Knows arrays, tensors and paths, nothing of runs or flags.

For what several of them take, see pictures.py.
"""

import math

import numpy as np
from matplotlib.figure import Figure

from training.log import read_log
from utils import ACTIVE
from viz.pictures import VALUES, by_kl, save, title

LINE_COLORS = ["C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9", "navy"]  # grey is for inactive latents
SHAPE_COLORS = {"square": "tab:red", "ellipse": "tab:green", "heart": "tab:blue"}  # Higgins et al., Fig. 7


# Which latent codes what.


def latent_response(codes, images, kld, told, path):
    """Draws how each latent answers to the factors of dSprites: Higgins et al. (2017), Fig. 7.

    codes: means on a grid, (3 shapes, scales, orientations, posX, posY, z_dim); each row of panels
    shows their mean over the factors that it does not name. A column a latent.
    """
    order = by_kl(kld)
    steps = range(0, len(VALUES), 3)  # -3, -2 .. 3
    figure = Figure(figsize=(1.4 + 1.35 * len(order), 4.2 + 1.2 * len(steps)), layout="constrained")
    panels = figure.subplots(4, len(order), squeeze=False, height_ratios=[1.2, 1, 1, 1.2 * len(steps)])
    curves = {1: codes.mean(axis=(2, 3, 4)), 2: codes.mean(axis=(1, 3, 4))}  # shapes, values, z_dim
    position = codes.mean(axis=(0, 1, 2))  # posX, posY, z_dim
    most = 1.1 * max(abs(part).max() for part in (position, *curves.values()))

    for column, j in enumerate(order):
        heat, scale, rotation, strip = panels[:, column]
        heat.set_title(title(j, kld, told), fontsize=11)
        # Rows of the picture are posY, downwards, as in the images.
        shown = heat.imshow(position[..., j].T, cmap="RdBu_r", vmin=-most, vmax=most)
        heat.set(xticks=[], yticks=[])
        response(scale, curves[1][..., j], np.linspace(0.5, 1, 6), most)
        response(rotation, curves[2][..., j], np.linspace(0, 360, 40), most)
        tower(strip, images[j, steps])
    for axes in panels[:, 1:].flat:
        axes.tick_params(labelleft=False)
    panels[3, 0].set_yticklabels([f"{i / 3 - 3:+.0f}" for i in steps])
    for axes, label in zip(
        panels[:, 0], ("position", "scale", "rotation (degrees)", "decoded with the latent at this value")
    ):
        axes.set_ylabel(label, fontsize=11)
    figure.colorbar(shown, ax=panels[0, :], pad=0.01, aspect=10)
    figure.suptitle("Mean of each latent against the factors of the image", x=0.01, ha="left")
    figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    save(path, figure.savefig)


def response(axes, curves, values, most):
    """Draws a latent's mean, from -most to most, against a factor's values: curves (3 shapes, V), V of the values."""
    values = values[:: math.ceil(len(values) / curves.shape[1])]
    for (shape, color), curve in zip(SHAPE_COLORS.items(), curves):
        axes.plot(values, curve, color=color, label=shape)
    axes.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
    axes.set(xlim=(values[0], values[-1]), ylim=(-most, most))
    axes.set_xticks(values[[0, -1]], [f"{value:.3g}" for value in values[[0, -1]]])
    axes.tick_params(labelsize=8)


def tower(axes, images):
    """Draws images (V, C, H, W) upon each other, the first on top."""
    count, _, side, _ = images.shape
    axes.imshow(images.permute(0, 2, 3, 1).flatten(0, 1).squeeze(-1).numpy(), cmap="grey", vmin=0, vmax=1)
    for i in range(1, count):
        axes.axhline(side * i - 0.5, color="grey", linewidth=1)
    axes.set(xticks=[], yticks=[side * (i + 0.5) for i in range(count)])
    axes.tick_params(length=0)


def mutual_information(information, entropy, names, kld, path):
    """Draws what each latent tells of each factor, in nats, and as a share of all that there is to tell.

    information: (z_dim, K) nats; entropy: of each factor, (K,) nats; names: K factors.
    """
    order = by_kl(kld)
    share = information[order] / entropy
    figure = Figure(figsize=(2.5 + 1.25 * len(names), 1.5 + 0.52 * len(order)), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(share.shape):
        axes.text(
            column,
            row,
            f"{information[order[row], column]:.2f}  ({share[row, column]:.0%})",
            ha="center",
            va="center",
            color="white" if share[row, column] > 0.55 else "black",
            fontsize=9,
        )
    axes.set_xticks(range(len(names)), [f"{name}\n{h:.2f} nats" for name, h in zip(names, entropy)])
    axes.set_yticks(range(len(order)), [title(j, kld, None, end="  ") for j in order])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_title(
        "Mutual information of latent and factor: nats (share of the factor's entropy)", fontsize=10
    )
    figure.colorbar(shown, label="share of the factor's entropy", pad=0.02)
    save(path, figure.savefig)


# Curves of log.csv.


def curves(log_path, path):
    """Draws log.csv: reconstruction loss, KL with C, and posterior variance, against iterations.

    The ten active latents with the highest KL have colours, those of capacity.png.
    """
    log = read_log(log_path)
    kld_at_end = [values[-1] if values else 0.0 for name, values in log.items() if name.startswith("kld_")]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    recon, kld, var = figure.subplots(1, 3)
    recon.plot(log["iter"], log["recon_loss"], color="black", marker="." if len(log["iter"]) < 50 else "")
    recon.set(title="Reconstruction loss", ylabel="nats an image", yscale="log")
    recon.yaxis.set_major_formatter("{x:.0f}")
    recon.yaxis.set_minor_formatter("{x:.0f}")
    kld.plot(log["iter"], log["total_kld"], color="black", label="total")
    if any(C == C for C in log.get("C", [])):
        kld.plot(log["iter"], log["C"], color="black", linestyle="--", label="C")
    coloured = [j for j in by_kl(kld_at_end) if kld_at_end[j] > ACTIVE][: len(LINE_COLORS)]
    grey = [j for j in by_kl(kld_at_end) if j not in coloured]
    for j in coloured + grey:
        style = (
            dict(color=LINE_COLORS[coloured.index(j)], label=f"z_{j}", zorder=2)
            if j in coloured
            else dict(color="lightgrey", label="the others" if j == grey[0] else None, zorder=1)
        )
        kld.plot(log["iter"], log[f"kld_{j}"], **style)
        var.plot(log["iter"], log[f"var_{j}"], **style)
    kld.set(title="KL of the posterior from the prior", ylabel="nats")
    var.set(title="Posterior variance", ylabel="mean of sigma\u00b2", ylim=(0, None))
    for axes in (recon, kld, var):
        axes.set_xlabel("iterations")
        axes.locator_params(axis="x", nbins=6)  # six digits each
        axes.grid(alpha=0.3)
    kld.legend(ncols=2, fontsize="small")
    save(path, figure.savefig)


def capacity(log_path, told, path, iteration):
    """Draws the KL of each latent, and C, against iterations; each line says at its end what it codes.

    Burgess et al. (2018), Fig. 3, draw the same of a generator that is given the true factors: these are taken into use one
    after the other as C grows.
    told: of the weights at that iteration, where the lines end.
    """
    log = read_log(log_path)
    count = sum(i <= iteration for i in log["iter"])
    log = {name: values[:count] for name, values in log.items()}
    told_of = ", the factor that it tells most about, and this factor's share of all that it tells"
    latents = [name for name in log if name.startswith("kld_")]
    if not log["iter"]:
        return
    kld = [log[name][-1] for name in latents]
    lines = [
        (
            f"kld_{j}",
            title(j, kld, told, end="  "),
            "lightgrey" if kld[j] <= ACTIVE else LINE_COLORS[place % 10],
        )
        for place, j in enumerate(by_kl(kld))
    ]
    if any(C == C for C in log.get("C", [])):
        lines.append(("C", f"C  {log['C'][-1]:.2f} nats", "black"))
    figure = Figure(figsize=(11, max(5, 0.27 * len(lines) + 1)), layout="constrained")
    axes = figure.subplots()
    for name, _, color in lines:
        axes.plot(
            log["iter"],
            log[name],
            color=color,
            linestyle="--" if name == "C" else "-",
            marker="." if len(log["iter"]) < 50 else "",
        )
    axes.set(xlabel="iterations", ylabel="nats", ylim=(0, None))
    axes.set_title("KL of each latent from the prior" + told_of * bool(told), loc="left", pad=16)
    axes.grid(alpha=0.3)

    top = axes.get_ylim()[1]
    ends = [log[name][-1] / top for name, _, _ in lines]  # heights in [0, 1]
    heights = spread(ends, 0.21 / (figure.get_figheight() - 1))
    for (_, label, color), end, height in zip(lines, ends, heights):
        axes.annotate(
            label,
            (1, end),
            (1.04, height),
            xycoords="axes fraction",
            va="center",
            color="grey" if color == "lightgrey" else color,
            annotation_clip=False,
            arrowprops=dict(arrowstyle="-", color=color, linewidth=0.8, relpos=(0, 0.5)),
        )
    axes.set_xlim(right=log["iter"][-1] if len(log["iter"]) > 1 else None)
    save(path, figure.savefig)


# Many runs.

UNITS = {"recon_loss": "nats", "total_kld": "nats", "total_correlation": "nats"}  # of what is no score


def study(values, path):
    """Draws how far runs spread: a panel a metric, a column a setting, a dot a run, a line at the median.

    values: {metric: {setting: values of its runs}}, with settings and runs in the same order everywhere: a run's
    dot has the same place in its column in all panels.
    """
    settings = list(next(iter(values.values())))
    columns = min(len(values), 5 if len(settings) <= 6 else 2)
    rows = math.ceil(len(values) / columns)
    width = max(2.6, 0.6 + 0.45 * len(settings))
    figure = Figure(figsize=(columns * width, 2.6 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for i, (axes, (metric, runs)) in enumerate(zip(panels, values.items())):
        for place, setting in enumerate(settings):
            points = runs[setting]
            axes.plot(
                place + 0.5 * (np.arange(len(points)) + 0.5) / len(points) - 0.25,
                points,
                "o",
                color="C0",
                alpha=0.6,
                markersize=6,
                markeredgewidth=0,
            )
            axes.hlines(np.median(points), place - 0.32, place + 0.32, color="black", linewidth=1.5)
        unit = f" ({UNITS[metric]})" if metric in UNITS else ""
        axes.set(title=metric + unit, xlim=(-0.6, len(settings) - 0.4))
        axes.title.set_fontsize(10)
        lowest = i + columns >= len(values)
        axes.set_xticks(
            range(len(settings)), settings if lowest else [], rotation=0 if len(settings) <= 3 else 90
        )
        axes.margins(y=0.12)
        if all(isinstance(value, int) for points in runs.values() for value in points):
            axes.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(axis="y", alpha=0.3)
    for axes in panels:  # what is left of the last row
        axes.set_axis_off()
    figure.suptitle("A dot is a seed, a line the median of its setting", x=0.01, ha="left", fontsize=10)
    save(path, figure.savefig)


def spread(heights, gap):
    """Moves heights apart until neighbours are gap away from each other, from the lowest one upwards."""
    moved, floor = list(heights), -math.inf
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        moved[i] = floor = max(heights[i], floor + gap)
    return moved
