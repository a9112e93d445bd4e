"""The scripts of the experiments in misc/."""

import os

import pytest

from evaluation import study
from helpers import ROOT
from misc import compare, diagnose_collapse
from viz import dashboard


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


RUNS = [str(ROOT / "misc" / "runs" / name) for name in ("dsprites_B_restart_seed4", "dsprites_B_start10")]


def test_a_run_is_read_from_its_first_row_below_a_loss_to_its_last():
    kl, recon, iteration = compare.read_run(ROOT / "misc" / "runs" / "dsprites_B_restart_seed4", 100)
    assert max(recon) <= 100 and (round(recon[-1], 1), round(kl[-1], 1), iteration) == (43.9, 15.3, 60_000)


def test_runs_are_compared_in_one_picture(tmp_path):
    assert compare.main([*RUNS, "--out", str(tmp_path / "new" / "compare.png")]) == 0
    assert (tmp_path / "new" / "compare.png").stat().st_size > 10_000


def test_a_pipe_in_a_runs_folder_is_not_waited_for(tmp_path, capsys):
    pipes = [tmp_path / name for name in ("log.csv", "args.json", "1/metrics.json")]
    (tmp_path / "1").mkdir()
    for pipe in pipes:
        os.mkfifo(pipe)
    for program in (compare, dashboard):
        assert program.main([str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert f"{program.__name__.split('.')[-1]}" in error and error.count("\n") == 1
    assert study.iterations(tmp_path) == 0
    pipes[0].unlink()
    pipes[0].write_text("iter,recon_loss,total_kld\n1,2,3\n")
    assert study.read_numbers(tmp_path) and study.read_numbers(tmp_path, "full") is None


@pytest.mark.parametrize("flags", ["--labels one", "--to_recon 1", "--out picture", "none", "other"])
def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.csv").write_text("iter,loss\n1,2\n")
    try:
        status = compare.main([*(RUNS if "--" in flags else []), *flags.split()])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status in (1, 2) and error.startswith("compare.py: ") and error.count("\n") == 1
