"""What can go wrong, and that nothing is lost by it and no harm done."""

import copy
import errno
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

import crash
import utils
from helpers import ROOT, Runs, same, wait_for
from training.checkpoint import Checkpoints, read_checkpoint
from training.lock import lock_holder, lock_run
from training.log import read_log
from utils import UserError

# Two at once.


def files(folder):
    return {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file() and "lock" not in p.name
    }


def test_a_second_training_of_a_run_is_refused_by_the_pid_of_the_first_and_changes_nothing(runs):
    first = runs.start("run", "--max_iter 1e6 --save_step 1e6 --display_step 1e6 --gather_step 1e6")
    wait_for(runs.outputs("run") / "args.json", first)
    holder = f"pid {first.pid} on {os.uname().nodename}"
    other = runs.folder / "other"
    first.send_signal(signal.SIGSTOP)  # it holds the lock, and writes nothing meanwhile
    try:
        before = files(runs.folder)
        for flags in (
            "",
            f"--ckpt_dir {other}",
            f"--output_dir {other}",
            "--ckpt_name none --overwrite True",
        ):
            assert holder in runs.refused("run", *flags.split())
        assert files(runs.folder) == before
        assert lock_holder(runs.outputs("run")) == lock_holder(runs.checkpoint("run").parent) == holder
    finally:
        first.kill()
        first.communicate()
    assert lock_holder(runs.outputs("run")) is None  # it dies with its process
    runs.run("run", "--max_iter 8")


def test_a_second_solver_in_one_process_is_refused_and_the_first_keeps_the_lock_until_it_ends(runs):
    first = runs.solver("run", "--max_iter 8 --save_output no")
    with pytest.raises(UserError, match=f"pid {os.getpid()} on"):
        runs.solver("run")
    assert lock_holder(runs.outputs("run")) is not None
    assert first.train() == 0
    assert lock_holder(runs.outputs("run")) is None
    assert runs.solver("run").iter == 8  # though the first is still there


def test_a_child_does_not_keep_the_lock_of_a_process_that_is_gone(tmp_path):
    reader, writer = os.pipe()
    if not (first := os.fork()):
        held = lock_run(tmp_path)
        if not (child := os.fork()):
            signal.pause()
        os.write(writer, f"{child}".encode())
        signal.pause()
        os._exit(held is None)
    child = int(os.read(reader, 20))
    try:
        assert lock_holder(tmp_path) == f"pid {first} on {os.uname().nodename}"
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        os.kill(child, 0)  # is there
        assert lock_holder(tmp_path) is None
        lock_run(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reader), os.close(writer)
    assert lock_holder(tmp_path / "nothing") is None


def test_where_the_file_system_knows_no_locks_a_run_trains_through_and_says_so_at_the_start(
    runs, monkeypatch
):
    import fcntl

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    output = runs.run("run").stdout
    assert output.count("without locks") == 2 and output.index("without locks") < output.index("a new run")
    assert "finished at iteration 40" in output and (runs.outputs("run") / "40" / "factors.png").exists()


def test_links_planted_in_a_runs_folders_lead_nowhere(runs):
    victim = runs.folder / "victim"
    victim.write_text("precious")
    runs.checkpoint("run").parent.mkdir(parents=True)
    for name in ("last", "previous", "lock.pid", ".last.tmp"):
        runs.checkpoint("run", name).symlink_to(victim)
    runs.run("run", "--save_output no --ckpt_name none --overwrite True")
    assert victim.read_text() == "precious"
    runs.checkpoint("run", "lock").unlink()
    runs.checkpoint("run", "lock").symlink_to(victim)
    assert "lock" in runs.refused("run") and victim.read_text() == "precious"


def test_temporary_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    with utils.atomic_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(ZeroDivisionError), utils.atomic_file(tmp_path / "a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 2


def test_a_program_that_is_ended_leaves_no_half_written_file(tmp_path):
    code = (
        "import sys, time, utils\n"
        "def run():\n"
        "    with utils.atomic_file(sys.argv[1]) as file:\n"
        "        print('writing', flush=True); time.sleep(60)\n"
        "sys.exit(utils.run_cli('x', '', run))"
    )
    command = [sys.executable, "-c", code, tmp_path / "a"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n" and len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143 and not list(tmp_path.iterdir())
    process.stdout.close()


# Crashes.


@pytest.mark.slow
def test_killed_in_any_way_and_amid_writing_a_run_ends_with_the_bytes_of_one_that_was_left_alone(
    tmp_path, dset_dir
):
    seed = random.randrange(10**6)
    table, _, faults = crash.campaign(tmp_path, dset_dir, kills=20, minutes=2, seed=seed)
    assert faults == [], f"seed {seed}"
    assert sum(kills for kills, _, _ in table.values()) >= 5  # on a machine that is busy


# Damaged checkpoints.


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dset_dir):
    """A run of 20 iterations, with checkpoints of 10 and 20: not to be changed."""
    runs = Runs(tmp_path_factory.mktemp("trained"), dset_dir)
    runs.run("run", "--max_iter 20 --save_output no")
    return runs


@pytest.fixture
def copied(trained, tmp_path, dset_dir):
    shutil.copytree(trained.folder, tmp_path / "copy")
    return Runs(tmp_path / "copy", dset_dir)


def structure(data, path):
    """The places in a zip file that are no member's content: headers, padding and the list at its end."""
    inside = np.zeros(len(data), bool)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extra = (int.from_bytes(data[info.header_offset + at :][:2], "little") for at in (26, 28))
            start = info.header_offset + 30 + name + extra
            inside[start : start + info.compress_size] = True
    return np.flatnonzero(~inside)


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
    data, before = (
        copied.checkpoint("run").read_bytes(),
        read_checkpoint(copied.checkpoint("run", "previous")),
    )
    for percent in range(0, 100, 5):
        copied.checkpoint("run").write_bytes(data[: len(data) * percent // 100])
        assert same(Checkpoints(copied.checkpoint("run").parent).load(), before)
        out = capsys.readouterr().out
        assert out.count("\n") == 2 and "cannot be read" in out and "previous of iteration 10" in out


def test_a_folder_in_the_place_of_last_is_moved_away_and_the_one_before_is_used(copied):
    copied.checkpoint("run").unlink()
    (copied.checkpoint("run") / "in it").mkdir(parents=True)
    assert "resumed at iteration 10" in copied.run("run", "--max_iter 20").stdout
    assert read_checkpoint(copied.checkpoint("run"))["iter"] == 20
    assert (copied.checkpoint("run", "last.folder") / "in it").is_dir()


def test_what_is_no_file_is_no_checkpoint(copied):
    os.mkfifo(copied.folder / "pipe")
    for name in ("/dev/zero", copied.folder / "pipe", copied.folder):
        assert "it is not a file" in copied.refused("other", "--ckpt_name", name)
    copied.checkpoint("run").unlink()
    os.mkfifo(copied.checkpoint("run"))
    assert "resumed at iteration 10" in copied.run("run", "--max_iter 20 --save_output no").stdout
    assert read_checkpoint(copied.checkpoint("run"))["iter"] == 20


def test_what_a_killed_training_was_writing_is_removed_by_the_next(copied):
    left = [copied.checkpoint("run", ".last.1f.tmp"), copied.outputs("run") / ".lock.pid.2e.tmp"]
    for path in left:
        path.write_bytes(b"half")
    copied.run("run", "--max_iter 21 --save_output no")
    assert not any(path.exists() for path in left)


# Files of strangers.


class Code:
    """Pickled, it makes a file as it is loaded: a marker that it was run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(trained, tmp_path, zipped):
    state = {**read_checkpoint(trained.checkpoint("run")), "win_states": Code(tmp_path / "marker")}
    torch.save(state, tmp_path / "bad", _use_new_zipfile_serialization=zipped)
    error = trained.refused("other", "--train no", "--ckpt_name", tmp_path / "bad")
    assert "might run code" in error and not (tmp_path / "marker").exists()
    torch.load(tmp_path / "bad", weights_only=False)
    assert (tmp_path / "marker").exists()  # it would have


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused_before_it_takes_memory(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w") as member,
    ):
        for _ in range(200):
            member.write(bytes(2**20))
    with pytest.raises(UserError, match="not as torch.save writes it"):
        read_checkpoint(tmp_path / "bomb")


CHANGES = [
    ("iter", "9"),
    ("optim_states", 3),
    ("optim_states.optim.state.0.exp_avg", torch.zeros(1)),
    ("optim_states.optim.param_groups", [{"params": [1]}]),  # whole, but of another network
    ("arguments", {}),
    ("arguments.z_dim", 10**12),
    ("arguments.model", [1]),
    ("arguments.lr", float("inf")),
    ("generators.noise", torch.zeros(3, dtype=torch.uint8)),
    ("window.sums", torch.zeros(3, dtype=torch.float64)),
    ("data", ["x"]),
]


def changed(trained, name, value):
    """The state of a run's checkpoint with one field changed."""
    state = copy.deepcopy(read_checkpoint(trained.checkpoint("run")))
    part = state
    *path, last = name.split(".")
    for key in path:
        part = part[int(key) if key.isdecimal() else key]
    part[int(last) if last.isdecimal() else last] = value
    return state


@pytest.mark.parametrize("name, value", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_one_line_or_drawn_without_what_is_wrong(
    trained, tmp_path, name, value
):
    torch.save(changed(trained, name, value), tmp_path / "bad")
    bad = ("--overwrite yes --ckpt_name", tmp_path / "bad")
    assert "checkpoint" in trained.refused("other", *bad) or name == "data"
    if name == "optim_states":  # weights can be drawn
        assert "pictures in" in trained.run("other", "--train no", *bad).stdout
    elif not name.startswith("optim_states"):
        trained.refused("other", "--train no", *bad)


# Faults of storage.


def limited(runs, name, size, *flags):
    """A run in a process that may write no file larger than size: as on a full disk."""
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); sys.argv[0] = 'main.py'\n"
        "import main; sys.exit(main.main())"
    )
    command = [sys.executable, "-c", code, *runs.command(name, *flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    "size, flags, file",
    [
        (2**20, "--save_output no", "ckpt/run/last"),
        (5000, "--save_output no --gather_step 1 --save_step 100", "out/run/log.csv"),
    ],
)
def test_no_space_is_one_line_with_the_file_and_the_run_goes_on_from_its_checkpoint(
    copied, size, flags, file
):
    before = read_checkpoint(copied.checkpoint("run"))
    result = limited(copied, "run", size, flags)
    error = [line for line in result.stderr.splitlines() if line.startswith("main.py: ")]
    assert result.returncode == 1 and len(error) == 1 and "File too large" in error[0] and file in error[0]
    assert "Traceback" not in result.stderr and not list(copied.folder.rglob("*.tmp"))
    assert same(read_checkpoint(copied.checkpoint("run")), before)
    assert "resumed at iteration 20" in copied.run("run", "--max_iter 24 --save_output no").stdout


def test_folders_that_cannot_be_are_named(runs):
    (runs.folder / "file").write_text("")
    below = runs.folder / "file" / "below"
    for flag in ("--output_dir", "--ckpt_dir"):
        error = runs.refused("run", flag, below)
        assert "Not a directory" in error and str(runs.folder / "file") in error
    error = runs.run("run", "--dset_dir", below, status=1).stderr
    assert error.startswith(f"main.py: {below} cannot be written to") and "Traceback" not in error


def test_folders_that_are_removed_during_a_run_are_written_again(runs):
    runs.run("whole", "--save_output no")
    solver = runs.solver("run", "--save_output no")
    batch = solver.data.batch

    def removing(indices):
        if solver.iter == 25:
            shutil.rmtree(runs.folder / "out" / "run")
            shutil.rmtree(runs.folder / "ckpt" / "run")
        return batch(indices)

    solver.data.batch = removing
    solver.train()
    assert (runs.outputs("run") / "log.csv").read_bytes() == (runs.outputs("whole") / "log.csv").read_bytes()
    assert same(
        read_checkpoint(runs.checkpoint("run"))["model_states"],
        read_checkpoint(runs.checkpoint("whole"))["model_states"],
    )


def test_a_log_that_is_no_table_is_one_line(copied):
    for i, text in enumerate((b"", b"iter,a\n1,x\n", bytes(range(256)), b"a" * 200_000)):
        (copied.outputs("run") / "log.csv").write_bytes(text)
        with pytest.raises(UserError, match="damaged"):
            read_log(copied.outputs("run") / "log.csv")
        assert "resumed" in copied.run("run", "--max_iter", 21 + i, "--save_output no").stdout


# Errors.


def test_an_error_of_the_program_keeps_its_traceback_and_that_of_a_user_shows_it_when_asked_to(
    runs, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("training.run.RunFolder.load", lambda folder: {}["iter"])
        with pytest.raises(KeyError):
            runs.run("run")
    monkeypatch.setenv("BETA_VAE_DEBUG", "1")
    error = runs.run("run", "--train no", status=1).stderr
    assert "Traceback" in error and "training/run.py" in error and "main.py: --train False needs" in error


@pytest.mark.parametrize("closed", ["", "2>&-", ">&-"])
def test_a_name_that_the_console_cannot_print_and_a_closed_one_do_not_stop_a_run(runs, closed):
    flags = " ".join(runs.command("\u65e5\u672c", "--max_iter 2 --save_output no"))
    command = f"PYTHONIOENCODING=cp1252 {sys.executable} main.py {flags} {closed}"
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert read_checkpoint(runs.checkpoint("\u65e5\u672c"))["iter"] == 2


# Numbers.


def test_weights_that_are_not_finite_are_neither_drawn_nor_trained_on(trained, tmp_path):
    state = read_checkpoint(trained.checkpoint("run"))
    state["model_states"]["net"]["encoder.0.bias"][3] = float("nan")
    torch.save(state, tmp_path / "bad")
    for flags in ("--train no --metrics fast", "--train yes"):
        assert "weights that are not finite" in trained.refused(
            "other", flags, "--ckpt_name", tmp_path / "bad"
        )


@pytest.mark.parametrize("plant", ["weights", "logvar", "data"])
def test_numbers_that_explode_stop_the_run_with_the_iteration_and_the_checkpoint_stays(copied, plant):
    before = copied.checkpoint("run").read_bytes()
    solver = copied.solver("run", "--save_output no")
    batch = solver.data.batch

    def planting(indices):
        if solver.iter == 27 and plant != "data":
            with torch.no_grad():
                list(solver.net.parameters())[0 if plant == "weights" else 9].fill_(
                    float("nan") if plant == "weights" else 300
                )
        return batch(indices) * (float("inf") if plant == "data" and solver.iter == 27 else 1)

    if plant == "logvar":  # exp(400) is infinite in float32
        encode = solver.net.encode
        solver.net.encode = lambda x: (lambda mu, logvar: (mu, logvar + 400 * (solver.iter == 27)))(
            *encode(x)
        )
    else:
        solver.data.batch = planting
    with pytest.raises(UserError, match="not finite since iteration 27"):
        solver.train()
    assert copied.checkpoint("run").read_bytes() == before


def test_iterations_beyond_2_to_the_31_go_on_with_the_right_log_epoch_and_C(copied):
    start = 2**31 + 5
    state = read_checkpoint(copied.checkpoint("run"))
    state["iter"] = start
    copied.checkpoint("run").unlink()
    torch.save(state, copied.checkpoint("run"))
    copied.run("run", f"--max_iter {start + 10} --gather_step 2 --save_output no")
    log, state = read_log(copied.outputs("run") / "log.csv"), read_checkpoint(copied.checkpoint("run"))
    assert log["iter"][-6:] == [start + i for i in (1, 3, 5, 7, 9, 10)]  # each multiple of 2, and the end
    assert log["C"][-1] == 25 and state["iter"] == start + 10
    assert (state["epoch"], state["position"]) == divmod(start + 10, 737280 // 8)
