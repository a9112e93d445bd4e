"""Real runs of main.py, small ones: what they write, and that none is lost."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from torch import nn

from helpers import ROOT, assert_same_run, same
from model import MODELS, BetaVAE
from run.checkpoint import Checkpoints, load_model, read_checkpoint
from run.folder import defining_flags
from run.log import read_log
from solver import Solver
from utils import StopSignal, UserError, handle_signals

NO_PICTURES = "--save_output no"
PICTURES = {"traverse.png", "traverse.gif", "reconstruction.png", "factors.png", "plane.png"}
WEIGHTS = ROOT / "misc" / "dsprites_B.pt"


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
    "stop, name, status, flags",
    [
        (19, "SIGTERM", 143, "--objective B --C_stop_iter 20 --optimizer muon --lr 20:1e-3,40:1e-5"),
        (20, "SIGINT", 130, "--objective B --C_stop_iter 20 --optimizer adam"),
        (27, "SIGUSR2", 140, "--objective TC --kl_weight 20:1,30:4 --optimizer adagrad --lr 1e-2"),
        (32, "SIGXCPU", 152, "--objective H --model H"),
    ],
)
def test_a_signal_saves_and_resume_gives_the_same_bytes(runs, monkeypatch, stop, name, status, flags):
    runs.run("whole", flags, NO_PICTURES)
    with monkeypatch.context() as patch:
        stopping_at(patch, stop, name)
        output = runs.run("halves", flags, NO_PICTURES, status=status).stdout
        assert f"stopped at iteration {stop}" in output
    assert f"resumed at iteration {stop}" in runs.run("halves", flags, NO_PICTURES).stdout
    assert_same_run(runs, "whole", "halves")


@pytest.mark.slow
def test_killed_between_saving_and_drawing_the_pictures_are_drawn_by_the_next_call(runs, monkeypatch):
    draw = Solver.draw
    runs.run("whole")
    for iteration in (20, 40):

        def dying(solver, iteration=iteration):
            if solver.iter == iteration:
                raise SystemExit(9)
            draw(solver)

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
        with handle_signals(stop := StopSignal()):
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.received == signal.SIGUSR1
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_ends_the_process_at_once_and_one_that_is_sent_twice_does_not(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    before = signal.getsignal(signal.SIGINT)
    with handle_signals(stop := StopSignal()):
        clock = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: clock)
        for clock in (clock, clock + 0.3, clock + 1):
            assert not sent
            stop(signal.SIGINT, None)
        assert sent == [(os.getpid(), signal.SIGINT)] and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


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


@pytest.mark.slow
def test_a_picture_that_fails_costs_neither_the_training_nor_the_checkpoint(runs, monkeypatch):
    def failing(*_):
        assert read_checkpoint(runs.checkpoint("run"))["iter"] == 20  # saved before
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr("viz.figures.curves", failing)
    encoded = []
    monkeypatch.setattr("evaluation.evaluator.Evaluator.encode", lambda evaluator, path: encoded.append(path))
    output = runs.run("run", "--encode codes.npz --max_iter 20")
    assert "latex could not be found; all else goes on" in output.stdout and "finished at" in output.stdout
    assert "Traceback" in output.stderr and encoded == ["codes.npz"]


def leave_to_checkpoint(runs):
    """Start runs without the flags of SMALL that define a run."""
    runs.flags = [flag for flag in runs.flags if flag not in ("--objective", "--model", "B")]


@pytest.mark.slow
def test_train_false_draws_the_checkpoint_with_the_flags_that_define_its_run(runs):
    runs.run("run", "--max_iter 20")
    before = {path: path.read_bytes() for path in runs.outputs("run").rglob("*.*")}
    for path in before:
        if path.suffix in (".png", ".gif"):
            path.unlink()
    leave_to_checkpoint(runs)
    runs.run("run", "--train False")
    assert before == {path: path.read_bytes() for path in runs.outputs("run").rglob("*.*")}
    assert "made with --z_dim 10, not 3" in runs.refused("run", "--train False --z_dim 3")
    assert "needs a checkpoint" in runs.refused("other", "--train False")


class Small(BetaVAE):
    """A network for images of 32x32 pixels."""

    image_size = 32

    def __init__(self, z_dim, nc):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(nc * 1024, 2 * z_dim))
        self.decoder = nn.Sequential(nn.Linear(z_dim, nc * 1024), nn.Unflatten(1, (nc, 32, 32)))


def test_a_checkpoint_of_a_network_for_other_images_is_drawn(runs, monkeypatch):
    monkeypatch.setitem(MODELS, "small", Small)
    for i in range(8):
        Image.new("RGB", (40, 40), (30 * i, 9, 9)).save(runs.folder / f"{i}.png")
    images = f"--dataset folder --dset_dir {runs.folder}"
    assert "dSprites is 64x64" in runs.refused("run", "--model small")
    runs.run("run", images, NO_PICTURES, "--model small --max_iter 2")
    leave_to_checkpoint(runs)
    runs.run("run", NO_PICTURES, "--train False", images)


# A run of this name is there already.


def test_a_finished_run_says_so_and_a_larger_max_iter_goes_on(runs):
    runs.run("run", NO_PICTURES, "--max_iter 20")
    assert "is finished (iteration 20)" in runs.run("run", NO_PICTURES, "--max_iter 20").stdout
    with ThreadPoolExecutor(1) as pool:  # signals are for the main thread alone
        pool.submit(runs.run, "run", NO_PICTURES, "--max_iter 24").result()
    assert read_log(runs.outputs("run") / "log.csv")["iter"] == [8, 16, 20, 24]


def test_other_settings_are_refused_each_by_name(runs):
    runs.run("run", NO_PICTURES, "--max_iter 10")
    error = runs.refused("run", "--lr 1e-3 --seed 2 --optimizer adagrad --beta1 0.8")
    assert "lr 0.0001 (now 0.001)" in error and "seed 1 (now 2)" in error and "--viz_name" in error
    assert "optimizer adam (now adagrad)" in error and "beta1 0.9 (now 0.8)" in error
    assert "lr 0.0001 (now 1.0)" in runs.refused("third", "--ckpt_name", runs.checkpoint("run"), "--lr 1")
    assert not runs.outputs("third").exists() and not runs.checkpoint("third").parent.exists()


def test_a_run_with_flags_that_are_gone_is_drawn_but_resumed_only_if_they_did_nothing(runs):
    runs.run("run", NO_PICTURES, "--max_iter 8")
    state = read_checkpoint(runs.checkpoint("run"))

    def save(**flags):
        arguments = {
            **state["arguments"],
            "C_start": 0.0,
            "lr_stop_iter": 0,
            "kl_weight": 0.5,
            "weak_iters": 5,
            **flags,
        }
        torch.save({**state, "arguments": arguments}, runs.checkpoint("run"))

    now = state["arguments"]
    older = {name: value for name, value in now.items() if name != "kl_weight"}
    for before in (older, {**older, "weak_iters": 5}, {**now, "kl_weight": 0.5, "weak_iters": 5}):
        assert defining_flags(before, now) == defining_flags(
            now, now
        )  # a sweep skips it, once it is finished
    save(C_start=5.0, lr_stop_iter=40000)
    error = runs.refused("run", "--max_iter 9")
    assert "C_start 5.0 (now 0.0)" in error and "lr_stop_iter 40000 (now 0)" in error
    save()
    runs.run("run", NO_PICTURES, "--max_iter 9")
    save(objective="B_TC")
    assert "objective B_TC (now B)" in runs.refused("run", "--max_iter 10")
    leave_to_checkpoint(runs)
    runs.run("run", NO_PICTURES, "--train False")


@pytest.mark.slow
def test_overwrite_starts_anew_and_leaves_nothing_of_the_run_before(runs, monkeypatch):
    monkeypatch.setattr(Checkpoints, "KEEP_EVERY", 10)
    runs.run("run", "--max_iter 20")
    runs.run("run/2other", NO_PICTURES, "--max_iter 8")
    saved = runs.checkpoint("run").read_bytes()
    assert "leave out --ckpt_name" in runs.refused("run", "--ckpt_name", runs.checkpoint("run"))
    assert "fewer than one batch" in runs.refused("run", "--overwrite True --batch_size 1000000")
    assert runs.checkpoint("run").read_bytes() == saved
    runs.run("run", NO_PICTURES, "--overwrite True --seed 2 --max_iter 8")
    assert read_log(runs.outputs("run") / "log.csv")["iter"] == [8]
    assert {path.name for path in runs.outputs("run").iterdir()} == {"log.csv", "args.json", "2other"}
    assert runs.checkpoints("run") == {"last", "2other"}
    assert read_checkpoint(runs.checkpoint("run"))["iter"] == 8
    assert runs.checkpoint("run/2other").exists()  # a run of its own


@pytest.mark.slow
def test_a_log_without_a_row_before_the_checkpoint_is_begun_again_and_the_run_is_drawn(runs):
    with pytest.MonkeyPatch.context() as patch:
        stopping_at(patch, 5, "SIGTERM")
        runs.run("run", NO_PICTURES, status=143)
    saved = runs.checkpoint("run").read_bytes()
    runs.run("run", NO_PICTURES, "--max_iter 9")
    runs.checkpoint("run").write_bytes(saved)  # killed at 9
    with pytest.MonkeyPatch.context() as patch:
        stopping_at(patch, 6, "SIGTERM")
        runs.run("run", NO_PICTURES, status=143)
    assert "pictures in" in runs.run("run", "--train False").stdout
    assert not (runs.outputs("run") / "log.csv").exists()


def test_a_log_whose_checkpoints_are_elsewhere_is_kept(runs):
    runs.run("run", NO_PICTURES, "--max_iter 10")
    log = (runs.outputs("run") / "log.csv").read_bytes()
    runs.run("run", NO_PICTURES, "--max_iter 8", "--ckpt_dir", runs.folder / "mistyped")
    assert (runs.outputs("run") / "log.csv.old").read_bytes() == log
    assert read_log(runs.outputs("run") / "log.csv")["iter"] == [8]


def test_init_starts_from_the_weights_of_a_file_at_iteration_0(runs):
    runs.run("run", NO_PICTURES, "--max_iter 8 --lr 1e-30 --init", WEIGHTS)
    trained, given = (load_model(path).state_dict() for path in (runs.checkpoint("run"), WEIGHTS))
    assert all(torch.allclose(trained[name], given[name]) for name in given)
    assert read_log(runs.outputs("run") / "log.csv")["recon_loss"][-1] < 150
    assert "do not fit --model B --z_dim 3" in runs.refused("other", "--z_dim 3 --init", WEIGHTS)
    output = runs.run("run", NO_PICTURES, "--max_iter 9 --lr 1e-30 --init gone.pt").stdout
    assert "resumed at iteration 8" in output and "--init is for new ones" in output


# Checkpoints.


def test_one_checkpoint_is_kept_for_good_at_multiples_and_the_first_that_can_be_read_is_taken(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for iteration in (49_999, 50_000, 60_000, 100_000):
        checkpoints.save({"iter": iteration, "model_states": {"net": {"a": 1}}})
    assert [path.name for path in checkpoints.paths()] == ["last", "previous", "100000", "50000"]
    for damaged, newest in (("last", 60_000), ("previous", 100_000), ("100000", 50_000)):
        (tmp_path / damaged).write_bytes(b"")
        assert checkpoints.load()["iter"] == newest
    assert checkpoints.load("50000")["iter"] == 50_000
    with pytest.raises(UserError, match="70000 cannot be read: .*No such file"):
        checkpoints.load("70000")


@pytest.mark.parametrize("old_format", [True, False])
def test_a_checkpoint_of_the_public_repository_is_drawn_and_trained_on(runs, old_format):
    runs.run("ours", NO_PICTURES, "--max_iter", 20)
    state = read_checkpoint(runs.checkpoint("ours"))
    optim = state["optim_states"]["optim"]
    names = ("params", "lr", "betas", "eps", "weight_decay")
    group = {name: optim["param_groups"][0][name] for name in names}
    steps = {i: {**one, "step": 20} for i, one in optim["state"].items()}
    if old_format:  # there, addresses are the names of parameters
        steps = {1000 - i: one for i, one in steps.items()}
        group["params"] = [1000 - i for i in group["params"]]
    theirs = {"iter": 20, "win_states": {"recon": "window_1"}, "model_states": state["model_states"]}
    theirs["optim_states"] = {"optim": {"state": steps, "param_groups": [group]}}
    public = runs.folder / "public"
    torch.save(theirs, public, _use_new_zipfile_serialization=not old_format)
    assert "no flags" in runs.run("drawn", NO_PICTURES, "--train", "False", "--ckpt_name", public).stdout
    runs.run("trained", "--ckpt_name", public, "--max_iter 30", NO_PICTURES)
    after = read_checkpoint(runs.checkpoint("trained"))
    assert after["iter"] == 30 and after["optim_states"]["optim"]["state"][0]["step"] == 30
    assert "do not fit --model H" in runs.refused("other", "--ckpt_name", public, "--model H")


@pytest.mark.slow
def test_a_checkpoint_is_trained_on_under_another_name_unless_it_holds_weights_only(runs):
    runs.run("whole", NO_PICTURES)
    runs.run("one", NO_PICTURES, "--max_iter 20")
    runs.run("other", NO_PICTURES, "--ckpt_name", runs.checkpoint("one"))
    states = [read_checkpoint(runs.checkpoint(name)) for name in ("whole", "other")]
    assert same(*(state["model_states"] for state in states))
    flags = "--batch_size 64 --lr 5e-4 --delta 1 --max_iter 200000"
    assert "--init FILE" in runs.refused("run", "--ckpt_name", WEIGHTS, flags)


@pytest.mark.slow
def test_the_weights_that_come_with_the_repository_are_drawn(runs):
    runs.flags = runs.flags[runs.flags.index("--threads") :]
    for name, iteration in (("dsprites_B", 150_000), ("dsprites_S", 20_000)):
        runs.run(name, "--train False --ckpt_name", ROOT / "misc" / f"{name}.pt")
        assert (runs.outputs(name) / str(iteration) / "traverse.png").exists()
