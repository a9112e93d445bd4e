"""Evaluator: scores, pictures and codes of a model, called as a notebook would and from the command line."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import evaluator, metrics
from evaluation.evaluator import Evaluator, encode_all
from helpers import same
from model import build_net
from run.checkpoint import read_checkpoint
from utils import UserError
from viz.latents import Latents

pytestmark = pytest.mark.usefixtures("thumbnails")


class Grid:
    """120 images of 64x64: three stripes, as bright as a tenth of size, x and y, which have 4, 5 and 6 values."""

    channels, distribution = 1, "bernoulli"
    factor_names, factor_sizes, factor_roles = ("size", "x", "y"), (4, 5, 6), ("scale", "x", "y")
    seed_images = {"small": 0, "large": 119}

    def __len__(self):
        return 120

    def batch(self, indices):
        images = torch.zeros(len(indices), 1, 64, 64)
        values = torch.tensor(np.transpose(np.unravel_index(np.asarray(indices), (4, 5, 6))))  # B, 3
        images[:, 0, :60] = values.repeat_interleave(20, dim=1)[..., None] / 10
        return images


class Unknown(Grid):
    factor_names = factor_sizes = factor_roles = None
    seed_images = {}


class Turning(Grid):
    """The images of Grid, of which the three factors are said to be a rotation, a shape and a scale."""

    factor_roles = ("rotation", "shape", "scale")
    seed_images = {"square": 0, "heart": 2 * 6}


class Oracle(torch.nn.Module):
    """Latent 0 holds x, latent 1 size and a trace of y, latent 2 is dead; it decodes to a grey of the value of z_0."""

    def encode(self, x):
        size, left, top = 10 * x[:, 0, :60:20, 0].T  # B
        mu = torch.stack([left - 2, size - 1.5 + 0.05 * top, 1e-4 * top], dim=1)
        return mu, torch.tensor([-4.0, -4.0, 0.0]).expand_as(mu)

    def decode(self, z):
        return z[:, :1, None, None].expand(-1, 1, 64, 64)


@pytest.fixture
def oracle():
    return Evaluator(Oracle(), Grid())


@pytest.fixture
def quick(monkeypatch, few_points):
    """Scores from few points and images, whatever the level: of the first five or three values of each factor."""
    subgrid = metrics.subgrid

    def few(sizes, level="full"):
        first = slice(5 if level == "full" else 3)
        indices = np.arange(math.prod(sizes)).reshape(sizes)[tuple(first for _ in sizes)]
        return indices.ravel(), subgrid(indices.shape)[1]

    monkeypatch.setattr(metrics, "subgrid", few)


def test_latents_are_described_alike_whatever_the_seed_and_dead_ones_are_not_named(oracle):
    latents, again = oracle.describe(), Evaluator(Oracle(), Grid(), seed=7).describe()
    assert latents.kld == again.kld and np.array_equal(latents.information, again.information)
    assert [latents.factor(j).split("  ")[0] for j in range(3)] == ["x", "size", ""]
    assert latents.kld[2] < 1e-6 < 1 < min(latents.kld[:2]) and latents.information[2].max() < 1e-6


def test_traversals_go_the_way_in_which_x_y_and_scale_grow(oracle):
    assert oracle.describe().signs[:2] == [1, 1]
    encode = oracle.net.encode
    oracle.net.encode = lambda x: (-encode(x)[0], encode(x)[1])
    assert oracle.describe().signs[:2] == [-1, -1]
    oracle.roles = (None, "x", "y")  # the size of something else
    assert oracle.describe().signs[:2] == [-1, 1]


def test_scores_are_written_and_drawn_where_asked(tmp_path, quick):
    oracle = Evaluator(Oracle(), Turning())
    latents = oracle.describe()
    full = oracle.score("full", tmp_path / "full", {"iter": 7}, latents, draw=False)
    fast = oracle.score("fast", tmp_path / "fast", {}, latents)
    assert json.loads((tmp_path / "full" / "metrics.json").read_text())["mig"] == full["mig"] > 0.4
    assert full["settings"]["factor_sizes"] == [4, 5, 5] and fast["settings"]["factor_sizes"] == [3, 3, 3]
    assert full["active_latents"] == 2 and full["settings"]["iter"] == 7
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["metrics.json"]
    drawn = {path.stem for path in (tmp_path / "fast").glob("*.png")}
    assert drawn == {"total_effect", "mutual_information"}  # a latent response would need all roles


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each drawing function that the evaluator calls, by its name; nothing is drawn."""
    seen = {}
    for name in ("traversals", "animation", "reconstruction", "factors"):
        monkeypatch.setattr(evaluator.pictures, name, lambda *args, name=name: seen.update({name: args}))
    monkeypatch.setattr(evaluator.figures, "plane", lambda *args: seen.update(plane=args))
    return seen


def test_all_seeds_are_traversed_from_their_means_in_one_picture(drawn, tmp_path):
    data, latents = Grid(), Latents([3.0, 0.0, 2.0])
    Evaluator(Oracle(), data).draw(tmp_path, latents)
    images, names, x, recon, given, path = drawn["traversals"]
    assert path.name == "traverse.png" and drawn["animation"][-1].name == "traverse.gif"
    assert names == drawn["animation"][1] == ["small", "large"] and given is latents
    assert torch.equal(x, data.batch(torch.tensor([0, 119])))
    grey = images[..., 0, 0, 0]  # 2 seeds, 2 latents (z_0 and z_2), 13 values
    assert torch.allclose(grey[:, 0], torch.sigmoid(torch.linspace(-3, 3, 13)))
    z_0 = torch.tensor([-2.0, 2.0])  # of the two images
    assert torch.allclose(grey[:, 1], torch.sigmoid(z_0)[:, None].expand(-1, 13))
    assert torch.allclose(recon, torch.sigmoid(Oracle().decode(Oracle().encode(x)[0])))
    x, x_recon, _ = drawn["reconstruction"]
    assert x.shape == (20, 1, 64, 64) and torch.equal(x_recon, Oracle().decode(Oracle().encode(x)[0]))
    assert torch.equal(drawn["factors"][1], Oracle().encode(x[:5])[0])
    images, turns, seed, pair, *_ = drawn["plane"]
    assert torch.allclose(images[4, :, 0, 0, 0], torch.sigmoid(torch.linspace(-3, 3, 13)))  # z_0 across
    assert (turns, seed, pair) == ({}, "small", (0, 2))


def test_a_plane_holds_the_codes_of_each_shape_that_turns_at_the_largest_scale(drawn, tmp_path):
    Evaluator(Oracle(), Turning()).draw(tmp_path, Latents([3.0, 2.0, 0.0]))
    turns = drawn["plane"][1]
    assert list(turns) == ["square", "shape 2", "heart", "shape 4", "shape 5"]  # seed images name two
    for shape, codes in enumerate(turns.values()):  # x, and size with a trace of the last y
        expected = [[shape - 2, turn - 1.5 + 0.05 * 5, 1e-4 * 5] for turn in range(4)]
        assert torch.allclose(codes, torch.tensor(expected), atol=1e-5)


def test_data_without_factors_are_drawn_from_two_images_and_not_scored(drawn, tmp_path):
    unknown = Evaluator(Oracle(), Unknown())
    latents = unknown.describe()
    assert latents.information is None and latents.kld[2] < 1e-6
    unknown.draw(tmp_path, latents)
    assert drawn["traversals"][1] == ["image 1", "image 2"] and drawn["plane"][1] == {}
    with pytest.raises(UserError, match="known factors"):
        unknown.score("fast", tmp_path, {}, latents)


def test_factors_without_roles_are_named(tmp_path):
    class Roleless(Grid):
        factor_roles = None

    latents = Evaluator(Oracle(), Roleless()).describe()
    assert latents.factor(0).startswith("x") and latents.sign(0) == 1


def test_codes_are_written_in_order_with_the_factors_of_each_image(oracle, tmp_path):
    oracle.encode(tmp_path / "codes.npz")
    codes = np.load(tmp_path / "codes.npz")
    mu, logvar = Oracle().encode(Grid().batch(torch.arange(120)))
    assert np.array_equal(codes["mu"], mu) and np.array_equal(codes["logvar"], logvar)
    assert codes["mu"].dtype == codes["logvar"].dtype == np.float32
    assert np.array_equal(np.ravel_multi_index(codes["factors"].T, (4, 5, 6)), np.arange(120))
    assert codes["factor_names"].tolist() == ["size", "x", "y"]
    some, _ = encode_all(Oracle(), Grid(), np.array([50, *range(20)]), batch_size=16)
    assert torch.equal(some, mu[[50, *range(20)]])
    Evaluator(Oracle(), Unknown()).encode(tmp_path / "codes.npz")
    assert sorted(np.load(tmp_path / "codes.npz")) == ["logvar", "mu"]


def test_of_many_images_all_are_reconstructed_and_the_first_five_traversed(oracle, drawn, tmp_path, capsys):
    for i in range(7):
        Image.new("L", (9, 9), 10 * i).save(tmp_path / f"{i}.png")
    oracle.draw_files([tmp_path / f"{i}.png" for i in range(7)], tmp_path, Latents([1.0, 0.0, 0.0]))
    x, _, path = drawn["reconstruction"]
    assert x[:, 0, 5, 5].mul(255).round().tolist() == list(range(0, 70, 10))
    assert path.name == "reconstruction_files.png" and torch.equal(drawn["traversals"][2], x[:5])
    assert drawn["traversals"][1] == [f"file {i}" for i in (1, 2, 3, 4, 5)]
    assert "all 7 images, traversals of the first 5" in capsys.readouterr().out


def test_the_page_starts_from_the_seeds_and_eight_more_images_with_the_names_of_latents(tmp_path):
    evaluator = Evaluator(build_net("B", 10, 1, seed=0), Grid())
    latents = Latents([1.0] * 10, ("size", "x"), np.eye(10, 2))
    evaluator.write_page(tmp_path / "explore.html", "a title", latents)
    page = json.loads(re.search(r'\{"title": .*\}', (tmp_path / "explore.html").read_text())[0])
    assert page["title"] == "a title" and len(page["seeds"]) == 10
    mu, _ = evaluator.net.encode(Grid().batch(torch.tensor([0, 119])))
    assert torch.allclose(torch.tensor([seed["mu"] for seed in page["seeds"][:2]]), mu, atol=1e-5)
    assert page["names"] == ["size  100 %", "x  100 %", *[""] * 8]


# From the command line.


@pytest.mark.slow
def test_training_scores_at_its_end_and_is_not_changed_by_it(runs, quick):
    flags = "--max_iter 4 --gather_step 2"
    runs.run("plain", flags, "--display_step 4 --save_output False")
    assert "higgins_paper" in runs.run("scored", flags, "--display_step 2 --metrics fast").stdout
    plain, scored = (read_checkpoint(runs.checkpoint(name)) for name in ("plain", "scored"))
    for key in ("model_states", "optim_states", "generators", "window"):
        assert same(plain[key], scored[key])
    folder = runs.outputs("scored") / "4"
    drawn = "latent_response.png mutual_information.png total_effect.png plane.png traverse.gif explore.html"
    assert set(drawn.split()) <= {path.name for path in folder.iterdir()}
    scores = (folder / "metrics.json").read_bytes()
    (folder / "metrics.json").unlink()
    runs.run("scored", flags, "--metrics fast --save_output no")  # finished before
    assert (folder / "metrics.json").read_bytes() == scores
    runs.run("scored", "--train False --metrics full --save_output no")
    about = json.loads((folder / "metrics.json").read_text())["settings"]
    assert (about["level"], about["iter"]) == ("full", 4) and about["versions"]["scikit-learn"]
    assert same(read_checkpoint(runs.checkpoint("scored")), scored)


def test_what_cannot_be_scored_or_drawn_is_said_before_training(runs, monkeypatch):
    assert "2 latents" in runs.refused("run", "--metrics fast --z_dim 1")
    (runs.folder / "bad.png").write_text("no image")
    for name in ("none.png", "bad.png"):
        assert name in runs.refused("run", "--image", runs.folder / name)
    monkeypatch.setattr("dataset.DSprites.factor_sizes", None)
    assert "known factors" in runs.refused("run", "--metrics fast")
    assert [path.name for path in runs.folder.rglob("*") if path.is_file()] == ["bad.png"]


def test_codes_and_pictures_of_images_are_written_at_the_end_of_a_training_or_without_one(runs, monkeypatch):
    monkeypatch.setattr("dataset.DSprites.__len__", lambda data: 100)
    monkeypatch.setattr(metrics, "subgrid", lambda sizes: (None, np.zeros((100, 5), int)))
    image, codes = runs.folder / "a.png", runs.folder / "codes.npz"
    Image.new("RGB", (80, 80), "white").save(image)
    runs.run("run", "--max_iter 4 --save_output no --image", image, image)
    runs.run("run", "--train False --save_output no --encode", codes, "--image", image)
    names = {path.name for path in (runs.outputs("run") / "4").iterdir()}
    assert names == {"reconstruction_files.png", "traverse_files.png", "traverse_files.gif"}
    solver = runs.solver("run", "--train False")
    mu, _ = solver.net.encode(solver.data.batch(torch.arange(100)))
    assert np.allclose(np.load(codes)["mu"], mu.detach(), atol=1e-5)
