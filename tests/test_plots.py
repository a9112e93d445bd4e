"""Pictures: that they show what they say."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from utils import SHOWN
from viz import figures, pictures
from viz.latents import Latents, style

KLD = [0.5, 3.0, 0.09]
FACTORS = ("shape", "scale", "posX", "posY")
INFORMATION = np.array([[0.0, 0.4, 0.1, 0.0], [0.07, 0.0, 0.93, 0.0], [0.0, 0.0, 0.0, 0.05]])
LATENTS = Latents(KLD, FACTORS, INFORMATION)
NAMES = ["posX  93 %\nz_1  3.00 nats", "scale  80 %\nz_0  0.50 nats"]


def ramps(seeds=1, latents=2, channels=1):
    """Images of traversals: the latent in row j brightens from 0 to 1, more slowly the higher j."""
    values = torch.linspace(0, 1, 13) / (torch.arange(latents)[:, None] + 1)  # latents, 13
    return values[..., None, None, None].expand(seeds, latents, 13, channels, 64, 64)


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Calls a drawing function and returns the matplotlib figure that it saved."""

    def draw(function, *args):
        caught = []
        monkeypatch.setattr(figures, "save", lambda path, write: caught.append(write.__self__))
        function(*args, tmp_path / "x.png")
        caught[0].draw_without_rendering()
        return caught[0]

    return draw


@pytest.fixture
def table(monkeypatch):
    """Rows and foot of the last page."""
    seen, grid = {}, pictures.grid

    def record(rows, foot, *args, **options):
        seen.update(rows=rows, foot=foot)
        return grid(rows, foot, *args, **options)

    monkeypatch.setattr(pictures, "grid", record)
    return seen


def texts(row):
    return [cell for cell in row if isinstance(cell, str)]


# Latents.


def test_latents_come_by_kl_named_after_their_top_factor_and_those_of_no_weight_are_only_counted():
    assert LATENTS.shown() == [1, 0] and LATENTS.not_shown() == "1 latent under 0.1 nats not shown"
    assert Latents([0.0, 0.002]).shown() == [1]  # of none, the highest
    assert Latents([3.0] + [0.0] * 7).not_shown() == "7 latents under 0.1 nats not shown"
    assert [LATENTS.label(j) for j in (1, 0, 2)] == [*NAMES, "z_2  0.09 nats"]
    assert "mutual information" in LATENTS.notes() and LATENTS.not_shown() in LATENTS.notes()
    assert "mutual information" not in Latents(KLD).notes()  # without factors
    barely = Latents([SHOWN, SHOWN + 0.001, 2.0], ("a", "b"), np.array([[0.1, 0], [0.1, 0], [0, 0]]))
    assert [barely.factor(j) for j in range(3)] == ["", "a  100 %", ""]


def test_the_plane_is_of_the_two_that_code_the_same_factors_and_without_factors_of_the_two_highest():
    information = np.array(
        [[2.0, 0.0, 0.6], [0.0, 1.0, 0.9], [0.1, 0.9, 0.8], [0.0, 0.1, 0.1], [0.0, 1.0, 0.9]]
    )
    assert Latents([3.0, 2.0, 1.0, 0.5, 0.05], "abc", information).plane() == (1, 2)
    assert Latents([1.0, 2.0, 3.0]).plane() == (2, 1) == Latents([0.0, 0.01, 0.5]).plane()
    assert Latents([1.0]).plane() is None


# Pictures of images.


def test_traverse_changes_one_latent_after_the_other_in_each_seed():
    def decode(z):
        return z[:, 0].sub(2 * z[:, 1]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    z, values = torch.tensor([[0.1, 0.2], [0.3, 0.4]]), torch.linspace(-3, 3, 13)
    images = pictures.traverse(decode, z, Latents([1.0, 2.0], signs=[-1, 1]))
    for s in range(2):
        assert torch.allclose(images[s, 0, :, 0, 0, 0], torch.sigmoid(z[s, 0] - 2 * values), atol=1e-4)
        assert torch.allclose(images[s, 1, :, 0, 0, 0], torch.sigmoid(-values - 2 * z[s, 1]), atol=1e-4)


@pytest.mark.parametrize("seeds, ticks", [(2, "-3 -2 -1 0 +1 +2 +3"), (3, "-2 -1 0 +1 +2")])
def test_traversals_stand_in_rows_by_kl_beside_each_other_for_each_seed(tmp_path, table, seeds, ticks):
    names = ["square", "ellipse", "heart"][:seeds]
    x = torch.ones(seeds, 1, 64, 64)
    latents = Latents(KLD, FACTORS, INFORMATION, signs=[-1, 1, -1])
    pictures.traversals(ramps(seeds), names, x, x / 2, latents, tmp_path / "x.png")
    above, head, values, *rows = table["rows"]
    assert texts(head) == ["", *names] and texts(values)[1:] == ticks.split() * seeds
    for name, i in zip(names, range(1, 100, len(ticks.split()))):  # the reconstruction beside the input
        assert head[i] == name and above[i + 1 : i + 3] == ["input", "recon"]
        assert (head[i + 1].max(), head[i + 2].max()) == (1, 0.5)
    assert [texts(row) for row in rows] == [[NAMES[0]], ["scale  80 %\n-z_0  0.50 nats"]]  # from high to low
    shown = torch.stack([torch.stack(row[1:]) for row in rows])[..., 0, 32, 32]
    steps = [6 + 2 * int(tick) for tick in ticks.split()]
    assert torch.allclose(shown, torch.cat([ramps()[0, :, steps, 0, 32, 32]] * seeds, dim=1))
    assert latents.notes() in table["foot"] and "x goes right" in table["foot"]
    assert Image.open(tmp_path / "x.png").width >= 1000  # sharp in a column of 800 pixels


def test_a_border_that_is_dark_in_all_images_is_cut_off():
    images = torch.zeros(2, 1, 64, 64)
    images[0, 0, 10, 30] = images[1, 0, 40, 56] = 1  # 7 columns from the right
    assert pictures.dark_margin(images[:1], images) == 7
    assert pictures.crop(images, 7).shape == (2, 1, 50, 50)
    assert pictures.dark_margin(torch.ones(2, 3, 64, 64)) == 0
    assert pictures.dark_margin(torch.zeros(2, 1, 64, 64)) == 16


def test_the_animation_goes_there_and_back_and_loops_in_colour(tmp_path):
    path = tmp_path / "x.gif"
    images = ramps(3, 3, 3) * torch.tensor([1.0, 0.5, 0.0])[:, None, None]  # orange
    pictures.animation(images, ["a", "b", "c"], Latents([1.0] * 3), path)
    with Image.open(path) as gif:
        assert gif.n_frames == 24 and gif.info["loop"] == 0 and 400 < gif.width <= 800
        frames = [np.asarray(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(gif)]
    for frame, step in zip(frames, [*range(13), *range(11, 0, -1)]):
        middle = frame[16 * 2 + 72, frame.shape[1] - 368]  # of the first column
        assert middle == pytest.approx(255 * step / 12 * np.array([1, 0.5, 0]), abs=8)


def test_factors_shows_a_block_of_seeds_for_each_of_the_highest_latents(tmp_path, table):
    def decode(z):  # as bright as latent 1, whatever the others do
        return (10 * z[:, 1]).view(-1, 1, 1, 1).expand(-1, 1, 64, 64)

    pictures.factors(decode, torch.zeros(5, 3), Latents(KLD), tmp_path / "x.png", most=2)
    names = [row[0] for row in table["rows"] if row[0]]
    assert names == ["latent at", "z_1  3.00 nats", "z_0  0.50 nats"]
    shown = torch.stack([torch.stack(row[1:]) for row in table["rows"] if len(texts(row)) == 1 and row[1:]])
    shown = shown[..., 0, 0, 0]  # 2 * 5, 13
    assert (shown[:5, 0] < 0.01).all() and (shown[:5, -1] > 0.99).all()
    assert (shown[5:] == 0.5).all()  # latent 0 does nothing
    assert "A block changes one latent in 5 images" in table["foot"]


def test_reconstructions_stand_beside_their_images_and_the_rest_of_the_page_is_white(tmp_path):
    x = torch.zeros(5, 1, 64, 64)
    pictures.reconstruction(x, torch.zeros_like(x), tmp_path / "x.png", pairs=3)  # a logit of 0 is grey
    page = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    last_row = page[np.flatnonzero((page == 128).any(axis=1))[-1] - 64]
    assert set(last_row) == {0, 128, 255}
    assert (last_row == 0).sum() == (last_row == 128).sum() == 2 * 128  # two images, two reconstructions
    assert (last_row[last_row.argmin() + np.array([127, 129, 256])] == [0, 128, 128]).all()


# Figures.


def test_the_response_shows_each_latent_against_each_factor_in_whatever_order_the_factors_are(figure):
    x, rotation, other, shape, scale, y = np.indices((5, 8, 2, 3, 6, 4))
    codes = np.stack([scale - 2.5 + shape, x - 2.0 + 0 * y, np.sin(2 * math.pi * rotation / 8)], axis=-1)
    roles, shapes = ("x", "rotation", None, "shape", "scale", "y"), ["square", "ellipse", "heart"]
    drawn = figure(figures.latent_response, codes, roles, shapes, LATENTS)
    heat, scales, rotations = (drawn.axes[2 * row : 2 * row + 2] for row in range(3))
    assert heat[0].get_title() == "posX\n93 %\nz_1\n3.00 nats" and heat[1].get_title().startswith("scale")
    assert np.array_equal(heat[0].images[0].get_array(), [[-2, -1, 0, 1, 2]] * 4)  # x to the right, y down
    for i, line in enumerate(scales[1].get_lines()[:3]):
        assert line.get_label() == shapes[i] and line.get_ydata() == pytest.approx(np.arange(6) - 2.5 + i)
    assert rotations[0].get_lines()[0].get_ydata() == pytest.approx(np.zeros(8))  # the mean over x
    assert LATENTS.not_shown() in drawn.get_supxlabel()


def test_a_map_of_latents_and_factors_holds_its_values(figure):
    values = [[0.2, 0.1], [0.5, 0.0], [0.0, 0.0]]
    (axes,) = figure(figures.factor_map, values, ("shape", "posX"), "a title", LATENTS).axes
    assert [text.get_text() for text in axes.texts] == ["0.50", "0.00", "0.20", "0.10"]
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES


def test_the_plane_grows_to_the_right_and_up_and_holds_the_codes_of_each_turn(figure):
    def decode(z):  # as bright as latent 1 at the left, as latent 0 at the right
        return z[:, [1, 0]].repeat_interleave(4, dim=1)[:, None, None].expand(-1, 1, 8, 8)

    images = pictures.plane(decode, torch.tensor([9.0, 9.0, 9.0]), (1, 0))
    turns = {"square": torch.tensor([[1.0, 2.0, 0.0], [-4.0, 0.5, 0.0]])}
    (axes,) = figure(figures.plane, images, turns, "an image", (1, 0), LATENTS).axes
    page = np.asarray(axes.images[0].get_array())[..., 0] / 0.5  # rows from the top
    values = 1 / (1 + np.exp(-np.linspace(-3, 3, 13)))
    assert np.allclose(page[0, ::8], values) and np.allclose(page[::8, 7], values[::-1])
    assert axes.images[0].get_extent() == [-3.25, 3.25, -3.25, 3.25]
    line = axes.get_lines()[0]
    assert line.get_label().startswith("square") and np.allclose(line.get_xydata(), [[2, 1], [0.5, -4]])
    assert axes.get_xlim()[0] < -4 < 4 < axes.get_ylim()[1]  # all codes are within
    assert "posX" in axes.get_xlabel() and "scale" in axes.get_ylabel()
    (axes,) = figure(figures.plane, images, {}, "an image", (1, 0), LATENTS).axes  # without known factors
    assert np.allclose(np.asarray(axes.images[0].get_array())[0, ::8, 0], values) and not axes.get_lines()


def make_log(rows, C=1.5):
    names = "iter recon_loss total_kld C kld_0 kld_1 kld_2 mu_0 mu_1 mu_2 var_0 var_1 var_2".split()
    lines = [(100 * i, 50, i + 0.5, C, 0.5, i, 0.09, 0, 0, 0, 0.9, 0.8, 1) for i in rows]
    return dict(zip(names, map(list, zip(*lines))))


def legend(drawn):
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def test_capacity_names_each_latent_by_its_kl_at_the_iteration_of_the_weights(figure):
    draw = partial(figure, partial(figures.capacity, iteration=300))
    drawn = draw(make_log((1, 2, 3, 4)), LATENTS)
    named = [name.replace("\n", "  ") for name in NAMES]
    assert legend(drawn) == ["C", *named]
    assert drawn.legends[0].get_title().get_text() == "at iteration 300"
    assert list(drawn.axes[0].get_lines()[1].get_ydata()) == [1, 2, 3, 4]
    assert legend(draw(make_log((1, 2, 3), C=math.nan), LATENTS)) == named  # of an objective without C


def test_curves_show_latents_in_their_own_colours_as_capacity_does(figure):
    log = make_log((1, 2))
    drawn = figure(figures.curves, log)
    recon, total, _, variance = drawn.axes
    assert list(recon.get_lines()[0].get_ydata()) == [50, 50] and recon.get_ylabel() == "nats per image"
    lines = {line.get_label(): line for line in total.get_lines()}
    assert list(lines) == legend(drawn) == ["total", "C", "z_1", "z_0"]
    assert list(lines["z_1"].get_ydata()) == [1, 2]
    assert [list(line.get_ydata()) for line in variance.get_lines()] == [[0.8] * 2, [0.9] * 2]
    capacity = figure(partial(figures.capacity, iteration=200), log, LATENTS).axes[0].get_lines()
    for other in (total.get_lines()[2:], variance.get_lines(), capacity[1:]):
        assert [line.get_color() for line in other] == [style("z_1")[0], style("z_0")[0]]
    assert len({style(f"z_{j}") for j in range(40)}) == 40
    assert LATENTS.not_shown() in drawn.get_supxlabel()
