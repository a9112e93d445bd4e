"""What can go wrong, and that nothing is lost by it and no harm done."""

import math
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import utils
from helpers import ROOT, Runs, assert_same_run, same
from run.checkpoint import Checkpoints, read_checkpoint
from run.log import read_log
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


# Two at once.


@pytest.mark.slow
def test_a_second_training_of_a_run_is_refused_and_changes_nothing(copied):
    first = copied.start("run", "--max_iter 1e6 --save_step 1e6 --display_step 1e6 --gather_step 1")
    try:
        wait_for_row(copied.outputs("run") / "log.csv", 21, first)
        first.send_signal(signal.SIGSTOP)  # it holds the lock, and writes nothing meanwhile
        before = copied.checkpoint("run").read_bytes()
        for flags in ("", f"--output_dir {copied.folder / 'other'}", "--overwrite True"):
            assert "another process is training run" in copied.refused("run", *flags.split())
        assert copied.checkpoint("run").read_bytes() == before
    finally:
        first.kill()
        first.communicate()
    copied.run("run", "--max_iter 21", NO_PICTURES)  # the lock dies with its process


def wait_for_row(log, iteration, process):
    while f"\n{iteration}," not in log.read_text():
        assert process.poll() is None
        time.sleep(0.05)


def test_a_second_solver_in_one_process_is_refused_until_the_first_ends(runs):
    first = runs.solver("run", "--max_iter 8", NO_PICTURES)
    with pytest.raises(UserError, match="another process is training"):
        runs.solver("run")
    assert first.train() == 0
    assert runs.solver("run").iter == 8  # though the first is still there


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
    copied.run("run", "--max_iter 21", NO_PICTURES)
    assert not any(path.exists() for path in left)


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
    error = runs.run("run", "--dset_dir", below, status=1).stderr
    assert "Not a directory" in error and "Traceback" not in error


def test_a_log_that_is_no_table_is_one_line_and_the_run_goes_on(copied):
    for i, text in enumerate((b"", b"a,b\n1,x\n", bytes(range(256)))):
        (copied.outputs("run") / "log.csv").write_bytes(text)
        with pytest.raises(UserError, match="damaged"):
            read_log(copied.outputs("run") / "log.csv")
        assert "resumed" in copied.run("run", "--max_iter", 21 + i, NO_PICTURES).stdout
        assert read_log(copied.outputs("run") / "log.csv")["iter"][-1] == 21 + i


# Checkpoints.


def test_a_flipped_byte_of_the_weights_is_found(trained, tmp_path):
    data = bytearray(trained.checkpoint("run").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "last").write_bytes(data)
    with pytest.raises(UserError, match="checksum of .* is wrong"):
        read_checkpoint(tmp_path / "last")


def test_a_checkpoint_cut_at_any_percent_gives_way_to_the_one_before(copied, capsys):
    last, before = copied.checkpoint("run"), read_checkpoint(copied.checkpoint("run", "previous"))
    data = last.read_bytes()
    for percent in range(0, 100, 20):
        last.write_bytes(data[: len(data) * percent // 100])
        assert same(Checkpoints(last.parent).load(), before)
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and "last cannot be read" in out
    copied.run("run", "--max_iter 20", NO_PICTURES)
    assert same(read_checkpoint(copied.checkpoint("run", "previous")), before)  # not the damaged file
    copied.run("whole", "--max_iter 20", NO_PICTURES)
    for name in ("whole", "run"):
        copied.run(name, "--max_iter 24", NO_PICTURES)
    assert_same_run(copied, "whole", "run")
    for which in ("last", "previous"):
        copied.checkpoint("run", which).write_bytes(b"nothing")
    assert "--overwrite True" in copied.refused("run") and last.read_bytes() == b"nothing"


class Code:
    """Pickled, it makes a file as it is loaded: a marker that it was run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(trained, tmp_path, zipped):
    state = {**read_checkpoint(trained.checkpoint("run")), "more": Code(tmp_path / "marker")}
    torch.save(state, tmp_path / "bad", _use_new_zipfile_serialization=zipped)
    error = trained.refused("other", "--train no", "--ckpt_name", tmp_path / "bad")
    assert "might run code" in error and not (tmp_path / "marker").exists()
    torch.load(tmp_path / "bad", weights_only=False)
    assert (tmp_path / "marker").exists()  # it would have


def test_the_same_settings_with_other_images_are_refused_but_drawn(copied, monkeypatch):
    state = {**read_checkpoint(copied.checkpoint("run")), "data": "dSprites, official, checksum 00000000"}
    torch.save(state, copied.checkpoint("run"))
    assert "was made with dSprites, official" in copied.refused("run")
    copied.run("run", "--train no", NO_PICTURES)


# Errors.


def test_an_error_of_the_program_keeps_its_traceback(runs, monkeypatch):
    for error in (KeyError("iter"), RuntimeError("shapes")):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr("run.folder.RunFolder.load", lambda folder: (_ for _ in ()).throw(error))
            runs.run("run")


def test_too_little_memory_is_one_line(runs, monkeypatch):
    def build(solver, new):
        raise MemoryError

    monkeypatch.setattr(Solver, "build", build)
    assert "out of memory: a smaller --batch_size needs less" in runs.refused("run")


# Numbers.


def test_a_data_set_smaller_than_a_batch_is_an_error(runs):
    assert "fewer than one batch" in runs.refused("run", "--batch_size", 10**6)


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
    for flags in ("", "--display_step 27"):  # pictures come before the next row of the log
        assert "loss is not finite since iteration 27" in copied.refused("run", NO_PICTURES, *flags.split())
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


def test_iterations_beyond_2_to_the_31_go_on_with_the_right_log_and_C(copied):
    start = 2**31 + 5
    state = {**read_checkpoint(copied.checkpoint("run")), "iter": start}
    torch.save(state, copied.checkpoint("run"))
    copied.run("run", f"--max_iter {start + 10} --gather_step 2", NO_PICTURES)
    log = read_log(copied.outputs("run") / "log.csv")
    assert log["iter"][-6:] == [start + i for i in (1, 3, 5, 7, 9, 10)]  # each multiple of 2, and the end
    assert log["C"][-1] == 25
