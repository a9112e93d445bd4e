"""Pictures: that they show what they say."""

import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from conftest import ROOT
from viz import figures, pictures

KLD = [0.5, 3.0, 0.001]
FACTORS = [("scale", 0.8), ("posX", 0.93), None]


def ramps(seeds=1, latents=2, channels=1):
    """Images of traversals: the latent in row j brightens from 0 to 1, more slowly the higher j."""
    values = torch.linspace(0, 1, 19) / (torch.arange(latents)[:, None] + 1)  # latents, 19
    return values[..., None, None, None].expand(seeds, latents, 19, channels, 64, 64)


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Calls a drawing function and returns the matplotlib figure that it saved."""

    def draw(function, *args):
        caught = []
        monkeypatch.setattr(figures, "save", lambda path, write: caught.append(write.__self__))
        function(*args, tmp_path / "x.png")
        caught[0].savefig(tmp_path / "x.png")  # it can be drawn
        return caught[0]

    return draw


@pytest.fixture
def tables(monkeypatch):
    """The rows and the words of each page that was made."""
    seen, grid = [], pictures.grid
    monkeypatch.setattr(
        pictures,
        "grid",
        lambda rows, foot, *a, **k: (seen.append((rows, foot)), grid(rows, foot, *a, **k))[1],
    )
    return seen


def texts(row):
    return [cell for cell in row if isinstance(cell, str)]


# Names of latents.


def test_active_latents_come_by_kl_and_the_others_are_counted_in_words():
    assert pictures.active(KLD) == [1, 0] and pictures.not_shown(KLD) == "1 inactive latent not shown"
    assert pictures.active([0.0, 0.002]) == [1]  # of none, the highest
    assert pictures.not_shown([3.0] + [0.0] * 7) == "7 inactive latents not shown"
    assert pictures.not_shown([3.0, 1.0]) == ""


def test_a_latent_is_named_after_the_factor_it_is_most_informative_about_and_an_inactive_one_after_none():
    assert pictures.label(1, KLD, FACTORS) == "posX  93 %\nz_1  3.00 nats"
    assert pictures.label(1, KLD, None) == pictures.label(1, KLD, [None] * 3) == "z_1  3.00 nats"
    assert pictures.label(2, KLD, [("posY", 0.9)] * 3) == "z_2  0.00 nats"


# Pictures of images.


def test_traverse_changes_one_latent_after_the_other_in_each_seed():
    def decode(z):
        return z[:, 0].sub(100 * z[:, 1]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    z = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    images = pictures.traverse(decode, z, [1, 0])
    assert images.shape == (2, 2, 19, 1, 2, 2)
    values = torch.tensor([-3 + i / 3 for i in range(19)])
    for s in range(2):
        assert torch.allclose(images[s, 0, :, 0, 0, 0], torch.sigmoid(z[s, 0] - 100 * values), atol=1e-4)
        assert torch.allclose(images[s, 1, :, 0, 0, 0], torch.sigmoid(values - 100 * z[s, 1]), atol=1e-4)


@pytest.mark.parametrize("seeds, steps", [(1, range(0, 19, 2)), (2, range(0, 19, 3)), (3, range(3, 16, 3))])
def test_traversals_stand_in_rows_by_kl_beside_each_other_for_each_seed(tmp_path, tables, seeds, steps):
    names = dict.fromkeys(["square", "ellipse", "heart"][:seeds], torch.ones(1, 64, 64))
    pictures.traversals(ramps(seeds), names, KLD, FACTORS, tmp_path / "x.png")
    (rows, foot), *_ = tables
    assert texts(rows[0]) == ["input", *names]
    assert texts(rows[1])[1:] == [pictures.number(v) for v in pictures.VALUES[steps]] * seeds
    assert [texts(row) for row in rows[2:]] == [
        ["posX  93 %\nz_1  3.00 nats"],
        ["scale  80 %\nz_0  0.50 nats"],
    ]
    shown = torch.stack([torch.stack(row[1:]) for row in rows[2:]])[..., 0, 32, 32]
    assert torch.allclose(shown, torch.cat([ramps()[0, :, steps, 0, 32, 32]] * seeds, dim=1))
    assert "1 inactive latent not shown" in foot and "mutual information" in foot
    assert Image.open(tmp_path / "x.png").width >= 1000  # sharp in a column of 800 pixels


def test_a_code_of_no_image_is_traversed_without_one(tmp_path, tables):
    pictures.traversals(ramps(), {"random": None}, KLD, None, tmp_path / "x.png")
    (rows, foot), *_ = tables
    assert texts(rows[0]) == ["", "random"] and not any(isinstance(cell, torch.Tensor) for cell in rows[0])
    assert "mutual information" not in foot  # no names, where no factors are known


def test_values_of_latents_are_written_briefly():
    assert [pictures.number(v) for v in (-3, -7 / 3, -1e-8, 0.0, 1.0)] == ["-3", "-2.3", "0", "0", "+1"]


def test_a_margin_that_is_dark_in_all_images_is_cut_off():
    images = torch.zeros(2, 1, 64, 64)
    images[0, 0, 10, 30] = images[1, 0, 40, 56] = 1  # 7 columns from the right
    assert pictures.dark_margin([images]) == 7 and pictures.crop(images, 7).shape == (2, 1, 50, 50)
    assert pictures.dark_margin([torch.ones(2, 3, 64, 64)]) == 0
    assert pictures.dark_margin([torch.zeros(2, 1, 64, 64)]) <= 16


@pytest.mark.parametrize("latents, channels", [(3, 1), (3, 3), (32, 3)])
def test_the_animation_goes_there_and_back_and_loops(tmp_path, latents, channels):
    pictures.animation(
        ramps(3, latents, channels), ["a", "b", "c"], [1.0] * latents, None, tmp_path / "x.gif"
    )
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 36 and gif.info["loop"] == 0 and gif.width <= 800
        frames = [np.asarray(frame.convert("L"), dtype=int) for frame in ImageSequence.Iterator(gif)]
    x = frames[0].shape[1] - {3: 2.5 * 145, 32: 7.5 * 65}[latents]  # the middle of the first column
    y = 16 * 2 + {3: 72, 32: 32}[latents]
    for frame, step in zip(frames, [*range(19), *range(17, 0, -1)]):
        assert frame[y, int(x)] == pytest.approx(255 * step / 18, abs=8)


@pytest.mark.parametrize("latents, channels", [(10, 1), pytest.param(32, 3, marks=pytest.mark.slow)])
def test_animations_of_rich_images_stay_under_a_megabyte(tmp_path, latents, channels):
    generator = torch.Generator().manual_seed(1)
    ends = torch.rand(2, latents, 1, channels, 16, 16, generator=generator)
    ends = torch.nn.functional.interpolate(ends.flatten(0, 2), size=64, mode="bilinear").view(
        2, latents, 1, channels, 64, 64
    )
    images = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, 19)[:, None, None, None])[None]
    pictures.animation(images, ["image"], [1.0] * latents, None, tmp_path / "x.gif")
    assert (tmp_path / "x.gif").stat().st_size < 1e6
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames >= 6 and 500 < gif.width <= 800


def test_factors_shows_a_block_of_seeds_for_each_of_the_highest_latents(tmp_path, tables):
    def decode(z):  # as bright as latent 1, whatever the others do
        return (10 * z[:, 1]).view(-1, 1, 1, 1).expand(-1, 1, 64, 64)

    pictures.factors(decode, torch.zeros(5, 3), KLD, None, tmp_path / "x.png", most=2)
    (rows, _), *_ = tables
    assert len(rows) == 1 + 2 * 5 and [row[0] for row in rows if row[0]] == [
        "latent at",
        "z_1  3.00 nats",
        "z_0  0.50 nats",
    ]
    shown = torch.stack([torch.stack(row[1:])[:, 0, 0, 0] for row in rows[1:]])  # 2 * 5 rows, 10 values
    assert (shown[:5].diff(dim=1) >= 0).all() and (shown[:5, 0] < 0.01).all() and (shown[:5, -1] > 0.99).all()
    assert (shown[5:] == 0.5).all()  # latent 0 does nothing


def test_reconstructions_stand_beside_their_images_and_the_rest_of_the_page_is_white(tmp_path):
    x = torch.zeros(5, 1, 64, 64)
    pictures.reconstruction(x, torch.full_like(x, 50.0), tmp_path / "x.png", pairs=3)
    page = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    height, tile = page.shape[0] - 1, 128
    assert [page[height - tile // 2, x] for x in (page.shape[1] - i * 135 for i in (1, 2))] == [255, 255]
    assert page[height - tile // 2, 30 + tile // 2] == 0  # an image, and beside it its reconstruction
    assert page[height - tile // 2, 30 + tile + tile // 2] == 255
    assert set(np.unique(page[height - tile // 2])) == {0, 255}  # no grey


# Figures.


def test_the_response_shows_each_active_latent_against_each_factor(figure):
    shape, scale, orientation, x, y = np.indices((3, 6, 8, 5, 4))
    codes = np.stack([scale - 2.5 + shape, x - 2.0 + 0 * y, np.sin(2 * math.pi * orientation / 8)], axis=-1)
    drawn = figure(figures.latent_response, codes, KLD, FACTORS)
    heat, scales, rotations = (drawn.axes[2 * row : 2 * row + 2] for row in range(3))
    assert [axes.get_title() for axes in heat] == [
        "posX\n93 %\nz_1\n3.00 nats",
        "scale\n80 %\nz_0\n0.50 nats",
    ]
    assert np.array_equal(heat[0].images[0].get_array(), [[-2, -1, 0, 1, 2]] * 4)  # x to the right, y down
    assert "posX" in heat[0].get_xlabel() and "posY" in heat[0].get_ylabel()
    curves = scales[1].get_lines()[:3]
    assert [line.get_color() for line in curves] == ["tab:red", "tab:green", "tab:blue"]
    assert [line.get_label() for line in curves] == ["square", "ellipse", "heart"]
    for i, line in enumerate(curves):
        assert line.get_ydata() == pytest.approx(np.arange(6) - 2.5 + i)
        assert line.get_xdata() == pytest.approx(np.linspace(0.5, 1, 6))
    assert rotations[0].get_lines()[0].get_ydata() == pytest.approx(np.zeros(8))
    assert drawn.get_supxlabel() == "1 inactive latent not shown"


def test_the_heat_map_of_information_holds_its_values(figure):
    information = np.array([[0.2, 0.1], [0.5, 0.0], [0.0, 0.0]])
    drawn = figure(figures.mutual_information, information, np.array([1.0, 2.0]), ("shape", "posX"), KLD)
    cells = [text.get_text() for text in drawn.axes[0].texts]
    assert cells == ["0.50  (50%)", "0.00  (0%)", "0.20  (20%)", "0.10  (5%)"]
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()][0] == "z_1  3.00 nats"
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()][1] == "posX\n2.00 nats"


def write_log(path, rows, C="1.5"):
    names = [
        "iter",
        "recon_loss",
        "total_kld",
        "C",
        *(f"{what}_{j}" for what in ("kld", "var") for j in range(3)),
    ]
    lines = [f"{100 * i},50.0,{i}.5,{C},0.5,{i}.0,0.001,0.9,0.8,1.0" for i in rows]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return path


def legend(drawn):
    return [text.get_text() for text in (drawn.legends or [drawn.axes[0].get_legend()])[0].get_texts()]


def test_capacity_names_each_active_latent_by_its_kl_at_the_iteration_of_the_weights(figure, tmp_path):
    log = write_log(tmp_path / "log.csv", (1, 2, 3, 4))
    drawn = figure(partial(figures.capacity, iteration=300, restarted=[200]), log, FACTORS)
    assert legend(drawn) == ["C  1.50 nats", "posX  93 %  z_1  3.00 nats", "scale  80 %  z_0  0.50 nats"]
    assert list(drawn.axes[0].get_lines()[1].get_ydata()) == [1, 2, 3]
    assert drawn.axes[0].get_lines()[-1].get_xdata() == [200, 200]
    assert [text.get_text().strip() for text in drawn.axes[0].texts] == ["encoder restarted"]
    assert drawn.get_supxlabel() == "1 inactive latent not shown"


def test_capacity_without_C_or_factors(figure, tmp_path):
    drawn = figure(
        partial(figures.capacity, iteration=100), write_log(tmp_path / "log.csv", (1,), C=""), None
    )
    assert legend(drawn) == ["z_1  1.00 nats", "z_0  0.50 nats"]


def test_an_empty_log_gives_no_picture(tmp_path):
    figures.capacity(write_log(tmp_path / "log.csv", ()), None, tmp_path / "x.png", 100)
    figures.curves(tmp_path / "log.csv", tmp_path / "x.png")
    figures.capacity(write_log(tmp_path / "log.csv", (2,)), None, tmp_path / "x.png", 100)  # only later rows
    assert not (tmp_path / "x.png").exists()


def test_curves_show_active_latents_in_the_colours_of_capacity(figure, tmp_path):
    log = write_log(tmp_path / "log.csv", (1, 2))
    drawn = figure(figures.curves, log)
    recon, total, variance = drawn.axes
    assert recon.get_ylabel() == total.get_ylabel() == "nats per image"
    lines = {line.get_label(): line for line in total.get_lines()}
    assert list(lines) == ["total", "C", "z_1", "z_0"] and list(lines["z_1"].get_ydata()) == [1, 2]
    assert [list(line.get_ydata()) for line in variance.get_lines()] == [[0.8] * 2, [0.9] * 2]
    capacity = figure(partial(figures.capacity, iteration=200), log, None).axes[0].get_lines()
    for other in (variance.get_lines(), capacity[1:]):
        assert [line.get_color() for line in other] == [lines[name].get_color() for name in ("z_1", "z_0")]
    assert drawn.get_supxlabel() == "1 inactive latent not shown"


def test_runs_and_public_results_stand_in_one_plane_of_kl_and_reconstruction(figure):
    drawn = figure(figures.rate_distortion, {"ours": ([1, 2, 3], [30, 20, 10])}, {"theirs": (2, 25)})
    (axes,) = drawn.axes
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[1, 2, 3], [3], [2]]
    assert [text.get_text() for text in axes.texts] == ["theirs"] and axes.texts[0].xy == (2, 25)
    assert axes.get_xlabel().startswith("KL") and axes.get_ylabel().startswith("reconstruction loss")


DRAW = """
import sys; from pathlib import Path; import numpy as np; from viz import figures
figures.latent_kl([1, 2], np.array([[1.0, 2.0], [2.0, 3.0]]), Path(sys.argv[1]))
figures.study({"mig": {"a": [0.1]}}, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_pictures_are_the_same_bytes_whatever_the_environment_says_of_matplotlib(tmp_path):
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfigure.facecolor: red\nsavefig.dpi: 30\nbackend: none\n"
    )
    drawn = []
    for backend, rc in [
        (None, None),
        ("module://matplotlib_inline.backend_inline", None),
        ("nonsense", "rc"),
    ]:
        env = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"} | {
            "PYTHONPATH": str(ROOT)
        }
        env |= {"MPLBACKEND": backend} if backend else {}
        env |= {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")} if rc else {}
        paths = [tmp_path / "a.png", tmp_path / "b.png"]
        subprocess.run([sys.executable, "-c", DRAW, *paths], cwd=ROOT, env=env, check=True)
        drawn.append([path.read_bytes() for path in paths])
    assert drawn[0] == drawn[1] == drawn[2]
