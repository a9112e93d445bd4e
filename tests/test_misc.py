"""The scripts of misc/: runs beside published results, and what no score sees in a model of dSprites."""

import re

import numpy as np
import pytest
import torch

from dataset import DSprites
from helpers import ROOT
from misc import compare, shapes
from model import BetaVAE_H
from prepare.sets import find_dsprites


def test_a_run_is_drawn_from_its_first_row_below_a_loss_or_refused_in_one_line(tmp_path, capsys):
    run, picture = ROOT / "misc" / "runs" / "dsprites_H_modelB", tmp_path / "new" / "compare.png"
    kl, recon, iteration = compare.read_run(run, 100)
    assert max(recon) <= 100 and (round(recon[-1], 1), round(kl[-1], 1), iteration) == (78.9, 12.3, 20_000)
    assert compare.main([str(run), "--results", "other:15.4:35.6", "--out", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    assert compare.main([str(run), "--to_recon", "1", "--out", str(picture)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compare.py: ")


@pytest.mark.parametrize("shape, fold", list(enumerate(shapes.FOLDS.values())))
def test_the_orientation_of_an_image_is_that_of_its_shape_wherever_it_is(dset_dir, shape, fold):
    data, steps = DSprites(*find_dsprites(dset_dir)), np.arange(40)
    for x, y in ((16, 16), (3, 29)):
        found = shapes.orientation(shapes.images(data, [shape, 5, steps, x, y]), fold).numpy()
        error = (found - found[0] + 360 / 39 * steps) % (360 / fold)  # turned against the clock
        assert np.minimum(error, 360 / fold - error).max() < 3  # of pixels


def test_a_model_of_colour_images_is_refused_in_one_line(dset_dir, tmp_path, capsys):
    torch.save({"iter": 1, "model_states": {"net": BetaVAE_H(5, 3).state_dict()}}, tmp_path / "last")
    assert shapes.main([str(tmp_path / "last"), "--dset_dir", str(dset_dir)]) == 1
    assert "colour images" in capsys.readouterr().err


@pytest.mark.slow
def test_position_turns_nothing_in_the_recipes_weights_and_no_other_latent_knows_it(dset_dir, capsys):
    weights = [str(ROOT / "misc" / f"dsprites_{name}.pt") for name in "SB"]
    assert shapes.main([*weights, "--dset_dir", str(dset_dir)]) == 0
    recipe, discs = capsys.readouterr().out.split("dsprites_B.pt")
    turns = [[float(degrees) for degrees in re.findall(r"by ([\d.]+) of", part)] for part in (recipe, discs)]
    assert len(turns[0]) == 4 and max(turns[0]) < 3 and max(turns[1]) > 10  # ellipses of the other model turn
    assert all(float(effect) < 0.1 for effect in re.findall(r"z_\d ([\d.]+)", recipe))
    assert float(re.search(r"hearts decoded from the mean: ([\d.]+)", recipe)[1]) < 26
