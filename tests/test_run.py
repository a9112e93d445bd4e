"""Real runs of main.py, small ones: what they write, and that none is lost."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from helpers import ROOT, same, wait_for
from solver import Solver
from training.checkpoint import Checkpoints, read_checkpoint
from training.log import read_log
from training.run import StopSignals
from utils import UserError
from viz import pictures

NO_PICTURES = "--save_output no"


def assert_same_run(runs, one, other):
    """Checkpoints (but for names and folders), log and pictures of two runs are equal to the byte."""
    states = [read_checkpoint(runs.checkpoint(name)) for name in (one, other)]
    for state in states:
        state.pop("arguments")
    for key in states[0]:
        assert same(states[0][key], states[1][key]), key
    files = [
        {
            p.relative_to(runs.outputs(name)): p.read_bytes()
            for p in runs.outputs(name).rglob("*.*")
            if p.is_file()
            and p.name not in ("args.json", "explore.html", "log.csv.old", "lock.pid")  # some name the run
            and p.parent.suffix != ".old"
        }
        for name in (one, other)
    ]
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []


# Resume.


@pytest.mark.parametrize("stop", [19, 20, 25])
def test_a_run_that_is_stopped_before_at_or_after_its_restart_resumes_to_the_byte(runs, monkeypatch, stop):
    flags = f"--objective restart --restart_iter 20 --weak_iters 5 --rise_iters 10 --lr_start_iter 25 --lr_stop_iter 40 {NO_PICTURES}"
    runs.run("whole", flags)
    step = Solver.training_step

    def stopping(solver, x):
        step(solver, x)
        if solver.iter == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Solver, "training_step", stopping)
        assert f"stopped at iteration {stop}" in runs.run("halves", flags, status=143).stdout
    runs.run("halves", flags)
    assert_same_run(runs, "whole", "halves")


def test_resume_after_sigkill_gives_the_same_bytes(runs):
    flags = f"--max_iter 60 --batch_size 1 {NO_PICTURES}"
    runs.run("whole", flags)
    process = runs.start("killed", flags)
    wait_for(runs.checkpoint("killed"), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert "resumed at iteration" in runs.run("killed", flags).stdout
    assert_same_run(runs, "whole", "killed")


def killed_at(monkeypatch, cls, name, nth=1):
    """The nth call of cls.name ends in an error, as if the process had been killed there."""
    method, calls = getattr(cls, name), []

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == nth:
            raise SystemExit(9)
        return method(*args, **kwargs)

    monkeypatch.setattr(cls, name, dying)


@pytest.mark.parametrize("iteration", [20, 40])
def test_killed_between_saving_and_drawing_the_pictures_are_drawn_by_the_next_call(
    runs, monkeypatch, iteration
):
    runs.run("whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        killed_at(patch, Solver, "draw", nth=iteration // 20)
        runs.run("killed")
    assert read_checkpoint(runs.checkpoint("killed"))["iter"] == iteration
    runs.run("killed")
    assert_same_run(runs, "whole", "killed")


@pytest.mark.slow
@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_saves_and_resume_gives_the_same_bytes(runs, name, status):
    flags = f"--max_iter 1000 --gather_step 7 --save_step 400 --batch_size 1 {NO_PICTURES}"
    runs.run("whole", flags)
    # SIGINT is ignored in what a shell starts in the background
    started = runs.start(
        name, flags, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    wait_for(runs.outputs(name) / "args.json", started)
    while len((runs.outputs(name) / "log.csv").read_text().splitlines()) < 3:
        time.sleep(0.01)
    started.send_signal(getattr(signal, name))
    output, _ = started.communicate(timeout=60)
    assert started.returncode == status, output
    assert "stopped at iteration" in output and "Traceback" not in output
    runs.run(name, flags)
    assert_same_run(runs, "whole", name)


def test_a_signal_that_nohup_ignores_stays_ignored_and_no_thread_but_the_first_is_asked_for_signals():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.received == signal.SIGUSR1
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_main_trains_in_a_thread(runs):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert (
            "finished at iteration 8"
            in pool.submit(runs.run, "run", NO_PICTURES, "--max_iter 8").result().stdout
        )


def test_a_second_ctrl_c_ends_the_process_at_once_and_one_that_is_sent_twice_does_not():
    code = (
        "import signal, time; from training.run import StopSignals\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with StopSignals() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.received: time.sleep(0.01)\n"
        "    print('noted', flush=True)\n"
        "    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for word in ("ready", "noted"):
        assert process.stdout.readline() == word + "\n"
        process.send_signal(signal.SIGINT)
    time.sleep(StopSignals.REPEAT + 0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == -signal.SIGINT
    process.stdout.close()


def test_a_stop_in_the_last_iteration_is_a_stop_and_the_next_call_scores(runs, monkeypatch):
    display = Solver.display
    monkeypatch.setattr(
        Solver, "display", lambda solver: (display(solver), os.kill(os.getpid(), signal.SIGTERM))
    )
    flags = "--max_iter 8 --display_step 8 --save_output no --metrics fast"
    assert "finished at iteration 8" in runs.run("run", flags, status=143).stdout
    assert not list(runs.outputs("run").glob("*/metrics.json"))
    monkeypatch.undo()
    runs.run("run", flags)
    assert (runs.outputs("run") / "8" / "metrics.json").exists()


def test_adagrad_trains_the_fully_connected_model_and_resumes_to_the_byte(runs):
    flags = "--model FC --objective H --optimizer adagrad --lr 1e-2 --save_output no"
    runs.run("whole", flags)
    runs.run("parts", flags, "--max_iter 24")
    runs.run("parts", flags)
    assert_same_run(runs, "whole", "parts")
    state = read_checkpoint(runs.checkpoint("whole"))["optim_states"]["optim"]["state"][0]
    assert set(state) == {"step", "sum"}
    assert "optimizer adagrad (now adam)" in runs.refused("whole", flags, "--optimizer adam")


# What a run writes.


def test_a_run_writes_log_arguments_pictures_and_checkpoints(runs):
    output = runs.run("run").stdout
    log = read_log(runs.outputs("run") / "log.csv")
    assert log["iter"] == [8, 16, 24, 32, 40]
    names = ["iter", "recon_loss", "total_kld", "mean_kld", "C"]
    assert list(log) == names + [f"{name}_{j}" for name in ("kld", "mu", "var") for j in range(10)]
    # mean over the window
    assert log["C"] == pytest.approx([25e-5 * (8 * i + 4.5) for i in range(5)], rel=1e-4)
    for i in range(5):
        assert log["total_kld"][i] == pytest.approx(sum(log[f"kld_{j}"][i] for j in range(10)), rel=1e-4)
        assert log["var_0"][i] > 0
    arguments = json.loads((runs.outputs("run") / "args.json").read_text())
    assert arguments["arguments"]["C_stop_iter"] == 100_000
    assert arguments["threads"] == 1 and arguments["versions"]["torch"]
    pictures = {"traverse.png", "traverse.gif", "reconstruction.png", "factors.png"}
    for iteration, more in (("20", set()), ("40", {"explore.html"})):
        assert {p.name for p in (runs.outputs("run") / iteration).iterdir()} == pictures | more
    for name in ("curves", "capacity"):
        Image.open(runs.outputs("run") / f"{name}.png").verify()
    assert "[20]" in output and "[40]" in output
    assert {p.name for p in runs.checkpoint("run").parent.iterdir()} == {
        "last",
        "previous",
        "lock",
        "lock.pid",
    }
    assert read_checkpoint(runs.checkpoint("run", "previous"))["iter"] == 30


def test_objective_H_has_no_C_and_no_pictures_are_written_when_not_wanted(runs):
    output = runs.run("H", "--objective H --model H --max_iter 9 --gather_step 5", NO_PICTURES).stdout
    assert "beta 4, normalised" in output and "0.00977" in output  # 4 * 10 / 4096
    rows = list(csv.DictReader(open(runs.outputs("H") / "log.csv")))
    assert [(row["iter"], "C" in row) for row in rows] == [
        ("5", False),
        ("9", False),
    ]  # max_iter is no multiple
    assert {p.name for p in runs.outputs("H").iterdir()} == {"log.csv", "args.json", "lock", "lock.pid"}
    assert read_checkpoint(runs.checkpoint("H"))["iter"] == 9


def test_a_picture_that_fails_costs_neither_the_training_nor_the_checkpoint(runs, monkeypatch, capsys):
    def failing(solver):
        assert read_checkpoint(solver.checkpoints.folder / "last")["iter"] == solver.iter  # saved before
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr(Solver, "draw", failing)
    output = runs.run("run")
    assert (
        output.stdout.count("latex could not be found") == 2 and "finished at iteration 40" in output.stdout
    )
    assert "Traceback" not in output.stdout + output.stderr
    monkeypatch.setenv("BETA_VAE_DEBUG", "1")
    assert "Traceback" in runs.run("other").stderr


def test_train_false_writes_the_pictures_of_the_checkpoint(runs):
    runs.run("run")
    before = {p: p.read_bytes() for p in runs.outputs("run").rglob("*.*")}
    for path in before:
        if path.suffix in (".png", ".gif"):
            path.unlink()
    # Flags that define the run come from the checkpoint.
    runs.run("run", "--train False --objective H --model H --z_dim 3 --seed 9")
    after = {p: p.read_bytes() for p in runs.outputs("run").rglob("*.*")}
    # Only the pictures of iteration 40 are drawn again.
    assert {p for p in before if p not in after} == set(runs.outputs("run").glob("20/*")) | {
        p for p in before if p.parent.name == "20"
    }
    for path in after:
        assert after[path] == before[path]
    assert (runs.outputs("run") / "40" / "reconstruction.png").exists()
    assert "needs a checkpoint" in runs.refused("other", "--train False")


def test_a_run_that_trains_may_be_drawn_at_the_same_time(tmp_path, monkeypatch):
    path, code = (
        tmp_path / "curves.png",
        "import sys; from viz import pictures; from pathlib import Path\n"
        "pictures.save(Path(sys.argv[1]), lambda file, format: file.write(b'one'))",
    )

    def other_draws(_):  # it begins and ends while this process has written, and not yet renamed
        assert subprocess.run([sys.executable, "-c", code, path], cwd=ROOT).returncode == 0
        assert path.read_bytes() == b"one"

    monkeypatch.setattr(os, "fsync", other_draws)
    pictures.save(path, lambda file, format: file.write(b"other"))
    assert path.read_bytes() == b"other" and list(tmp_path.iterdir()) == [path]


def test_args_json_remembers_the_code_and_the_machine_of_each_part_of_a_run(runs):
    runs.run("run", NO_PICTURES, "--max_iter 8")
    runs.run("run", NO_PICTURES, "--max_iter 16 --precision bf16")
    runs.run("run", NO_PICTURES, "--max_iter 24 --threads 2")
    about = json.loads((runs.outputs("run") / "args.json").read_text())
    parts = [*about["before"], about]
    assert [(part.get("until"), part["precision"], part["threads"]) for part in parts] == [
        (8, "float32", 1),
        (16, "bf16", 1),
        (None, "float32", 2),
    ]
    assert all(part["commit"] and part["versions"] for part in parts)
    (runs.outputs("run") / "args.json").write_text("[1]")
    runs.run("run", NO_PICTURES, "--max_iter 32")
    assert json.loads((runs.outputs("run") / "args.json").read_text())["before"] == []


# A run of this name is there already.


def test_a_finished_run_says_so_and_a_larger_max_iter_goes_on(runs):
    runs.run("run", NO_PICTURES, "--max_iter 20")
    assert "is finished (iteration 20)" in runs.run("run", NO_PICTURES, "--max_iter 20").stdout
    runs.run("run", NO_PICTURES, "--max_iter 24")
    assert read_log(runs.outputs("run") / "log.csv")["iter"] == [8, 16, 20, 24]


def test_other_settings_are_refused_each_by_name(runs):
    runs.run("run", NO_PICTURES, "--max_iter 10")
    error = runs.refused("run", "--lr 1e-3 --seed 2 --beta 9")
    assert "lr 0.0001 (now 0.001)" in error and "seed 1 (now 2)" in error and "--viz_name" in error
    assert "beta 4" not in error  # objective B has no beta


def test_starting_afresh_over_a_run_needs_overwrite(runs):
    runs.run("run", NO_PICTURES, "--max_iter 20")
    saved = runs.checkpoint("run").read_bytes()
    error = runs.refused("run", "--ckpt_name none")
    assert "--overwrite" in error and runs.checkpoint("run").read_bytes() == saved
    runs.run("run", NO_PICTURES, "--ckpt_name none --overwrite True --seed 2 --max_iter 8")
    assert read_log(runs.outputs("run") / "log.csv")["iter"] == [8]
    # nothing of the old run
    assert {p.name for p in runs.checkpoint("run").parent.iterdir()} == {"last", "lock", "lock.pid"}
    assert read_checkpoint(runs.checkpoint("run"))["iter"] == 8


def test_replacing_a_run_by_the_checkpoint_of_another_leaves_none_of_its_own_to_fall_back_on(
    runs, monkeypatch
):
    monkeypatch.setattr(Checkpoints, "KEEP_EVERY", 10)
    runs.run("run", NO_PICTURES, "--max_iter 20")
    runs.run("one", NO_PICTURES, "--max_iter 30")
    flags = f"--ckpt_name {runs.checkpoint('one')} --overwrite True --max_iter 31 --save_output no"
    runs.run("run", flags)
    kept = {p.name for p in Checkpoints(runs.checkpoint("run").parent).paths()}
    assert kept == {"last", "previous", "30"}
    for name in ("last", "previous"):
        runs.checkpoint("run", name).write_bytes(b"")
    assert "resumed at iteration 30" in runs.run("run", NO_PICTURES, "--max_iter 32").stdout


def test_log_and_pictures_without_their_checkpoints_are_kept(runs):
    runs.run("run", "--max_iter", 20)
    log = (runs.outputs("run") / "log.csv").read_bytes()
    (runs.outputs("run") / "20").mkdir(exist_ok=True)
    (runs.outputs("run") / "20" / "metrics.json").write_text("{}")
    runs.run("run", "--max_iter", 8, "--ckpt_dir", runs.folder / "mistyped")
    assert (runs.outputs("run") / "log.csv.old").read_bytes() == log
    assert (
        not (runs.outputs("run") / "20").exists()
        and (runs.outputs("run") / "20.old" / "metrics.json").exists()
    )


def test_the_folder_of_a_run_named_as_an_iteration_is_not_taken_for_its_results(runs):
    runs.run("m", NO_PICTURES, "--max_iter 20")
    other = runs.outputs("m") / "20"
    other.mkdir()
    (other / "args.json").write_text("{}")
    for _ in range(2):
        runs.run("m", NO_PICTURES, "--max_iter 8 --ckpt_name none --overwrite True")
    assert (other / "args.json").exists()


def test_a_run_from_the_checkpoint_of_another_sets_all_that_lies_under_its_name_aside(runs):
    runs.run("one", "--max_iter", 20)
    runs.run("other", "--max_iter 30 --seed 2 --display_step 10")
    log = (runs.outputs("other") / "log.csv").read_bytes()
    shutil.rmtree(runs.checkpoint("other").parent)
    runs.run("other", "--ckpt_name", runs.checkpoint("one"))
    assert (runs.outputs("other") / "log.csv.old").read_bytes() == log
    assert read_log(runs.outputs("other") / "log.csv")["iter"] == [24, 32, 40]
    assert {p.name for p in runs.outputs("other").iterdir() if p.is_dir()} == {
        "10.old",
        "20.old",
        "20",  # drawn at once, as after a kill amid the pictures
        "30.old",
        "40",
    }
    assert json.loads((runs.outputs("other") / "args.json").read_text())["before"] == []
    error = runs.refused("third", "--ckpt_name", runs.checkpoint("one"), "--lr 1")
    assert "another --viz_name" not in error and "lr 0.0001 (now 1.0)" in error


def test_a_fresh_start_that_is_killed_does_not_cost_the_log_before_it(runs):
    runs.run("run", "--max_iter", 40, NO_PICTURES)
    log = (runs.outputs("run") / "log.csv").read_bytes()
    for iterations in (8, 16):
        shutil.rmtree(runs.checkpoint("run").parent)
        runs.run("run", "--max_iter", iterations, NO_PICTURES)
    assert (runs.outputs("run") / "log.csv.old").read_bytes() == log


def test_going_back_to_an_older_checkpoint_needs_overwrite_and_forgets_what_came_later(runs):
    runs.run("whole")
    runs.run("run")
    error = runs.refused("run", "--ckpt_name previous")
    assert "--overwrite" in error and "leave it out to go on with them" in error
    for kept in ("20", "50000"):  # before and after where it goes back to
        shutil.copy(runs.checkpoint("run"), runs.checkpoint("run", kept))
    scores = runs.outputs("run") / "40" / "metrics.json"
    scores.write_text("{}")
    log = (runs.outputs("run") / "log.csv").read_bytes()
    runs.run("run", "--ckpt_name", "previous", "--overwrite", "yes")
    assert (runs.outputs("run") / "log.csv.old").read_bytes() == log
    assert not scores.exists() and (runs.outputs("run") / "40.old" / "metrics.json").exists()
    assert (runs.outputs("run") / "20").exists()  # before where it goes back to
    assert {p.name for p in runs.checkpoint("run").parent.iterdir()} == {
        "last",
        "previous",
        "20",
        "lock",
        "lock.pid",
    }
    assert read_checkpoint(runs.checkpoint("run", "previous"))["iter"] == 30
    assert_same_run(runs, "whole", "run")


# Checkpoints.


def test_a_damaged_last_gives_way_to_previous_and_none_readable_is_an_error(runs):
    runs.run("whole", NO_PICTURES)
    runs.run("run", NO_PICTURES)
    last = runs.checkpoint("run")
    whole = last.read_bytes()
    half = len(whole) // 2
    for damaged in (whole[:half], b"", whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]):
        last.write_bytes(damaged)
        output = runs.run("run", NO_PICTURES).stdout
        assert "cannot be read" in output and "resumed at iteration 30" in output
        assert_same_run(runs, "whole", "run")
        # no damaged file took its place
        assert read_checkpoint(runs.checkpoint("run", "previous"))["iter"] == 30
    for which in ("last", "previous"):
        runs.checkpoint("run", which).write_bytes(b"nothing")
    assert "--ckpt_name none" in runs.refused("run")
    assert last.read_bytes() == b"nothing"


def test_one_checkpoint_is_kept_for_good_at_multiples(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for iteration in (49_999, 50_000, 60_000, 100_000):
        checkpoints.save({"iter": iteration, "model_states": {"net": {"a": 1}}})
    assert [p.name for p in checkpoints.paths()] == ["last", "previous", "100000", "50000"]
    (tmp_path / "last").write_bytes(b"")
    assert checkpoints.load()["iter"] == 100_000  # not previous, of 60,000
    kept = (tmp_path / "100000").read_bytes()
    (tmp_path / "100000").write_bytes(b"")
    assert checkpoints.load()["iter"] == 60_000
    (tmp_path / "100000").write_bytes(kept)
    (tmp_path / "previous").write_bytes(b"")
    assert checkpoints.load()["iter"] == 100_000
    assert checkpoints.load("50000")["iter"] == 50_000
    with pytest.raises(UserError, match="no checkpoint 70000"):
        checkpoints.load("70000")


@pytest.mark.parametrize("old_format", [True, False])
def test_a_checkpoint_of_the_public_repository_is_drawn_and_trained_on(runs, old_format):
    runs.run("ours", "--max_iter", 20)
    state = read_checkpoint(runs.checkpoint("ours"))
    optim = state["optim_states"]["optim"]
    names = ("params", "lr", "betas", "eps", "weight_decay")
    group = {name: optim["param_groups"][0][name] for name in names}
    steps = {i: {**one, "step": 20} for i, one in optim["state"].items()}
    public = runs.folder / "public"
    torch.save(
        {
            "iter": 20,
            "win_states": {"recon": "window_1"},
            "model_states": state["model_states"],
            "optim_states": {"optim": {"state": steps, "param_groups": [group]}},
        },
        public,
        _use_new_zipfile_serialization=not old_format,
    )
    output = runs.run("drawn", "--train", "False", "--ckpt_name", public).stdout
    assert "no flags" in output and output.count("public") == 1
    drawn, ours = (Image.open(runs.outputs(name) / "20" / "reconstruction.png") for name in ("drawn", "ours"))
    assert drawn.tobytes() == ours.tobytes()
    runs.run("trained", "--ckpt_name", public, "--max_iter", 30)
    after = read_checkpoint(runs.checkpoint("trained"))
    assert after["iter"] == 30 and after["optim_states"]["optim"]["state"][0]["step"] == 30
    runs.run("trained", "--max_iter", 35)
    error = runs.refused("other", "--ckpt_name", public, "--model H")
    assert "does not fit --model H --z_dim 10" in error


def test_weights_without_an_optimiser_are_drawn_but_not_trained_on(runs):
    weights = ROOT / "misc" / "dsprites_B_smoothed.pt"
    flags = "--batch_size 64 --lr 5e-4 --delta 1 --max_iter 200000"
    assert "weights without an optimiser" in runs.refused("run", "--ckpt_name", weights, flags)
    assert "pictures in" in runs.run("drawn", "--train False", "--ckpt_name", weights).stdout
    assert (runs.outputs("drawn") / "150000" / "traverse.png").exists()


def test_a_checkpoint_whose_log_had_no_names_for_its_columns_resumes_to_the_byte(runs):
    """As those of before the log followed the objective's terms."""
    flags = "--save_output no --gather_step 16"
    runs.run("whole", flags)
    runs.run("run", flags, "--max_iter 20")
    state = read_checkpoint(runs.checkpoint("run"))
    assert state["window"]["count"] == 0 and state["window"].pop("columns")[:4] == [
        "recon_loss", "total_kld", "mean_kld", "C",
    ]  # fmt: skip
    torch.save(state, runs.checkpoint("run"))
    runs.run("run", flags)
    log, whole = (read_log(runs.outputs(name) / "log.csv") for name in ("run", "whole"))
    assert log["iter"] == [16, 20, 32, 40] and log["kld_3"][3] == whole["kld_3"][-1]


# Numbers.


def test_a_data_set_smaller_than_a_batch_is_an_error(runs):
    assert "fewer than one batch" in runs.refused("run", "--batch_size", 10**6)


def test_pictures_that_come_before_the_next_row_of_the_log_do_not_hide_a_bad_loss(runs):
    assert "not finite since iteration 2" in runs.refused("run", "--lr 1e30 --display_step 3 --save_step 100")


def test_an_optimiser_that_overflowed_stops_the_run_though_loss_and_weights_are_finite(runs):
    error = runs.refused("run", "--gamma 1e38 --save_output no")
    assert "averages are not finite" in error and "checkpoints from before" not in error


def test_denormals_are_flushed_in_every_thread_of_a_program(runs, dset_dir):
    code = (
        "import sys, threading, torch, main; torch.set_num_threads(2); main.Solver(main.parse(sys.argv[1:]))\n"
        "tiny, ends = torch.full((2**20,), 1e-39), []\n"
        "def count(): ends.append((tiny * 1).count_nonzero().item())\n"
        "count(); thread = threading.Thread(target=count); thread.start(); thread.join(); print(ends)"
    )
    flags = runs.command("run", "--threads 2")
    result = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.endswith("[0, 0]\n"), result.stdout + result.stderr
