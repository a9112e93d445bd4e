"""What can go wrong, and that nothing is lost by it and no harm done."""

import contextlib
import copy
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import crash
import main
from conftest import ROOT, Runs, same, wait_for
from solver import Solver
from training.checkpoint import Checkpoints, read_checkpoint
from training.lock import lock_holder, take_folder
from training.log import read_log
from utils import UserError

# Two at once.


def files(folder):
    return {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file() and p.name != "lock"
    }


def test_a_second_training_of_a_run_is_refused_by_the_pid_of_the_first_and_changes_nothing(runs):
    first = runs.start(
        "run", "--max_iter", 10**6, "--save_step", 10**6, "--gather_step", 10**6, "--display_step", 10**6
    )
    wait_for(runs.outputs("run") / "args.json", first)
    try:
        before = files(runs.folder)
        for flags in (
            [],
            ["--ckpt_dir", runs.folder / "other"],
            ["--output_dir", runs.folder / "other"],
            ["--ckpt_name", "none", "--overwrite", "True"],
        ):
            error = runs.run("run", *flags, status=1).stderr
            assert f"pid {first.pid} on {os.uname().nodename}" in error and error.count("\n") == 1
        assert files(runs.folder) == before
        assert (
            lock_holder(runs.outputs("run"))
            == lock_holder(runs.checkpoint("run").parent)
            == f"pid {first.pid} on {os.uname().nodename}"
        )
    finally:
        first.kill()
        first.communicate()
    assert lock_holder(runs.outputs("run")) is None  # it dies with its process
    runs.run("run", "--max_iter", 8)


def test_a_child_does_not_keep_the_lock_of_a_process_that_is_gone(tmp_path):
    reader, writer = os.pipe()
    if not (first := os.fork()):
        lock = take_folder(tmp_path)
        if not (child := os.fork()):
            time.sleep(60)
        os.write(writer, f"{child}".encode())
        time.sleep(60)
        os._exit(lock is None)
    child = int(os.read(reader, 20))
    try:
        assert lock_holder(tmp_path).startswith(f"pid {first} on")
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        os.kill(child, 0)  # is there
        assert lock_holder(tmp_path) is None
        take_folder(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reader), os.close(writer)
    assert lock_holder(tmp_path / "nothing") is None


# Crashes.


def test_killed_in_any_way_and_amid_writing_a_run_ends_with_the_bytes_of_one_that_was_left_alone(
    tmp_path, dset_dir
):
    table, _, faults = crash.campaign(tmp_path, dset_dir, kills=20, minutes=2, seed=random.random())
    assert faults == [] and sum(kills for kills, _, _ in table.values()) >= 10


# Damaged checkpoints.


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dset_dir):
    """A run of 20 iterations, with checkpoints of 10 and 20: not to be changed."""
    runs = Runs(tmp_path_factory.mktemp("trained"), dset_dir)
    runs.run("run", "--max_iter", 20, "--save_output", "no")
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
        except ValueError as error:
            assert "\n" not in str(error)
            found += 1
    assert found > 240  # those in the content


def test_a_checkpoint_cut_at_any_percent_gives_way_to_the_one_before(copied, capsys):
    data, before = (
        copied.checkpoint("run").read_bytes(),
        read_checkpoint(copied.checkpoint("run", "previous")),
    )
    for percent in range(100):
        copied.checkpoint("run").write_bytes(data[: len(data) * percent // 100])
        assert same(Checkpoints(copied.checkpoint("run").parent).load(), before)
        out = capsys.readouterr().out
        assert out.count("\n") == 2 and "cannot be read" in out and "previous of iteration 10" in out


def test_a_folder_in_the_place_of_last_is_moved_away_and_the_one_before_is_used(copied):
    copied.checkpoint("run").unlink()
    (copied.checkpoint("run") / "in it").mkdir(parents=True)
    assert "resumed at iteration 10" in copied.run("run", "--max_iter", 20).stdout
    assert read_checkpoint(copied.checkpoint("run"))["iter"] == 20
    assert (copied.checkpoint("run", "last.folder") / "in it").is_dir()


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
    error = trained.run("other", "--train", "no", "--ckpt_name", tmp_path / "bad", status=1).stderr
    assert "might run code" in error and error.count("\n") == 1 and not (tmp_path / "marker").exists()
    torch.load(tmp_path / "bad", weights_only=False)
    assert (tmp_path / "marker").exists()  # it would have


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused_before_it_takes_memory(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w") as member,
    ):
        for _ in range(200):
            member.write(bytes(2**20))
    with pytest.raises(ValueError, match="more than the file holds"):
        read_checkpoint(tmp_path / "bomb")


CHANGES = [
    ("iter", -1),
    ("iter", "9"),
    ("iter", None),
    ("model_states", {}),
    ("model_states.net", {"a": 1}),
    ("model_states.net", []),
    ("optim_states", 3),
    ("optim_states.optim", {}),
    ("optim_states.optim.state", [1]),
    ("optim_states.optim.state.0.step", "x"),
    ("optim_states.optim.param_groups", [{}]),
    ("arguments", {}),
    ("arguments", 5),
    ("arguments.lr", "x"),
    ("arguments.z_dim", 10**12),
    ("arguments.model", [1]),
    ("arguments.model", "Z"),
    ("arguments.optimizer", "sgd"),
    ("arguments.objective", None),
    ("arguments.beta1", 7),
    ("arguments.batch_size", 0),
    ("arguments.z_dim", 10.0),
    ("arguments.seed", 1.5),
    ("arguments.lr", float("inf")),
    ("arguments.C_stop_iter", 0),
    ("generators", {}),
    ("generators.noise", torch.zeros(3, dtype=torch.uint8)),
    ("generators.noise", torch.zeros(5056)),
    ("window", None),
    ("window.sums", torch.zeros(3, dtype=torch.float64)),
    ("arguments.gamma", None),
    ("window.count", -2),
    ("window.last_row", "x"),
    ("window.last_row", [1.0]),
    ("device", None),
    ("data", ["x"]),
]

UNFIT = [
    ("optim_states.optim.state", {}),
    ("optim_states.optim.state.0", {}),
    ("optim_states.optim.state.0.exp_avg", torch.zeros(1)),
    ("optim_states.optim.param_groups", []),
    # an optimiser that is whole, but of another network
    ("optim_states.optim.param_groups", [{"params": [1]}]),
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
def test_a_checkpoint_with_a_field_of_another_kind_is_one_line(trained, tmp_path, name, value):
    torch.save(changed(trained, name, value), tmp_path / "bad")
    for flags in ([], ["--train", "no"]):
        error = trained.run(
            "other", *flags, "--ckpt_name", tmp_path / "bad", "--overwrite", "yes", status=1
        ).stderr
        assert error.startswith("main.py: ") and error.count("\n") == 1


@pytest.mark.parametrize("name, value", UNFIT)
def test_without_an_optimiser_that_fits_weights_are_drawn_but_not_trained_on(trained, tmp_path, name, value):
    torch.save(changed(trained, name, value), tmp_path / "weights")
    assert "pictures in" in trained.run("other", "--train", "no", "--ckpt_name", tmp_path / "weights").stdout
    error = trained.run("other", "--ckpt_name", tmp_path / "weights", status=1).stderr
    assert "its optimiser" in error and error.count("\n") == 1


def test_a_public_checkpoint_without_a_whole_optimiser_is_one_line(trained, tmp_path):
    state = read_checkpoint(trained.checkpoint("run"))
    optim = {"state": {}, "param_groups": [{"params": list(range(32))}]}
    torch.save(
        {"iter": 20, "model_states": state["model_states"], "optim_states": {"optim": optim}},
        tmp_path / "bad",
    )
    error = trained.run("other", "--ckpt_name", tmp_path / "bad", status=1).stderr
    assert "its optimiser" in error and error.count("\n") == 1


# Faults of storage.


def limited(runs, name, size, *flags):
    """A run in a process that may write no file larger than size: as on a full disk."""
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); sys.argv[0] = 'main.py'\n"
        "import main; sys.exit(main.main())"
    )
    command = [sys.executable, "-c", code, *runs.flags, "--viz_name", name, *flags]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    "size, flags, file",
    [
        (2**20, ["--save_output", "no"], "ckpt/run/last"),
        (5000, ["--save_output", "no", "--gather_step", 1, "--save_step", 100], "out/run/log.csv"),
        (30_000, ["--display_step", 22, "--save_step", 100], "out/run/22/"),
    ],
)
def test_no_space_is_one_line_with_the_file_and_the_run_goes_on_from_its_checkpoint(
    copied, size, flags, file
):
    before = read_checkpoint(copied.checkpoint("run"))
    result = limited(copied, "run", size, *flags)
    error = [line for line in result.stderr.splitlines() if line.startswith("main.py: ")]
    assert result.returncode == 1 and len(error) == 1 and "File too large" in error[0] and file in error[0]
    assert "Traceback" not in result.stderr and not list(copied.folder.rglob("*.tmp"))
    assert same(read_checkpoint(copied.checkpoint("run")), before)
    assert "resumed at iteration 20" in copied.run("run", "--max_iter", 24, "--save_output", "no").stdout


def test_folders_that_cannot_be_are_one_line(runs):
    (runs.folder / "file").write_text("")
    for flag in ("--output_dir", "--ckpt_dir", "--dset_dir"):
        error = runs.run("run", flag, runs.folder / "file" / "below", status=1).stderr
        assert error.count("\n") == 1 and "Not a directory" in error and str(runs.folder / "file") in error


def test_folders_that_are_removed_during_a_run_are_written_again(runs):
    flags = ["--max_iter", 40, "--save_output", "no"]
    runs.run("whole", *flags)
    solver = Solver(main.parse([*map(str, runs.flags), "--viz_name", "run", *map(str, flags)]))
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
        assert "resumed" in copied.run("run", "--max_iter", 21 + i, "--save_output", "no").stdout


# Numbers.


def test_weights_that_are_not_finite_are_neither_drawn_nor_trained_on(trained, tmp_path):
    state = read_checkpoint(trained.checkpoint("run"))
    state["model_states"]["net"]["encoder.0.bias"][3] = float("nan")
    torch.save(state, tmp_path / "bad")
    for flags in (["--train", "no", "--metrics", "fast"], []):
        error = trained.run("other", *flags, "--ckpt_name", tmp_path / "bad", status=1).stderr
        assert "weights that are not finite" in error and error.count("\n") == 1


@pytest.mark.parametrize("plant", ["weights", "logvar", "lr", "data"])
def test_numbers_that_explode_stop_the_run_with_the_iteration_and_the_checkpoint_stays(copied, plant):
    lr = ["--lr", 1e30] if plant == "lr" else []
    if lr:
        error = copied.run("other", *lr, "--save_output", "no", "--gather_step", 4, status=1).stderr
        assert "not finite since iteration 2" in error and "Traceback" not in error
        assert not copied.checkpoint("other").exists()  # it was never good
        return
    before = copied.checkpoint("run").read_bytes()
    solver = Solver(main.parse([*map(str, copied.flags), "--viz_name", "run", "--save_output", "no"]))
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
    copied.run("run", "--max_iter", start + 10, "--gather_step", 2, "--save_output", "no")
    log, state = read_log(copied.outputs("run") / "log.csv"), read_checkpoint(copied.checkpoint("run"))
    assert log["iter"][-6:] == [start + i for i in (1, 3, 5, 7, 9, 10)]  # each multiple of 2, and the end
    assert log["C"][-1] == 25 and state["iter"] == start + 10
    assert (state["epoch"], state["position"]) == divmod(start + 10, 737280 // 8)


# The command line.

FLAGS = [
    option
    for action in main.make_parser()._actions
    for option in action.option_strings
    if "h" not in option[:3]
]
VALUES = st.one_of(
    st.text(max_size=9),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "",
            "nan",
            "inf",
            "-inf",
            "1e400",
            "9" * 5000,
            "1e308",
            "true",
            "no",
            "a\0b",
            "a\nb",
            "\udcff",
            "\ud800",
            "/",
            ".",
            "..",
            "~",
            "x" * 300,
            "H",
            "B",
            "FC",
            "none",
            "full",
            "dsprites",
            "-",
            "--",
            "0x10",
            "1_000",
            "\u0663",
        ]
    ),
)


@settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@example([("x", "a\nb")])
@example([("--output_dir", "a\0b")])
@example([("--viz_name", "\ud800")])
@given(st.lists(st.tuples(st.sampled_from([*FLAGS, "--h", "x"]), VALUES), max_size=6))
def test_any_command_line_is_accepted_or_one_line_and_status_2(pairs):
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main.parse([text for pair in pairs for text in pair])
    except SystemExit as stop:
        assert (
            stop.code == 2
            and err.getvalue().count("\n") == 1
            and err.getvalue().endswith("\n")
            and not out.getvalue()
        )
