"""Pictures: that they show what they say."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from viz import figures, pictures

KLD = [0.5, 3.0, 0.001]
TOLD = ["scale 80 %", "posX 93 %", "posY 40 %"]


def ramps(latents=3, channels=1):
    """Images of a traversal: latent j brightens from 0 to 1, more slowly the higher j."""
    steps = torch.linspace(0, 1, 19)
    values = torch.stack([steps / (j + 1) for j in range(latents)])
    return values[..., None, None, None].expand(latents, 19, channels, 64, 64)


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


def test_latents_are_named_with_what_they_tell_and_their_kl():
    assert pictures.by_kl(KLD) == [1, 0, 2]
    # the most that a picture shows
    assert pictures.by_kl([float(j) for j in range(100)]) == list(range(99, 67, -1))
    assert pictures.title(1, KLD, TOLD) == "z_1\nposX 93 %\nKL 3.00 nats"
    assert pictures.title(2, KLD, TOLD, end=" ") == "z_2 inactive KL 0.00 nats"
    assert pictures.title(1, KLD, None) == "z_1\nKL 3.00 nats"  # no known factors
    information = np.array([[0.9, 0.3], [0.0, 0.5], [0.0, 0.0]])
    assert pictures.tells(information, ("a", "b")) == ["a 75 %", "b 100 %", "a 0 %"]


def test_traverse_changes_one_latent_after_the_other():
    seen = []

    def decode(z):
        seen.append(z)
        return z.sum(dim=1).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    images = pictures.traverse(decode, torch.tensor([10.0, 20.0]))
    assert images.shape == (2, 19, 1, 2, 2)
    codes = torch.stack(seen)
    assert codes[0, :, 1].tolist() == [20] * 19 and codes[1, :, 0].tolist() == [10] * 19
    assert codes[0, :, 0].tolist() == pytest.approx([-3 + i / 3 for i in range(19)], abs=1e-6)
    assert torch.equal(images[:, :, 0, 0, 0], torch.sigmoid(codes.sum(dim=2)))


@pytest.mark.parametrize("latents, channels", [(3, 1), (3, 3), (32, 3)])
def test_the_animation_goes_there_and_back_and_loops(tmp_path, latents, channels):
    kld = [KLD[j] if j < 3 else 0.0 for j in range(latents)]
    path = tmp_path / "x.gif"
    pictures.animation(ramps(latents, channels), kld, None, path)
    with Image.open(path) as gif:
        assert gif.n_frames == 36 and gif.info["loop"] == 0 and path.stat().st_size < 1e6
        frames = [np.asarray(frame.convert("L"), dtype=int) for frame in ImageSequence.Iterator(gif)]
    scale = 2 if latents <= 10 else 1
    y, x = (26 + 32) * scale, [(40 + 65 * (place + 0.5)) * scale for place in range(3)]
    steps = [*range(19), *range(17, 0, -1)]
    for frame, step in zip(frames, steps):  # z_1 first: it has the highest KL
        for place, j in enumerate([1, 0, 2]):
            assert frame[y, int(x[place])] == pytest.approx(255 * step / 18 / (j + 1), abs=5)
    for i in range(1, 18):
        assert np.array_equal(frames[i], frames[36 - i])


def test_animations_of_real_size_stay_under_a_megabyte(tmp_path):
    path = tmp_path / "x.gif"
    axis = torch.linspace(-2, 2, 64)
    blobs = torch.stack(
        [
            torch.stack(
                [
                    torch.exp(-((axis[:, None] - t) ** 2 + (axis + j / 10) ** 2) * 4)
                    for t in torch.linspace(-1, 1, 19)
                ]
            )
            for j in range(10)
        ]
    )
    pictures.animation(blobs[:, :, None], [1.0] * 10, None, path)
    assert path.stat().st_size < 1e6


def test_the_grid_has_ten_columns_and_rows_by_kl(tmp_path):
    path = tmp_path / "x.png"
    pictures.traversal(ramps(), KLD, TOLD, path)
    picture = np.asarray(Image.open(path).convert("L"), dtype=int)
    top, left = 36, picture.shape[1] - 2 * (10 * 65 + 1)
    assert picture.shape[0] == top + 2 * (3 * 65 + 1)
    for row, j in enumerate([1, 0, 2]):
        for column in range(10):
            shown = picture[top + 130 * row + 65, left + 130 * column + 65]
            assert shown == pytest.approx(255 * column / 9 / (j + 1), abs=1)
    assert (picture[: top + 390, :left] < 128).any()  # labels


def test_the_response_shows_each_latent_against_each_factor(figure):
    sizes = (3, 6, 8, 5, 4)
    shape, scale, orientation, x, y = np.indices(sizes)
    angle = 2 * math.pi * orientation / 8
    codes = np.stack([scale - 2.5 + shape, x - 2.0 + 0 * y, np.sin(angle)], axis=-1)
    drawn = figure(figures.latent_response, codes, ramps(), KLD, TOLD)
    heat, scales, rotations, strips = (drawn.axes[3 * row : 3 * row + 3] for row in range(4))
    assert [axes.get_title().split("\n")[0] for axes in heat] == ["z_1", "z_0", "z_2"]
    assert heat[0].get_title() == "z_1\nposX 93 %\nKL 3.00 nats"
    assert np.array_equal(heat[0].images[0].get_array(), [[-2, -1, 0, 1, 2]] * 4)  # x to the right, y down
    curves = scales[1].get_lines()[:3]
    # square, ellipse, heart
    assert [line.get_color() for line in curves] == ["tab:red", "tab:green", "tab:blue"]
    assert [line.get_label() for line in curves] == ["square", "ellipse", "heart"]
    for i, line in enumerate(curves):
        assert line.get_ydata() == pytest.approx(np.arange(6) - 2.5 + i)
    assert rotations[2].get_lines()[0].get_ydata() == pytest.approx(np.sin(2 * math.pi * np.arange(8) / 8))
    strip = np.asarray(strips[0].images[0].get_array())
    assert strip[32::64, 32] == pytest.approx([i / 6 / 2 for i in range(7)], abs=1e-6)  # z_1 at -3, -2 .. 3


def test_the_heat_map_of_information_holds_its_values(figure):
    information = np.array([[0.2, 0.1], [0.5, 0.0], [0.0, 0.0]])
    drawn = figure(figures.mutual_information, information, np.array([1.0, 2.0]), ("shape", "posX"), KLD)
    texts = [text.get_text() for text in drawn.axes[0].texts]
    assert texts == ["0.50  (50%)", "0.00  (0%)", "0.20  (20%)", "0.10  (5%)", "0.00  (0%)", "0.00  (0%)"]
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()][0] == "z_1  KL 3.00 nats"
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()][1] == "posX\n2.00 nats"


def write_log(path, rows, C="1.5"):
    text = "iter,C,kld_0,kld_1,kld_2\n" + "".join(f"{100 * i},{C},0.5,{i}.0,0.001\n" for i in rows)
    path.write_text(text)
    return path


def test_capacity_labels_each_line_at_its_end_which_is_the_iteration_of_the_weights(figure, tmp_path):
    drawn = figure(
        partial(figures.capacity, iteration=300), write_log(tmp_path / "log.csv", (1, 2, 3, 4)), TOLD
    )
    labels = {text.get_text(): text for text in drawn.axes[0].texts}
    assert list(labels) == [
        "z_1  posX 93 %  KL 3.00 nats",
        "z_0  scale 80 %  KL 0.50 nats",
        "z_2  inactive  KL 0.00 nats",
        "C  1.50 nats",
    ]
    first = drawn.axes[0].get_lines()[0]
    assert list(first.get_ydata()) == [1, 2, 3]
    assert labels["z_1  posX 93 %  KL 3.00 nats"].get_color() == first.get_color()
    boxes = sorted((text.get_window_extent().y0, text.get_window_extent().y1) for text in labels.values())
    assert all(low[1] <= high[0] + 1 for low, high in zip(boxes, boxes[1:]))  # none upon another


def test_capacity_without_C_factors_or_rows(figure, tmp_path):
    drawn = figure(
        partial(figures.capacity, iteration=100), write_log(tmp_path / "log.csv", (1,), C=""), None
    )
    assert [text.get_text() for text in drawn.axes[0].texts][0] == "z_1  KL 1.00 nats"
    assert not any(text.get_text().startswith("C ") for text in drawn.axes[0].texts)
    figures.capacity(write_log(tmp_path / "log.csv", ()), None, tmp_path / "none.png", 100)
    assert not (tmp_path / "none.png").exists()


def test_curves_name_the_ten_active_latents_with_the_highest_kl_in_the_colours_of_capacity(figure, tmp_path):
    kld = [0.001, *(j / 10 for j in range(1, 13)), 0.0]  # 14 latents, of which 12 are active
    names = [
        "iter",
        "recon_loss",
        "total_kld",
        "C",
        *(f"{what}_{j}" for j in range(14) for what in ("kld", "var")),
    ]
    values = [100, 50.0, 7.8, "", *(x for k in kld for x in (k, 1 - k / 2))]
    (tmp_path / "log.csv").write_text("\n".join(",".join(map(str, row)) for row in (names, values)) + "\n")
    recon, total, variance = figure(figures.curves, tmp_path / "log.csv").axes
    lines = {line.get_label(): line for line in total.get_lines()}
    assert [text.get_text() for text in total.get_legend().get_texts()] == [
        "total",
        *(f"z_{j}" for j in range(12, 2, -1)),
        "the others",
    ]
    assert [lines[f"z_{j}"].get_ydata()[0] for j in (12, 3)] == [1.2, 0.3]
    assert len(total.get_lines()) == 1 + 14 and len(variance.get_lines()) == 14
    assert {line.get_color() for line in variance.get_lines()[10:]} == {"lightgrey"}
    drawn = figure(partial(figures.capacity, iteration=100), tmp_path / "log.csv", None)
    assert [line.get_color() for line in drawn.axes[0].get_lines()[:10]] == [
        lines[f"z_{j}"].get_color() for j in range(12, 2, -1)
    ]


def test_spread_keeps_order_and_distance():
    assert figures.spread([0.5, 0.0, 0.01, 0.52], 0.1) == pytest.approx([0.5, 0.0, 0.1, 0.6])


def test_a_traversal_shows_the_seed_in_front_of_each_row(tmp_path):
    seed = torch.zeros(1, 64, 64)
    for name, given in (("with", seed), ("without", None)):
        pictures.traversal(ramps() * 0 + 1, KLD, TOLD, tmp_path / f"{name}.png", given)
    with_seed, without = (Image.open(tmp_path / f"{name}.png") for name in ("with", "without"))
    assert with_seed.height == without.height and with_seed.width == without.width + 2 * 65
    left = without.width - 2 * (10 * 65 + 1)
    assert with_seed.getpixel((left + 65, 100)) == (0, 0, 0)  # the seed is black
    assert with_seed.getpixel((left + 65 + 130, 100)) == (255, 255, 255)


def test_factors_shows_a_block_of_seeds_for_each_of_the_highest_latents(tmp_path):
    def decode(z):  # as bright as latent 1, whatever the others do
        return (10 * z[:, 1]).view(-1, 1, 1, 1).expand(-1, 1, 64, 64)

    pictures.factors(decode, torch.zeros(5, 3), KLD, None, tmp_path / "x.png", most=2)
    picture = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    top, block, gap = 18, 5 * 65 + 1, 8
    assert picture.shape[0] == top + 2 * block + gap
    assert (picture[top + block : top + block + gap] == 255).all()
    # 5 seeds, 10 values, from the middle of each
    first = picture[top + 30 : top + block : 65, -65 * 10 + 30 :: 65]
    assert (np.diff(first.astype(int), axis=1) >= 0).all() and first[0, 0] == 0 and first[0, -1] == 255
    second = picture[top + block + gap + 30 :: 65, -65 * 10 + 30 :: 65]  # latent 0 does nothing
    assert (abs(second.astype(int) - 128) < 2).all()
