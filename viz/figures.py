"""Figures with axes (matplotlib). Knows arrays and paths, no runs or flags; latents: a latents.Latents."""

import contextlib
import math
import textwrap

import numpy as np

from viz.latents import Latents, style
from viz.pictures import crop, dark_margin, save

# The first three as in Higgins et al. (2017), Fig. 7
SHAPE_COLORS = "tab:red tab:green tab:blue tab:orange tab:purple".split()
ROLES = {"shape", "scale", "rotation", "x", "y"}  # of the factors that latent_response needs
NATS = "nats per image"

TURNS = (
    " A line holds the codes of one shape, large and in the middle, as it turns once round (large dot: not turned). "
    "Rotation changes along a line, shape from line to line. A shape without tiles of its own needs the other latents too."
)

# Title, unit of the y axis, and columns of log.csv with their names; kld_ stands for the KL of each latent shown.
CURVES = {
    "recon": ("Reconstruction loss", NATS, {"recon_loss": "reconstruction"}),
    "kld": ("KL from the prior", NATS, {"total_kld": "total", "C": "C", "kld_": "z_"}),
    "mu": ("Posterior mean", "mean of \u03bc (prior: \u03c3 = 1)", {"mu_": "z_"}),
    "var": ("Posterior variance", "mean of \u03c3\u00b2 (prior: 1)", {"var_": "z_"}),
}


@contextlib.contextmanager
def figure(path, width, height, foot=""):
    """Within `with`: an empty figure, size in inches, which is then saved to path; foot: a text below, at the left."""
    from matplotlib.figure import Figure  # takes a second

    drawn = Figure(figsize=(width, height), layout="constrained")
    lines = [textwrap.fill(line, int(12 * width)) for line in foot.split("\n")]
    drawn.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=10, color="dimgrey")
    yield drawn
    save(path, drawn.savefig)


# Which latent codes what.


def mean_over(codes, roles, *kept):
    """Mean of codes on a grid of factors (.., z_dim) over all factors but those of the roles kept, which are its axes then."""
    codes = np.moveaxis(codes, [roles.index(role) for role in kept], range(len(kept)))
    return codes.mean(axis=tuple(range(len(kept), codes.ndim - 1)))


def latent_response(codes, roles, shapes, latents, path):
    """Draw the mean of each latent against the factors: Higgins et al. (2017), Fig. 7, without traversals.

    codes: means on the grid of factors, (.., z_dim); roles: of each factor, all of ROLES among them; shapes: names of the
    values of shape. A column per latent; each row averages over the factors that it does not name.
    """
    order = latents.shown()
    position = mean_over(codes, roles, "y", "x")  # y, x, z_dim: a row of the map is a y, from top to bottom
    scale = mean_over(codes, roles, "shape", "scale")  # shapes, values, z_dim
    rotation = mean_over(codes, roles, "shape", "rotation")
    most = 1.1 * max(abs(part[..., order]).max() for part in (position, scale, rotation))
    with figure(path, 3 + len(order), 5.5, latents.notes()) as drawn:
        panels = drawn.subplots(3, len(order), squeeze=False, sharey="row", height_ratios=[1.3, 1, 1])
        for (heat, *below), j in zip(panels.T, order):
            heat.set_title(latents.label(j).replace("  ", "\n"), fontsize=10)
            mesh = heat.imshow(position[..., j], cmap="RdBu_r", vmin=-most, vmax=most)
            heat.set(xticks=[], yticks=[], xlabel="x \u2192")
            for axes, means in zip(below, (scale, rotation)):
                for shape, line, mean in zip(shapes, SHAPE_COLORS, means[..., j]):
                    axes.plot(np.linspace(0, 1, len(mean)), mean, color=line, label=shape)
                axes.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
                axes.set_ylim(-most, most)
                axes.tick_params(labelsize=9)
            below[0].set(xlabel="scale", xticks=[0, 1], xticklabels=["small", "large"])
            below[1].set(xlabel="rotation", xticks=[0, 1], xticklabels=["0", "360\u00b0"])
        for axes, name in zip(panels[:, 0], ("\u2190 y", "mean of \u03bc", "mean of \u03bc")):
            axes.set_ylabel(name)
        drawn.colorbar(mesh, ax=panels[0, :], pad=0.01, aspect=10, label="mean of \u03bc")
        below[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def factor_map(values, names, title, latents, path):
    """Draw values in [0, 1], (z_dim, K), of each latent shown and each factor, as numbers and colours."""
    order = latents.shown()
    with figure(path, 1.6 + 1.25 * len(names), 2.2 + 0.52 * len(order), latents.notes()) as drawn:
        axes = drawn.subplots()
        axes.imshow(np.asarray(values)[order], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, j in enumerate(order):
            for column, value in enumerate(values[j]):
                ink = "white" if value > 0.55 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(order)), [latents.label(j) for j in order])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=11)


def plane(images, turns, seed, pair, latents, path):
    """Draw what is decoded in the plane of a pair of latents, and over it the codes of shapes that turn once round.

    images: (13, 13, C, H, W) in [0, 1], of pictures.plane; turns: {shape: means (rotations, z_dim)}, may be empty;
    seed: name of the image that all other latents are taken from.
    """
    images = crop(images, dark_margin(images))
    side, _, channels, height, width = images.shape
    # imshow begins at the top, where the highest value stands
    page = images.flip(0).permute(0, 3, 1, 4, 2).reshape(side * height, side * width, channels)
    end = 3 + 3 / (side - 1)  # half a tile beyond the last value
    reach = max([end, *(1.05 * codes[:, list(pair)].abs().max().item() for codes in turns.values())])
    with figure(path, 9, 10.3, latents.notes()) as drawn:
        axes = drawn.subplots()
        brightness = 0.5 if turns else 1  # lines stand out on grey
        axes.imshow((page.expand(-1, -1, 3) * brightness).numpy(), extent=(-end, end, -end, end))
        for (shape, codes), line in zip(turns.items(), SHAPE_COLORS):
            x, y = codes[:, list(pair)].T.numpy()
            axes.plot(
                x, y, ".-", color=line, linewidth=1, markersize=9, label=f"{shape}, turned by 360\u00b0"
            )
            axes.plot(x[0], y[0], "o", color=line, markeredgecolor="white", markersize=12)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=range(-3, 4), yticks=range(-3, 4))
        axes.set(xlabel=latents.label(pair[0], ",  "), ylabel=latents.label(pair[1], ",  "))
        title = f"A tile is decoded where two latents have these values, all others as in the input ({seed})."
        drawn.suptitle(textwrap.fill(title + TURNS * bool(turns), 98), x=0.01, ha="left", fontsize=12)
        if turns:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=len(turns), frameon=False)


# Curves of log.csv.


def read_curves(log):
    """Lines {name: values} of each of CURVES, and the Latents at the last row; log: {column: values}."""
    z_dim = sum(column.startswith("kld_") for column in log)
    latents = Latents([log[f"kld_{j}"][-1] for j in range(z_dim)])
    lines = {}
    for win, (_, _, columns) in CURVES.items():
        lines[win] = {}
        for column, name in columns.items():
            if column.endswith("_"):
                lines[win] |= {f"{name}{j}": log[f"{column}{j}"] for j in latents.shown()}
            elif column in log and not np.isnan(log[column]).all():  # only objective B has C
                lines[win][name] = log[column]
    return lines, latents


def plot(axes, x, lines, title, unit, names={}):
    """Draw lines {name: values} against iterations x; names: others for the legend."""
    for name, y in lines.items():
        color, linestyle = style(name)
        marker = "." if len(x) < 50 else ""
        axes.plot(x, y, color=color, linestyle=linestyle, marker=marker, label=names.get(name, name))
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel="iterations", ylabel=unit)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.3)


def curves(log, path):
    """Draw log.csv, {column: values}: a panel for each of CURVES."""
    lines, latents = read_curves(log)
    with figure(path, 11, 8, latents.not_shown()) as drawn:
        panels = dict(zip(CURVES, drawn.subplots(2, 2).flat))
        for win, (title, unit, _) in CURVES.items():
            plot(panels[win], log["iter"], lines[win], title, unit)
        panels["recon"].set_yscale("log")
        panels["recon"].yaxis.set_major_formatter("{x:.0f}")
        panels["recon"].yaxis.get_major_locator().set_params(subs=(1, 2, 3, 5))
        panels["recon"].minorticks_off()
        panels["kld"].set_ylim(0)
        drawn.legend(*panels["kld"].get_legend_handles_labels(), loc="outside right upper", frameon=False)


def capacity(log, latents, path, iteration):
    """Draw C and the KL of each latent shown; the legend says what each codes at iteration, that of latents.

    Burgess et al. (2018), Fig. 3, draw the same of a generator that is given the true factors: one factor after the other
    comes into use as C grows. log: {column: values}.
    """
    lines = read_curves(log)[0]["kld"]
    del lines["total"]
    names = {f"z_{j}": latents.label(j, "  ") for j in range(len(latents.kld))}
    with figure(path, 10, max(4.5, 0.25 * len(lines) + 1.5), latents.notes()) as drawn:
        axes = drawn.subplots()
        plot(axes, log["iter"], lines, "KL of each latent from the prior", NATS, names)
        axes.set_ylim(0)
        title = f"at iteration {iteration:,}"
        drawn.legend(loc="outside right upper", frameon=False, title=title, alignment="left")


# Many runs.


def study(groups, metrics, path):
    """Draw how far runs spread: a panel per metric, a column per setting, a dot per run, a line at the median.

    groups: {setting: {metric: value} of each run}. A run's dot has the same place in its column in all panels.
    """
    columns = min(len(metrics), 4 if len(groups) <= 6 else 2)
    rows, width = math.ceil(len(metrics) / columns), max(2.6, 0.6 + 0.45 * len(groups))
    foot = "A dot is a seed, a line the median of its setting. Losses and KL are in nats."
    with figure(path, columns * width, 2.6 * rows + 0.4, foot) as drawn:
        for number, metric in enumerate(metrics, 1):
            axes = drawn.add_subplot(rows, columns, number)
            for place, runs in enumerate(groups.values()):
                points = [numbers[metric] for numbers in runs]
                x = place + 0.5 * (np.arange(len(points)) + 0.5) / len(points) - 0.25
                axes.plot(x, points, "o", color="C0", alpha=0.6, markeredgewidth=0)
                axes.hlines(np.median(points), place - 0.32, place + 0.32, color="black", linewidth=1.5)
            axes.set_title(metric, fontsize=10)
            names = list(groups) if number > len(metrics) - columns else []  # no panel stands below
            axes.set_xticks(range(len(groups)), names, rotation=90 * (len(groups) > 3))
            axes.set_xlim(-0.6, len(groups) - 0.4)
            axes.margins(y=0.12)
            axes.grid(axis="y", alpha=0.3)
