"""Real runs of main.py, small ones: what they write, and that none is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from helpers import ROOT, assert_same_run, same, wait_for
from solver import Solver
from training.checkpoint import Checkpoints, read_checkpoint
from training.log import read_log
from training.run import StopSignals
from utils import UserError

NO_PICTURES = "--save_output no"
PICTURES = {"traverse.png", "traverse.gif", "reconstruction.png", "factors.png"}


# Resume.


def stopping_at(patch, iteration, name):
    """From now on a run sends itself a signal at the end of that iteration's step."""
    step = Solver.training_step

    def stopping(solver, x):
        step(solver, x)
        if solver.iter == iteration:
            os.kill(os.getpid(), getattr(signal, name))

    patch.setattr(Solver, "training_step", stopping)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop, name, status",
    [(19, "SIGTERM", 143), (20, "SIGINT", 130), (25, "SIGHUP", 129), (32, "SIGUSR1", 138)],
)
def test_a_signal_saves_and_resume_gives_the_same_bytes(runs, monkeypatch, stop, name, status):
    """Also before, at and after the end of C."""
    flags = "--objective B_TC --C_stop_iter 20 --weak_iters 5 --rise_iters 10 --optimizer muon --lr_start_iter 25 --lr_stop_iter 40"
    runs.run("whole", flags, NO_PICTURES)
    with monkeypatch.context() as patch:
        stopping_at(patch, stop, name)
        output = runs.run("halves", flags, NO_PICTURES, status=status).stdout
        assert f"stopped at iteration {stop}" in output
    assert f"resumed at iteration {stop}" in runs.run("halves", flags, NO_PICTURES).stdout
    assert_same_run(runs, "whole", "halves")


@pytest.mark.slow
def test_resume_after_sigkill_gives_the_same_bytes(runs):
    flags = f"--max_iter 60 --batch_size 1 {NO_PICTURES}"
    runs.run("whole", flags)
    process = runs.start("killed", flags)
    wait_for(runs.checkpoint("killed"), process)
    process.kill()
    process.communicate()
    assert "resumed at iteration" in runs.run("killed", flags).stdout
    assert_same_run(runs, "whole", "killed")


@pytest.mark.slow
@pytest.mark.parametrize("iteration", [20, 40])
def test_killed_between_saving_and_drawing_the_pictures_are_drawn_by_the_next_call(
    runs, monkeypatch, iteration
):
    draw = Solver.draw

    def dying(solver):
        if solver.iter == iteration:
            raise SystemExit(9)
        draw(solver)

    runs.run("whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Solver, "draw", dying)
        runs.run("killed")
    assert read_checkpoint(runs.checkpoint("killed"))["iter"] == iteration
    runs.run("killed")
    assert_same_run(runs, "whole", "killed")


def test_a_stop_in_the_last_iteration_is_a_stop_and_the_next_call_scores(runs, monkeypatch):
    flags = "--max_iter 8 --display_step 8 --save_output no --metrics fast"
    with monkeypatch.context() as patch:
        stopping_at(patch, 8, "SIGTERM")
        assert "finished at iteration 8" in runs.run("run", flags, status=143).stdout
    scored = []
    monkeypatch.setattr("evaluation.evaluator.Evaluator.score", lambda *args, **_: scored.append(args[1]))
    runs.run("run", flags)
    assert scored == ["fast"]


def test_a_signal_that_nohup_ignores_stays_ignored():
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
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(runs.run, "run", NO_PICTURES, "--max_iter 8").result()
    assert "finished at iteration 8" in run.stdout


def test_a_second_ctrl_c_ends_the_process_at_once_and_one_that_is_sent_twice_does_not(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        clock = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: clock)
        for clock in (clock, clock + 0.3, clock + 1):
            assert not sent
            stop.receive(signal.SIGINT, None)
        assert sent == [(os.getpid(), signal.SIGINT)] and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


def test_adagrad_resumes_to_the_byte_and_objective_H_logs_no_C(runs):
    flags = f"--model H --objective H --optimizer adagrad --lr 1e-2 --gather_step 5 {NO_PICTURES}"
    runs.run("whole", flags, "--max_iter 12")
    runs.run("parts", flags, "--max_iter 7")
    runs.run("parts", flags, "--max_iter 12")
    log = read_log(runs.outputs("whole") / "log.csv")
    assert log["iter"] == [5, 10, 12] and "C" not in log
    state = read_checkpoint(runs.checkpoint("whole"))["optim_states"]["optim"]["state"][0]
    assert set(state) == {"step", "sum"}
    one, other = (read_checkpoint(runs.checkpoint(name))["model_states"] for name in ("whole", "parts"))
    assert same(one, other)


# What a run writes.


@pytest.mark.slow
def test_a_run_writes_log_arguments_pictures_and_checkpoints(runs):
    runs.run("run")
    log = read_log(runs.outputs("run") / "log.csv")
    names = ["iter", "recon_loss", "total_kld", "mean_kld", "C"]
    assert list(log) == names + [f"{name}_{j}" for name in ("kld", "mu", "var") for j in range(10)]
    assert log["iter"] == [8, 16, 24, 32, 40]
    assert log["C"] == pytest.approx(
        [25e-5 * (8 * i + 4.5) for i in range(5)], rel=1e-4
    )  # mean over the window
    for i in range(5):
        assert log["total_kld"][i] == pytest.approx(sum(log[f"kld_{j}"][i] for j in range(10)), rel=1e-4)
    about = json.loads((runs.outputs("run") / "args.json").read_text())
    assert about["arguments"]["C_stop_iter"] == 100_000
    assert about["threads"] == 1 and about["versions"]["torch"] and about["commit"]
    for iteration, more in (("20", set()), ("40", {"explore.html"})):
        assert {path.name for path in (runs.outputs("run") / iteration).iterdir()} == PICTURES | more
    for name in ("curves", "capacity"):
        Image.open(runs.outputs("run") / f"{name}.png").verify()
    assert runs.checkpoints("run") == {"last", "previous"}
    assert read_checkpoint(runs.checkpoint("run", "previous"))["iter"] == 30


def test_no_pictures_are_written_when_none_are_wanted(runs):
    runs.run("run", "--max_iter 8", NO_PICTURES)
    names = {path.name for path in runs.outputs("run").iterdir()}
    assert names == {"log.csv", "args.json", "lock", "lock.pid"}


def test_a_picture_that_fails_costs_neither_the_training_nor_the_checkpoint(runs, monkeypatch):
    def failing(solver):
        assert read_checkpoint(solver.checkpoints.folder / "last")["iter"] == solver.iter  # saved before
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr(Solver, "draw", failing)
    output = runs.run("run")
    assert output.stdout.count("latex could not be found") == 2 and "finished at" in output.stdout
    assert "Traceback" not in output.stdout + output.stderr
    monkeypatch.setenv("BETA_VAE_DEBUG", "1")
    assert "Traceback" in runs.run("run").stderr


@pytest.mark.slow
def test_train_false_draws_the_checkpoint_with_the_flags_that_define_its_run(runs):
    runs.run("run", "--max_iter 20")
    before = {path: path.read_bytes() for path in runs.outputs("run").rglob("*.*")}
    for path in before:
        if path.suffix in (".png", ".gif"):
            path.unlink()
    runs.run("run", "--train False --objective H --model H --z_dim 3 --seed 9")
    assert before == {path: path.read_bytes() for path in runs.outputs("run").rglob("*.*")}
    for flags in ("", "--ckpt_name none"):
        assert "needs a checkpoint" in runs.refused("other", "--train False", *flags.split())


# A run of this name is there already.


def test_a_finished_run_says_so_and_a_larger_max_iter_goes_on(runs):
    runs.run("run", NO_PICTURES, "--max_iter 20")
    assert "is finished (iteration 20)" in runs.run("run", NO_PICTURES, "--max_iter 20").stdout
    runs.run("run", NO_PICTURES, "--max_iter 24")
    assert read_log(runs.outputs("run") / "log.csv")["iter"] == [8, 16, 20, 24]


def test_other_settings_are_refused_each_by_name(runs):
    runs.run("run", NO_PICTURES, "--max_iter 10")
    error = runs.refused("run", "--lr 1e-3 --seed 2 --beta 9 --optimizer adagrad")
    assert "lr 0.0001 (now 0.001)" in error and "seed 1 (now 2)" in error and "--viz_name" in error
    assert "optimizer adam (now adagrad)" in error and "beta 4" not in error  # objective B has no beta
    error = runs.refused("third", "--ckpt_name", runs.checkpoint("run"), "--lr 1")
    assert "another --viz_name" not in error and "lr 0.0001 (now 1.0)" in error


def test_starting_afresh_over_a_run_needs_overwrite_and_leaves_nothing_of_it(runs):
    runs.run("run", NO_PICTURES, "--max_iter 20")
    saved, log = (path.read_bytes() for path in (runs.checkpoint("run"), runs.outputs("run") / "log.csv"))
    assert "--overwrite" in runs.refused("run", "--ckpt_name none")
    assert runs.checkpoint("run").read_bytes() == saved
    runs.run("run", NO_PICTURES, "--ckpt_name none --overwrite True --seed 2 --max_iter 8")
    assert read_log(runs.outputs("run") / "log.csv")["iter"] == [8]
    assert (runs.outputs("run") / "log.csv.old").read_bytes() == log
    assert runs.checkpoints("run") == {"last"} and read_checkpoint(runs.checkpoint("run"))["iter"] == 8
    runs.run("run", NO_PICTURES, "--ckpt_name none --overwrite True --seed 2 --max_iter 8")
    # a short log does not replace a longer one
    assert (runs.outputs("run") / "log.csv.old").read_bytes() == log


def test_replacing_a_run_by_the_checkpoint_of_another_leaves_none_of_its_own_to_fall_back_on(
    runs, monkeypatch
):
    monkeypatch.setattr(Checkpoints, "KEEP_EVERY", 10)
    runs.run("run", NO_PICTURES, "--max_iter 20")
    runs.run("one", NO_PICTURES, "--max_iter 30")
    runs.run("run", NO_PICTURES, f"--ckpt_name {runs.checkpoint('one')} --overwrite True --max_iter 31")
    assert runs.checkpoints("run") == {"last", "previous", "30"}
    for name in ("last", "previous"):
        runs.checkpoint("run", name).write_bytes(b"")
    assert "resumed at iteration 30" in runs.run("run", NO_PICTURES, "--max_iter 32").stdout


@pytest.mark.slow
def test_results_of_a_run_that_is_replaced_are_set_aside(runs):
    """Whether it is replaced by the checkpoint of another run, or its checkpoints are not where --ckpt_dir says."""
    runs.run("one", NO_PICTURES, "--max_iter 20")
    for name, flags in (("other", f"--ckpt_name {runs.checkpoint('one')}"), ("mistyped", "--ckpt_dir x")):
        runs.run(name, NO_PICTURES, "--max_iter 30")
        log = (runs.outputs(name) / "log.csv").read_bytes()
        (runs.outputs(name) / "30").mkdir()
        (runs.outputs(name) / "7").mkdir()  # a run named m/7 has its folder here
        (runs.outputs(name) / "7" / "args.json").touch()
        shutil.rmtree(runs.checkpoint(name).parent)
        runs.run(name, NO_PICTURES, "--max_iter 32", flags.replace("_dir x", f"_dir {runs.folder / 'x'}"))
        assert (runs.outputs(name) / "log.csv.old").read_bytes() == log
        first = 24 if name == "other" else 8
        assert read_log(runs.outputs(name) / "log.csv")["iter"][0] == first
        assert {path.name for path in runs.outputs(name).iterdir() if path.is_dir()} == {"7", "30.old"}


@pytest.mark.slow
def test_going_back_to_an_older_checkpoint_needs_overwrite_and_forgets_what_came_later(runs):
    runs.run("whole", NO_PICTURES)
    runs.run("run", NO_PICTURES)
    error = runs.refused("run", "--ckpt_name previous")
    assert "--overwrite" in error and "leave it out to go on with them" in error
    for kept in ("20", "50000"):  # before and after where it goes back to
        shutil.copy(runs.checkpoint("run"), runs.checkpoint("run", kept))
    for iteration in ("20", "40"):
        (runs.outputs("run") / iteration).mkdir()
    log = (runs.outputs("run") / "log.csv").read_bytes()
    runs.run("run", NO_PICTURES, "--ckpt_name previous --overwrite yes")
    assert (runs.outputs("run") / "log.csv.old").read_bytes() == log
    assert {path.name for path in runs.outputs("run").iterdir() if path.is_dir()} == {"20", "40.old"}
    assert runs.checkpoints("run") == {"last", "previous", "20"}
    assert read_checkpoint(runs.checkpoint("run", "previous"))["iter"] == 30
    assert_same_run(runs, "whole", "run")


# Checkpoints.


def test_one_checkpoint_is_kept_for_good_at_multiples_and_the_newest_that_can_be_read_is_taken(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for iteration in (49_999, 50_000, 60_000, 100_000):
        checkpoints.save({"iter": iteration, "model_states": {"net": {"a": 1}}})
    assert [path.name for path in checkpoints.paths()] == ["last", "previous", "100000", "50000"]
    for damaged, newest in (("last", 100_000), ("100000", 60_000), ("previous", 50_000)):
        (tmp_path / damaged).write_bytes(b"")
        assert checkpoints.load()["iter"] == newest
    assert checkpoints.load("50000")["iter"] == 50_000
    with pytest.raises(UserError, match="70000 cannot be read: there is none of that name"):
        checkpoints.load("70000")


@pytest.mark.slow
@pytest.mark.parametrize("old_format", [True, False])
def test_a_checkpoint_of_the_public_repository_is_drawn_and_trained_on(runs, old_format):
    runs.run("ours", "--max_iter", 20)
    state = read_checkpoint(runs.checkpoint("ours"))
    optim = state["optim_states"]["optim"]
    names = ("params", "lr", "betas", "eps", "weight_decay")
    group = {name: optim["param_groups"][0][name] for name in names}
    steps = {i: {**one, "step": 20} for i, one in optim["state"].items()}
    theirs = {"iter": 20, "win_states": {"recon": "window_1"}, "model_states": state["model_states"]}
    theirs["optim_states"] = {"optim": {"state": steps, "param_groups": [group]}}
    public = runs.folder / "public"
    torch.save(theirs, public, _use_new_zipfile_serialization=not old_format)
    assert "no flags" in runs.run("drawn", "--train", "False", "--ckpt_name", public).stdout
    drawn, ours = (Image.open(runs.outputs(name) / "20" / "reconstruction.png") for name in ("drawn", "ours"))
    assert drawn.tobytes() == ours.tobytes()
    runs.run("trained", "--ckpt_name", public, "--max_iter 30", NO_PICTURES)
    after = read_checkpoint(runs.checkpoint("trained"))
    assert after["iter"] == 30 and after["optim_states"]["optim"]["state"][0]["step"] == 30
    for wrong in ("--model H", "--optimizer adagrad", "--optimizer muon"):
        assert "does not fit --model" in runs.refused("other", "--ckpt_name", public, wrong)


def test_weights_without_an_optimiser_are_drawn_but_not_trained_on(runs):
    weights = ROOT / "misc" / "dsprites_B_smoothed.pt"
    flags = "--batch_size 64 --lr 5e-4 --delta 1 --max_iter 200000"
    assert "weights without an optimiser" in runs.refused("run", "--ckpt_name", weights, flags)
    runs.run("drawn", "--train False", "--ckpt_name", weights)
    assert (runs.outputs("drawn") / "150000" / "traverse.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_program_that_is_ended_leaves_no_half_written_file(tmp_path, name):
    code = (
        "import sys, time, utils\n"
        "def run():\n"
        "    with utils.atomic_file(sys.argv[1]) as file:\n"
        "        print('writing', flush=True); time.sleep(60)\n"
        "sys.exit(utils.run_cli('x', '', run))"
    )
    command = [sys.executable, "-c", code, tmp_path / "a"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n" and len(list(tmp_path.iterdir())) == 1
        process.send_signal(number := getattr(signal, name))
        assert process.wait(60) == 128 + number and not list(tmp_path.iterdir())
