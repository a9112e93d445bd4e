"""Evaluator: scores, pictures and codes of a model, called as a notebook would and from the command line."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import same
from evaluation import evaluator, metrics
from evaluation.evaluator import Evaluator
from model import BetaVAE_B
from training.checkpoint import read_checkpoint
from training.log import read_log
from utils import UserError


class Squares:
    """A bright square whose place and size are known, (4, 5, 6) values: 120 images of 64x64."""

    channels, distribution = 1, "bernoulli"
    factor_names, factor_sizes = ("size", "x", "y"), (4, 5, 6)
    fixed_images = {"small": 0, "large": 119}

    def __len__(self):
        return 120

    def batch(self, indices):
        images = torch.zeros(len(indices), 1, 64, 64)
        for image, index in zip(images, indices):
            size, x, y = np.unravel_index(int(index), (4, 5, 6))
            image[0, 8 * y : 8 * y + 4 + 4 * size, 8 * x : 8 * x + 4 + 4 * size] = 1
        return images


class Unknown(Squares):
    factor_names = factor_sizes = None
    fixed_images = {}


class Oracle(torch.nn.Module):
    """Latent 0 holds x, latent 1 size and a trace of y, latent 2 is dead; it decodes to a grey of the value of z_0."""

    def encode(self, x):
        rows, columns = x[:, 0].amax(dim=2), x[:, 0].amax(dim=1)  # B, 64
        size = (rows.sum(dim=1) - 4) / 4
        left, top = columns.argmax(dim=1) / 8, rows.argmax(dim=1) / 8
        mu = torch.stack([left - 2, size - 1.5 + 0.05 * top, 1e-4 * top], dim=1)
        return mu, torch.tensor([-4.0, -4.0, 0.0]).expand_as(mu)

    def decode(self, z):
        return z[:, :1, None, None].expand(-1, 1, 64, 64)


@pytest.fixture
def oracle():
    return Evaluator(Oracle(), Squares())


@pytest.fixture
def quick(monkeypatch):
    """Scores on few images, whatever the level."""

    def few(sizes, level="full"):
        values = [range(0, size, math.ceil(size / 5)) for size in sizes]
        indices = np.arange(math.prod(sizes)).reshape(sizes)[np.ix_(*values)].ravel()
        return indices, np.indices([len(v) for v in values]).reshape(len(sizes), -1).T

    monkeypatch.setattr(metrics, "subgrid", few)
    monkeypatch.setitem(metrics.BOOSTING, "n_estimators", 2)
    monkeypatch.setattr(metrics, "SETTINGS", {
        level: {name: each and {**each, **{part: 200 for part in ("train", "test") if part in each}}
                for name, each in settings.items()}
        for level, settings in metrics.SETTINGS.items()
    })  # fmt: skip


def test_latents_are_named_by_what_they_know_and_dead_ones_are_not(oracle):
    kl, information = oracle.quick_information()
    assert kl[2] < 1e-6 < 1 < kl[:2].min()
    assert information.argmax(axis=1)[:2].tolist() == [1, 0] and information[2].max() < 1e-6
    _, names = oracle.name_latents()
    assert [name.split()[0] for name in names[:2]] == ["x", "size"] and names[2] == ""


def test_one_model_has_one_number_whatever_the_level_the_seed_and_what_was_asked_before(
    oracle, tmp_path, quick
):
    full, fast = (oracle.score(level, tmp_path / level, draw=False) for level in ("full", "fast"))
    oracle.draw(tmp_path)
    again = Evaluator(Oracle(), Squares(), seed=7).score("fast", tmp_path / "again", draw=False)
    assert full["latents"] == fast["latents"] == again["latents"]
    kl, information = oracle.quick_information()
    for j, latent in enumerate(full["latents"]):
        assert latent["kl"] == kl[j] and list(latent["information"].values()) == information[j].tolist()
    assert [latent["top_factor"] for latent in full["latents"]] == ["x", "size", None]
    assert full["latents"][0]["share"] == pytest.approx(information[0].max() / information[0].sum())


def test_scores_are_written_with_what_the_caller_says_of_the_run(oracle, tmp_path, quick, capsys):
    scores = oracle.score("fast", tmp_path / "new" / "folder", {"iter": 7}, draw=False)
    path = tmp_path / "new" / "folder" / "metrics.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(scores))
    assert [each.name for each in path.parent.iterdir()] == ["metrics.json"]
    assert scores["settings"]["iter"] == 7 and scores["settings"]["level"] == "fast"
    printed = capsys.readouterr().out
    assert f"mig                   {scores['mig']:.3f}" in printed and str(path) in printed


def test_pictures_are_the_same_for_a_seed_and_leave_all_random_numbers_alone(tmp_path):
    net, before = BetaVAE_B(), torch.get_rng_state()
    numpy_before = np.random.get_state()[1].tolist()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Evaluator(net, Squares(), seed).draw(tmp_path / name)
    assert torch.equal(before, torch.get_rng_state()) and numpy_before == np.random.get_state()[1].tolist()
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    traversals = [
        f"traverse_{name}.{kind}" for name in ("image", "large", "random", "small") for kind in ("gif", "png")
    ]
    assert files == ["factors.png", "reconstruction.png", *traversals]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "factors.png").read_bytes() != (tmp_path / "c" / "factors.png").read_bytes()


def test_traversals_start_at_the_means_of_the_images_and_reconstructions_are_of_means(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(evaluator.pictures, "traversal",
        lambda images, kld, names, path, seed=None: seen.update({path.stem: (images, kld, seed)}))  # fmt: skip
    monkeypatch.setattr(
        evaluator.pictures, "reconstruction", lambda x, x_recon, path: seen.update(recon=(x, x_recon))
    )
    data = Squares()
    Evaluator(Oracle(), data).draw(tmp_path, kld=[3.0, 2.0, 0.0])
    images, kld, seed = seen["traverse_large"]
    assert kld == [3.0, 2.0, 0.0] and torch.equal(seed, data.batch(torch.tensor([119]))[0])
    assert images[0, :, 0, 0, 0].tolist() == pytest.approx(torch.sigmoid(torch.linspace(-3, 3, 19)).tolist())
    assert (
        images[1:] - torch.sigmoid(torch.tensor(2.0))
    ).abs().max() < 1e-6  # z_0 is the mean of that image, 4 - 2
    assert seen["traverse_random"][2] is None
    x, x_recon = seen["recon"]
    assert x.shape == (20, 1, 64, 64) and torch.equal(x_recon, Oracle().decode(Oracle().encode(x)[0]))


def test_data_without_factors_are_drawn_without_names_and_not_scored(tmp_path):
    looked = Evaluator(Oracle(), Unknown())
    assert looked.draw(tmp_path) is None and (tmp_path / "traverse_image.gif").exists()
    assert looked.quick_information()[1] is None and looked.quick_information()[0][2] < 1e-6
    looked.check("none")
    for level in ("fast", "full"):
        with pytest.raises(UserError, match="known factors"):
            looked.check(level)


def test_codes_are_written_with_the_factors_of_each_image(oracle, tmp_path):
    oracle.encode(tmp_path / "codes.npz")
    codes = np.load(tmp_path / "codes.npz")
    mu, logvar = Oracle().encode(Squares().batch(torch.arange(120)))
    assert np.array_equal(codes["mu"], mu) and np.array_equal(codes["logvar"], logvar)
    assert np.array_equal(np.ravel_multi_index(codes["factors"].T, (4, 5, 6)), np.arange(120))
    assert codes["factor_names"].tolist() == ["size", "x", "y"]
    Evaluator(Oracle(), Unknown()).encode(tmp_path / "codes.npz")
    assert sorted(np.load(tmp_path / "codes.npz")) == ["logvar", "mu"]


def test_images_of_the_user_are_reconstructed_and_traversed(oracle, tmp_path):
    image = np.zeros((128, 128, 3), np.uint8)
    image[:16, 32:48] = 255  # a square of side 8 at x = 2, once it is halved
    for name in ("a.png", "b.png"):
        Image.fromarray(image).save(tmp_path / name)
    oracle.draw_files([tmp_path / "a.png", str(tmp_path / "b.png")], tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "reconstruction_files.png",
        *(f"traverse_file_{i}.{kind}" for i in (1, 2) for kind in ("png", "gif")),
    }
    x = evaluator.read_image(tmp_path / "a.png", 3)
    assert (
        x.shape == (3, 64, 64)
        and x.dtype == torch.float32
        and x[:, :7, 17:23].min() == 1
        and x[:, 12:].max() == 0
    )


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "fifo"])
def test_an_image_that_cannot_be_read_is_named_and_nothing_is_written(oracle, tmp_path, kind):
    import os

    path = tmp_path / "bad.png"
    {"missing": lambda p: None, "folder": os.mkdir, "text": lambda p: p.write_text("no"), "fifo": os.mkfifo}[
        kind
    ](path)
    with pytest.raises(UserError, match="bad.png"):
        oracle.draw_files([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# From the command line.

SCORES = [
    "higgins_paper",
    "higgins",
    "factor_vae",
    "mig",
    "sap",
    "modularity",
    "active_latents",
    "total_correlation",
]


def test_one_command_scores_and_draws_a_checkpoint(runs, quick):
    runs.run("run", "--max_iter", 2, "--display_step", 2)
    folder = runs.outputs("run") / "2"
    assert not (folder / "metrics.json").exists()  # --metrics none is the default
    trained = runs.checkpoint("run").read_bytes()
    output = runs.run("run", "--train", "False", "--metrics", "full").stdout
    scores = json.loads((folder / "metrics.json").read_text())
    for name in SCORES:
        line = next(line for line in output.splitlines() if line.split()[0] == name)
        assert float(line.split()[1]) == pytest.approx(scores[name], abs=5e-4)
    assert (scores["settings"]["level"], scores["settings"]["iter"]) == ("full", 2)
    assert scores["settings"]["versions"]["scikit-learn"] and len(scores["latents"]) == 10
    written = {path.name for path in folder.iterdir()}
    assert {"latent_response.png", "mutual_information.png", "traverse_heart.gif"} <= written
    assert (runs.outputs("run") / "capacity.png").exists() and runs.checkpoint("run").read_bytes() == trained


def test_training_scores_at_its_end_and_is_not_changed_by_it(runs, quick):
    flags = ("--max_iter", 4, "--gather_step", 2)
    runs.run("plain", *flags, "--display_step", 4, "--save_output", "False")
    output = runs.run("scored", *flags, "--display_step", 2, "--metrics", "fast").stdout
    assert "higgins_paper" in output and "not computed" in output
    plain, scored = (read_checkpoint(runs.checkpoint(name)) for name in ("plain", "scored"))
    for key in ("model_states", "optim_states", "generators", "window"):
        assert same(plain[key], scored[key])
    path = runs.outputs("scored") / "4" / "metrics.json"
    scores = path.read_bytes()
    path.unlink()
    assert (
        "higgins_paper" in runs.run("scored", *flags, "--metrics", "fast", "--save_output", "no").stdout
    )  # finished before
    assert path.read_bytes() == scores
    assert read_log(runs.outputs("scored") / "log.csv")["iter"] == [2, 4]


def test_what_cannot_be_scored_is_said_before_training(runs, monkeypatch):
    error = runs.run("run", "--metrics", "fast", "--z_dim", 1, status=1).stderr
    assert error.count("\n") == 1 and "2 latents" in error
    monkeypatch.setattr("dataset.DSprites.factor_sizes", None)
    error = runs.run("run", "--metrics", "fast", status=1).stderr
    assert error.count("\n") == 1 and "known factors" in error and "--metrics none" in error
    assert {path.name for path in runs.folder.rglob("*") if path.is_file()} == {"lock"}
