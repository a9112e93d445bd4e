"""The scripts of the experiments in misc/."""

import sys

import pytest
import torch

from helpers import ROOT
from misc import compare, diagnose_collapse, trials


@pytest.mark.slow
def test_the_weights_that_come_with_the_repository_have_the_dead_units_that_capacity_md_tells_of(
    dset_dir, capsys
):
    weights = ROOT / "misc" / "dsprites_B_smoothed.pt"
    assert diagnose_collapse.main([str(weights), "--batches", "2", "--dset_dir", str(dset_dir)]) == 0
    output = capsys.readouterr().out
    assert "iteration 150,000, 2 batches of 64" in output and "--delta 0: slope" in output
    assert "dead units of the encoder: 0 of 32, 18 of 32, 26 of 32" in output


def test_a_checkpoint_of_another_objective_is_one_line(dset_dir, capsys):
    weights = ROOT / "misc" / "dsprites_B.pt"
    assert diagnose_collapse.main([str(weights), "--dset_dir", str(dset_dir)]) == 1
    assert "is not of a run with --objective B on dSprites" in capsys.readouterr().err


class Ellipses:
    """Sixty-four images, in the form that trials take: an ellipse each, at another place."""

    def __init__(self):
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        at = torch.arange(64)[:, None, None]
        self.images = (((x - at) ** 2 + 2 * (y - 63 + at) ** 2) < 150)[:, None].float()

    def __len__(self):
        return 64

    def batch(self, indices):
        return self.images[indices]


def test_a_trial_continues_the_decoder_of_another_with_a_new_encoder():
    """A.5TC after S1a, both cut to a few iterations; latents 0 to 2 count as active."""
    device, data = torch.device("cpu"), Ellipses()
    first = trials.Trial(trials.ramp(1, 10), data, device)
    assert not first.advance() and first.advance()
    ramp = first.result() | {"kl": [1.0] * 3 + [0.0] * 7}
    assert all(weight.isfinite().all() for weight in ramp["net"].values())

    spec = {**trials.TRIALS["A.5TC"](), "opened": 5}
    trial = trials.Trial(spec, data, device, ramp)
    assert torch.equal(trial.net.decoder[2].weight, ramp["net"]["decoder.2.weight"])
    assert not torch.equal(trial.net.encoder[0].weight, ramp["net"]["encoder.0.weight"])
    inactive = trial.net.decoder[0].weight[:, 3:]
    assert not inactive.any()  # the decoder hears nothing of them
    trial.advance()
    assert 0 < inactive.abs().max() < 0.02  # five steps of 1e-3
    trial.advance()
    assert inactive.std() > 0.2  # reinitialised


def test_runs_are_compared_in_one_picture(tmp_path, monkeypatch, capsys):
    def status(*flags):
        out = tmp_path / "new" / "compare.png"
        monkeypatch.setattr(sys, "argv", ["compare.py", "--out", str(out), *map(str, flags)])
        return compare.main()

    runs = [ROOT / "misc" / "runs" / name for name in ("dsprites_B", "dsprites_B_start10")]
    assert status(*runs) == 0 and (tmp_path / "new" / "compare.png").stat().st_size > 10_000
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.csv").write_text("iter,loss\n1,2\n")
    wrongs = [
        [tmp_path / "other"],
        [tmp_path],
        [*runs, "--labels", "one"],
        [*runs, "--to_recon", "1"],
        [*runs, "--out", "picture"],
    ]
    capsys.readouterr()
    for wrong in wrongs:
        assert status(*wrong) == 1
        error = capsys.readouterr().err
        assert error.startswith("compare.py: ") and error.count("\n") == 1
