"""What can go wrong, and that nothing is lost by it and no harm done."""

import copy
import errno
import fcntl
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import utils
from helpers import ROOT, Runs, assert_same_run, same
from solver import Solver
from training.checkpoint import Checkpoints, read_checkpoint
from training.lock import lock_holder
from training.log import read_log
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
def test_a_second_training_of_a_run_is_refused_by_the_pid_of_the_first_and_changes_nothing(copied):
    first = copied.start("run", "--max_iter 1e6 --save_step 1e6 --display_step 1e6 --gather_step 1e6")
    holder, other = f"pid {first.pid} on {os.uname().nodename}", copied.folder / "other"
    try:
        while lock_holder(copied.outputs("run")) != holder:
            assert first.poll() is None
        first.send_signal(signal.SIGSTOP)  # it holds the lock, and writes nothing meanwhile
        before = copied.checkpoint("run").read_bytes()
        afresh = "--ckpt_name none --overwrite True"
        for flags in ("", f"--ckpt_dir {other}", f"--output_dir {other}", afresh):
            assert holder in copied.refused("run", *flags.split())
        assert copied.checkpoint("run").read_bytes() == before
    finally:
        first.kill()
        first.communicate()
    assert lock_holder(copied.outputs("run")) is None  # it dies with its process
    copied.run("run", "--max_iter 21", NO_PICTURES)


def test_a_second_solver_in_one_process_is_refused_and_the_first_keeps_the_lock_until_it_ends(runs):
    first = runs.solver("run", "--max_iter 8", NO_PICTURES)
    with pytest.raises(UserError, match=f"pid {os.getpid()} on"):
        runs.solver("run")
    assert lock_holder(runs.outputs("run")) is not None
    assert first.train() == 0
    assert lock_holder(runs.outputs("run")) is None
    assert runs.solver("run").iter == 8  # though the first is still there


@pytest.mark.slow
def test_where_the_file_system_knows_no_locks_a_run_trains_through_and_says_so_at_the_start(
    runs, monkeypatch
):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    output = runs.run("run", "--max_iter 20").stdout
    assert output.count("without locks") == 2 and output.index("without locks") < output.index("a new run")
    assert "finished at iteration 20" in output and (runs.outputs("run") / "20" / "factors.png").exists()


def test_links_planted_in_a_runs_folders_lead_nowhere(runs):
    victim = runs.folder / "victim"
    victim.write_text("precious")
    runs.checkpoint("run").parent.mkdir(parents=True)
    for name in ("last", "previous", "lock.pid", ".last.tmp"):
        runs.checkpoint("run", name).symlink_to(victim)
    runs.run("run", NO_PICTURES, "--ckpt_name none --overwrite True --max_iter 20")
    assert victim.read_text() == "precious"
    runs.checkpoint("run", "lock").unlink()
    runs.checkpoint("run", "lock").symlink_to(victim)
    assert "lock" in runs.refused("run") and victim.read_text() == "precious"


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
    left = [copied.checkpoint("run", ".last.1f.tmp"), copied.outputs("run") / ".lock.pid.2e.tmp"]
    for path in left:
        path.write_bytes(b"half")
    copied.run("run", "--max_iter 21", NO_PICTURES)
    assert not any(path.exists() for path in left)


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, flags, file",
    [
        (2**20, NO_PICTURES, "ckpt/run/last"),
        (5000, f"{NO_PICTURES} --gather_step 1 --save_step 100", "out/run/log.csv"),
    ],
)
def test_no_space_is_one_line_with_the_file_and_the_run_goes_on_from_its_checkpoint(
    copied, size, flags, file
):
    before = copied.checkpoint("run").read_bytes()
    code = (  # no file may be larger than size: as on a full disk
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "import main; sys.exit(main.main())"
    )
    command = [sys.executable, "-c", code, *copied.command("run", flags)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    error = [line for line in result.stderr.splitlines() if line.startswith("main.py: ")]
    assert result.returncode == 1 and len(error) == 1 and "File too large" in error[0] and file in error[0]
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
    assert error.startswith(f"main.py: {below} cannot be written to") and "Traceback" not in error


@pytest.mark.parametrize("folder, file", [("out", "log.csv"), ("ckpt", "last")])
def test_a_folder_that_is_removed_during_a_run_is_one_line_with_the_file(copied, monkeypatch, folder, file):
    step = Solver.training_step

    def removing(solver, x):
        step(solver, x)
        if solver.iter == 23:
            shutil.rmtree(copied.folder / folder / "run")

    monkeypatch.setattr(Solver, "training_step", removing)
    error = copied.refused("run", NO_PICTURES)
    assert "No such file or directory" in error and file in error


def test_a_log_that_is_no_table_is_one_line(copied):
    for i, text in enumerate((b"", b"iter,a\n1,x\n", bytes(range(256)), b"a" * 200_000)):
        (copied.outputs("run") / "log.csv").write_bytes(text)
        with pytest.raises(UserError, match="damaged"):
            read_log(copied.outputs("run") / "log.csv")
        assert "resumed" in copied.run("run", "--max_iter", 21 + i, NO_PICTURES).stdout
        assert read_log(copied.outputs("run") / "log.csv")["iter"][-1] == 21 + i


# Checkpoints.


def structure(data, path):
    """The places in a zip file that are no member's content: headers, padding and the list at its end."""
    inside = np.zeros(len(data), bool)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extra = (int.from_bytes(data[info.header_offset + at :][:2], "little") for at in (26, 28))
            start = info.header_offset + 30 + name + extra
            inside[start : start + info.compress_size] = True
    return np.flatnonzero(~inside)


@pytest.mark.slow
def test_of_500_flipped_bytes_each_is_found_or_changes_nothing(trained, tmp_path):
    path, rng = trained.checkpoint("run"), random.Random(1)
    data, true, found = path.read_bytes(), read_checkpoint(path), 0
    places = [rng.randrange(len(data)) for _ in range(250)] + rng.choices(structure(data, path), k=250)
    flips = [(place, rng.randrange(1, 256)) for place in places]
    flips.append((data.index(b"PK\x01\x02") + 38, 0x10))  # marks the first entry as a folder
    for place, bits in flips:
        flipped = bytearray(data)
        flipped[place] ^= bits
        (tmp_path / "last").write_bytes(flipped)
        try:
            assert same(read_checkpoint(tmp_path / "last"), true), place
        except UserError as error:
            assert "\n" not in str(error)
            found += 1
    assert found > 240  # those in the content


def test_a_checkpoint_cut_at_any_percent_gives_way_to_the_one_before(copied, capsys):
    last, before = copied.checkpoint("run"), read_checkpoint(copied.checkpoint("run", "previous"))
    data = last.read_bytes()
    for percent in range(0, 100, 20):
        last.write_bytes(data[: len(data) * percent // 100])
        assert same(Checkpoints(last.parent).load(), before)
        out = capsys.readouterr().out
        assert out.count("\n") == 2 and "cannot be read" in out and "previous of iteration 10" in out
    copied.run("whole", "--max_iter 24", NO_PICTURES)
    copied.run("run", "--max_iter 24", NO_PICTURES)
    assert_same_run(copied, "whole", "run")  # and no damaged file took the place of previous
    for which in ("last", "previous"):
        copied.checkpoint("run", which).write_bytes(b"nothing")
    assert "--ckpt_name none" in copied.refused("run") and last.read_bytes() == b"nothing"


def test_what_is_no_file_is_no_checkpoint(copied):
    os.mkfifo(copied.folder / "pipe")
    for name in ("/dev/zero", copied.folder / "pipe", copied.folder):
        assert "it is not a file" in copied.refused("other", "--ckpt_name", name)
    for file in (copied.checkpoint("run"), copied.outputs("run") / "log.csv"):
        file.unlink()
        os.mkfifo(file)
    assert "resumed at iteration 10" in copied.run("run", "--max_iter 20", NO_PICTURES).stdout
    assert read_checkpoint(copied.checkpoint("run"))["iter"] == 20


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


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused_before_it_takes_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**20))
    with pytest.raises(UserError, match="not as torch.save writes it"):
        read_checkpoint(tmp_path / "bomb")


@pytest.mark.parametrize(
    "name, value",
    [
        ("iter", "9"),
        ("optim_states", 3),
        ("optim_states.optim.state", {}),
        ("optim_states.optim.state.0.exp_avg", torch.zeros(1)),
        ("optim_states.optim.param_groups", [{"params": [1]}]),  # whole, but of another network
        ("arguments", {}),
        ("arguments.z_dim", 11),
        ("arguments.z_dim", [1]),
        ("arguments.gamma", None),
        ("arguments.lr", "1"),
        ("arguments.lr", -1),
        ("arguments.lr", float("nan")),
        ("arguments.beta1", 1),
        ("arguments.batch_size", 0),
        ("arguments.C_stop_iter", 0),
        ("arguments.z_dim", -3),
        ("arguments.z_dim", 2**62),
        ("arguments.z_dim", 10.5),
        ("arguments.model", [1]),
        ("arguments.model", None),
        ("generators.noise", torch.zeros(3, dtype=torch.uint8)),
        ("window.sums", torch.zeros(3, dtype=torch.float64)),
        ("data", ["x"]),
        ("model_states.net.decoder.2.bias", torch.full((256,), float("nan"))),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line_or_drawn_without_what_is_wrong(
    trained, tmp_path, name, value
):
    state = part = copy.deepcopy(read_checkpoint(trained.checkpoint("run")))
    *keys, last = name.split(".", 2 if "net" in name else 9)
    for key in keys:
        part = part[int(key) if key.isdecimal() else key]
    part[last] = value
    torch.save(state, tmp_path / "bad")
    bad = ("--overwrite yes --ckpt_name", tmp_path / "bad")
    trained.refused("other", *bad)
    if name.startswith("optim_states"):  # weights can be drawn
        trained.run("other", "--train no", NO_PICTURES, *bad)
    else:
        trained.refused("other", "--train no", *bad)


# Errors.


def test_an_error_of_the_program_keeps_its_traceback_and_that_of_a_user_shows_it_when_asked_to(
    runs, monkeypatch
):
    for error in (KeyError("iter"), RuntimeError("shapes")):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr("training.run.RunFolder.load", lambda folder: (_ for _ in ()).throw(error))
            runs.run("run")
    monkeypatch.setenv("BETA_VAE_DEBUG", "1")
    error = runs.run("run", "--train no", status=1).stderr
    assert "Traceback" in error and "training/run.py" in error and "main.py: --train False needs" in error


def test_too_little_memory_is_one_line(runs, monkeypatch):
    monkeypatch.setattr(Solver, "build", lambda solver: torch.empty(2**50))
    assert "out of memory: a smaller --batch_size needs less" in runs.refused("run")


@pytest.mark.slow
@pytest.mark.parametrize("closed, name", [("", "\u65e5\u672c"), ("2>&-", "\udce9"), ("<&- >&- 2>&-", "a")])
def test_a_name_that_the_console_cannot_print_and_a_closed_one_do_not_stop_a_run(runs, closed, name):
    flags = " ".join(runs.command(name, "--max_iter 2", NO_PICTURES))
    command = f"PYTHONIOENCODING=cp1252 {sys.executable} main.py {flags} {closed}"
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert read_checkpoint(runs.checkpoint(name))["iter"] == 2


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
    solver.folder.release()


def test_an_optimiser_that_overflowed_stops_the_run_though_loss_and_weights_are_finite(runs):
    error = runs.refused("run", "--gamma 9e37", NO_PICTURES)
    assert "averages are not finite" in error and "checkpoints" not in error  # there are none


def test_iterations_beyond_2_to_the_31_go_on_with_the_right_log_epoch_and_C(copied):
    start = 2**31 + 5
    state = {**read_checkpoint(copied.checkpoint("run")), "iter": start}
    torch.save(state, copied.checkpoint("run"))
    copied.run("run", f"--max_iter {start + 10} --gather_step 2", NO_PICTURES)
    log = read_log(copied.outputs("run") / "log.csv")
    assert log["iter"][-6:] == [start + i for i in (1, 3, 5, 7, 9, 10)]  # each multiple of 2, and the end
    assert log["C"][-1] == 25
    solver = copied.solver("run", "--train no")
    solver.batches[solver.iter]
    assert solver.batches.epoch == (start + 9) // (737280 // 8)
