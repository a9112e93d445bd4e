"""What can go wrong, and that nothing is lost by it and no harm done."""

import math
import shutil
import subprocess
import sys

import pytest
import torch

import utils
from helpers import ROOT, Code, Runs, assert_same_run, same
from run.checkpoint import Checkpoints, read_checkpoint
from solver import Solver
from utils import UserError

NO_PICTURES = "--save_output no"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dset_dir):
    """A run of 20 iterations, with checkpoints of 10 and 20: not to be changed."""
    runs = Runs(tmp_path_factory.mktemp("trained"), dset_dir)
    runs.run("run", "--max_iter 20", NO_PICTURES)
    return runs


@pytest.fixture
def copied(trained, tmp_path, dset_dir):
    shutil.copytree(trained.folder, tmp_path / "copy")
    return Runs(tmp_path / "copy", dset_dir)


def test_a_second_training_of_a_run_is_refused_until_the_first_ends_and_changes_nothing(copied):
    first = copied.solver("run", "--max_iter 24", NO_PICTURES)
    before = copied.checkpoint("run").read_bytes()
    for flags in ("", f"--output_dir {copied.folder / 'other'}", "--overwrite True"):
        assert "another process is training run" in copied.refused("run", *flags.split())
    assert copied.checkpoint("run").read_bytes() == before
    assert first.train() == 0
    assert copied.solver("run").iter == 24  # though the first is still there


# Files.


def test_a_file_is_written_whole_or_not_at_all_and_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    with utils.atomic_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(ZeroDivisionError), utils.atomic_file(tmp_path / "a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_training_was_writing_is_removed_by_the_next(copied):
    left = [copied.checkpoint("run", ".last.1f.tmp"), copied.outputs("run") / ".curves.png.2e.tmp"]
    for path in left:
        path.write_bytes(b"half")
    log = copied.outputs("run") / "log.csv"
    whole = log.read_bytes()
    log.write_bytes(whole + b"24,3.5,1.")  # a part of a row
    copied.run("run", "--max_iter 21", NO_PICTURES)
    assert not any(path.exists() for path in left)
    assert log.read_bytes().startswith(whole + b"21,") and b"24,3.5" not in log.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, flags",
    [(2**20, NO_PICTURES), (5000, f"{NO_PICTURES} --gather_step 1 --save_step 100")],  # checkpoint, log
)
def test_no_space_is_one_line_and_the_run_goes_on_from_its_checkpoint(copied, size, flags):
    before = copied.checkpoint("run").read_bytes()
    code = (  # no file may be larger than size: as on a full disk
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "import main; sys.exit(main.main())"
    )
    command = [sys.executable, "-c", code, *copied.command("run", flags)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    error = [line for line in result.stderr.splitlines() if line.startswith("main.py: ")]
    assert result.returncode == 1 and len(error) == 1 and "File too large" in error[0]
    assert "Traceback" not in result.stderr and not list(copied.folder.rglob("*.tmp"))
    assert copied.checkpoint("run").read_bytes() == before
    assert "resumed at iteration 20" in copied.run("run", "--max_iter 24", NO_PICTURES).stdout


def test_folders_that_cannot_be_are_named(runs):
    (runs.folder / "file").write_text("")
    below = runs.folder / "file" / "below"
    for flag in ("--output_dir", "--ckpt_dir"):
        error = runs.refused("run", flag, below)
        assert "Not a directory" in error and str(runs.folder / "file") in error


# Checkpoints.


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_never_takes_its_place(copied, capsys):
    last, before = copied.checkpoint("run"), read_checkpoint(copied.checkpoint("run", "previous"))
    data = last.read_bytes()
    flipped = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    for damaged in (b"", data[: len(data) // 2], data[:-9], flipped):
        last.write_bytes(damaged)
        assert same(Checkpoints(last.parent).load(), before)
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and "last cannot be read" in out
    copied.run("run", "--max_iter 20", NO_PICTURES)
    assert same(read_checkpoint(copied.checkpoint("run", "previous")), before)  # not the damaged file
    copied.run("whole", "--max_iter 20", NO_PICTURES)
    assert_same_run(copied, "whole", "run")
    for which in ("last", "previous"):
        copied.checkpoint("run", which).write_bytes(b"nothing")
    assert "--overwrite True" in copied.refused("run") and last.read_bytes() == b"nothing"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(trained, tmp_path, zipped):
    state = {**read_checkpoint(trained.checkpoint("run")), "more": Code(tmp_path / "marker")}
    torch.save(state, tmp_path / "bad", _use_new_zipfile_serialization=zipped)
    error = trained.refused("other", "--train no", "--ckpt_name", tmp_path / "bad")
    assert "might run code" in error and not (tmp_path / "marker").exists()
    torch.load(tmp_path / "bad", weights_only=False)
    assert (tmp_path / "marker").exists()  # it would have


# Memory and numbers.


def test_too_little_memory_is_one_line(runs, monkeypatch):
    def build(solver, new):
        raise MemoryError

    monkeypatch.setattr(Solver, "build", build)
    assert "out of memory: a smaller --batch_size needs less" in runs.refused("run")


@pytest.mark.parametrize("plant", ["weights", "logvar", "data"])
def test_numbers_that_explode_stop_the_run_with_the_iteration_and_the_checkpoint_stays(
    copied, monkeypatch, plant
):
    before, step = copied.checkpoint("run").read_bytes(), Solver.training_step

    def planting(solver, x):
        if solver.iter == 27:
            with torch.no_grad():
                if plant == "weights":
                    solver.net.encoder[0].weight.fill_(float("nan"))
                elif plant == "logvar":  # exp(1000) is infinite in float32
                    solver.net.encoder[-1].bias[10:] += 1000
                else:
                    x = x * float("inf")
        step(solver, x)

    monkeypatch.setattr(Solver, "training_step", planting)
    display = ["--display_step 27"] if plant == "data" else []  # pictures come before the next row of the log
    assert "loss is not finite since iteration 27" in copied.refused("run", NO_PICTURES, *display)
    assert copied.checkpoint("run").read_bytes() == before


def test_a_weight_that_is_not_finite_stops_the_run_though_the_loss_is(runs):
    solver = runs.solver("run")
    with torch.no_grad():
        solver.net.decoder[0].bias[0] = math.nan
    with pytest.raises(UserError, match="weights or the optimiser's averages are not finite"):
        solver.check_finite()
    solver.locked.close()


def test_an_optimiser_that_overflowed_stops_the_run_though_loss_and_weights_are_finite(runs):
    error = runs.refused("run", "--gamma 9e37", NO_PICTURES)
    assert "averages are not finite" in error and "checkpoints" not in error  # there are none
