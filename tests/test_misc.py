"""The scripts of the experiments in misc/."""

import sys

import pytest

from helpers import ROOT
from misc import compare, diagnose_collapse


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
