"""Real runs of main.py, small ones: what they write, and that none is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from helpers import ROOT, assert_same_run, same, wait_for
from model import MODELS, BetaVAE_FC
from run.checkpoint import Checkpoints, load_model, read_checkpoint
from run.log import read_log
from solver import Solver
from utils import StopSignal, UserError, handle_signals

NO_PICTURES = "--save_output no"
PICTURES = {"traverse.png", "traverse.gif", "reconstruction.png", "factors.png", "plane.png"}


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
    [
        (19, "SIGTERM", 143),
        (20, "SIGINT", 130),
        (24, "SIGUSR2", 140),
        (25, "SIGXCPU", 152),
        (32, "SIGUSR1", 138),
    ],
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
        with handle_signals(stop := StopSignal()):
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
    with handle_signals(stop := StopSignal()):
        clock = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: clock)
        for clock in (clock, clock + 0.3, clock + 1):
            assert not sent
            stop(signal.SIGINT, None)
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
    assert names == {"log.csv", "args.json"}


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


@pytest.mark.slow
def test_train_false_draws_the_checkpoint_with_the_flags_that_define_its_run(runs):
    runs.run("run", "--max_iter 20")
    before = {path: path.read_bytes() for path in runs.outputs("run").rglob("*.*")}
    for path in before:
        if path.suffix in (".png", ".gif"):
            path.unlink()
    runs.flags = [flag for flag in runs.flags if flag not in ("--objective", "--model", "B")]
    runs.run("run", "--train False")
    assert before == {path: path.read_bytes() for path in runs.outputs("run").rglob("*.*")}
    assert "made with --z_dim 10, not 3" in runs.refused("run", "--train False --z_dim 3")
    assert "needs a checkpoint" in runs.refused("other", "--train False")


# A run of this name is there already.


def test_a_finished_run_says_so_and_a_larger_max_iter_goes_on(runs):
    runs.run("run", NO_PICTURES, "--max_iter 20")
    assert "is finished (iteration 20)" in runs.run("run", NO_PICTURES, "--max_iter 20").stdout
    runs.run("run", NO_PICTURES, "--max_iter 24")
    assert read_log(runs.outputs("run") / "log.csv")["iter"] == [8, 16, 20, 24]


def test_other_settings_are_refused_each_by_name(runs):
    runs.run("run", NO_PICTURES, "--max_iter 10")
    error = runs.refused("run", "--lr 1e-3 --seed 2 --optimizer adagrad --beta1 0.8 --lr_stop_iter 9")
    assert "lr 0.0001 (now 0.001)" in error and "seed 1 (now 2)" in error and "--viz_name" in error
    assert "optimizer adam (now adagrad)" in error and "beta1 0.9 (now 0.8)" in error
    assert "lr_stop_iter 0 (now 9)" in error
    assert "lr 0.0001 (now 1.0)" in runs.refused("third", "--ckpt_name", runs.checkpoint("run"), "--lr 1")
    assert not runs.outputs("third").exists() and not runs.checkpoint("third").parent.exists()


def test_a_flag_that_an_old_checkpoint_lacks_has_the_value_of_its_time(runs):
    runs.run("run", NO_PICTURES, "--max_iter 8")
    state = read_checkpoint(runs.checkpoint("run"))
    del state["arguments"]["C_start"]
    torch.save(state, runs.checkpoint("run"))
    assert "C_start 0.0 (now 5.0)" in runs.refused("run", "--C_start 5")
    runs.run("run", NO_PICTURES, "--max_iter 9")


def test_a_checkpoint_of_a_network_for_other_images_is_drawn(runs, monkeypatch):
    class Half(BetaVAE_FC):
        image_size = 32

        def __init__(self, z_dim, nc):
            super().__init__(z_dim, nc)
            self.encoder[1] = torch.nn.Linear(nc * 1024, 1200)
            self.decoder[6], self.decoder[7] = (
                torch.nn.Linear(1200, nc * 1024),
                torch.nn.Unflatten(1, (nc, 32, 32)),
            )

    monkeypatch.setitem(MODELS, "half", Half)
    for i in range(8):
        Image.new("RGB", (40, 40), (30 * i, 9, 9)).save(runs.folder / f"{i}.png")
    images = f"--dataset folder --dset_dir {runs.folder}"
    runs.run("run", images, NO_PICTURES, "--model half --max_iter 2")
    runs.flags = [flag for flag in runs.flags if flag not in ("--model", "B")]
    runs.flags.remove("--objective")
    runs.run("run", NO_PICTURES, "--train False", images)


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
    assert runs.checkpoint("run/2other").exists()  # a run of its own
    assert (
        runs.checkpoints("run") == {"last", "2other"} and read_checkpoint(runs.checkpoint("run"))["iter"] == 8
    )


def test_a_log_whose_checkpoints_are_elsewhere_is_kept(runs):
    runs.run("run", NO_PICTURES, "--max_iter 10")
    log = (runs.outputs("run") / "log.csv").read_bytes()
    runs.run("run", NO_PICTURES, "--max_iter 8", "--ckpt_dir", runs.folder / "mistyped")
    assert (runs.outputs("run") / "log.csv.old").read_bytes() == log
    assert read_log(runs.outputs("run") / "log.csv")["iter"] == [8]


@pytest.mark.slow
def test_a_checkpoint_is_trained_on_under_another_name(runs):
    runs.run("whole", NO_PICTURES)
    runs.run("one", NO_PICTURES, "--max_iter 20")
    runs.run("other", NO_PICTURES, "--ckpt_name", runs.checkpoint("one"))
    states = [read_checkpoint(runs.checkpoint(name)) for name in ("whole", "other")]
    assert same(*(state["model_states"] for state in states))


def test_init_starts_from_the_weights_of_a_file_at_iteration_0(runs):
    weights = ROOT / "misc" / "dsprites_B_smoothed.pt"
    runs.run("run", NO_PICTURES, "--max_iter 8 --lr 1e-30 --init", weights)
    trained, given = (load_model(path).state_dict() for path in (runs.checkpoint("run"), weights))
    assert all(torch.allclose(trained[name], given[name]) for name in given)
    assert read_log(runs.outputs("run") / "log.csv")["recon_loss"][-1] < 150
    assert "do not fit --model B --z_dim 3" in runs.refused("other", "--z_dim 3 --init", weights)
    output = runs.run("run", NO_PICTURES, "--max_iter 9 --lr 1e-30 --init gone.pt").stdout
    assert "resumed at iteration 8" in output and "--init is for new ones" in output


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
    with pytest.raises(UserError, match="70000 cannot be read: .*No such file"):
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
    assert "do not fit --model H" in runs.refused("other", "--ckpt_name", public, "--model H")


def test_weights_without_an_optimiser_are_drawn_but_not_trained_on(runs):
    weights = ROOT / "misc" / "dsprites_B_smoothed.pt"
    flags = "--batch_size 64 --lr 5e-4 --delta 1 --max_iter 200000"
    assert "--init FILE" in runs.refused("run", "--ckpt_name", weights, flags)
    runs.flags = [*runs.flags, *"--batch_size 64".split()]
    runs.run("drawn", "--train False", "--ckpt_name", weights)
    assert (runs.outputs("drawn") / "150000" / "traverse.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
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
