"""Many runs: a sweep trains what main.py would, loses nothing when killed, and shows how far the seeds spread."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import psutil
import pytest

import sweep
from helpers import ROOT, assert_same_run
from run.checkpoint import read_checkpoint

LONG = ["--max_iter", 160, "--save_step", 40, "--display_step", 160]  # some seconds


def arguments(runs, *flags):
    return [str(flag) for flag in (*runs.flags, "--sweep_name", "s", "--save_output", "False", *flags)]


@pytest.fixture
def call(runs, capsys):
    """Call sweep.py in this process with the flags of runs; return what it prints."""

    def call(*flags, status=0):
        assert sweep.main(arguments(runs, *flags)) == status
        return capsys.readouterr()

    return call


@pytest.fixture
def start(tmp_path):
    """Start a Python program in a process group of its own, as a shell would; kill the group in the end."""
    processes = []

    def start(*command, **options):
        options = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        command = [sys.executable, *map(str, command)]
        processes.append(subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **options))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(true, seconds=300):
    end = time.time() + seconds
    while not (found := true()):
        assert time.time() < end
        time.sleep(0.02)
    return found


def training(runs, name):
    """Whether the log of a run has begun."""
    log = runs.outputs(name) / "log.csv"
    return log.exists() and log.read_bytes().count(b"\n") > 1


def printed(runs, name):
    """What all processes printed that trained a run."""
    path = runs.outputs("s") / f"{name}.txt"
    return path.read_text() if path.exists() else ""


def trainer(runs, name):
    """The process that trains a run; None if there is none."""
    words = {f"--viz_name={name}", f"--output_dir={runs.folder / 'out'}"}
    for process in psutil.process_iter(["cmdline"]):
        if words <= set(process.info["cmdline"] or ()):
            return process


# The grid.


GRID = {
    "--seed 0-1 --beta 1,4 --max_iter 1e3": [
        "beta=1_seed=0",
        "beta=4_seed=0",
        "beta=1_seed=1",
        "beta=4_seed=1",
    ],
    "--model H FC --lr 5E-4 --seed=7": ["model=H_seed=7", "model=FC_seed=7"],
    "--seed=3,5-6,3": ["seed=3", "seed=5", "seed=6"],
    "--dset_dir a,b/0-9 --output_dir 0-9": ["seed=1"],  # folders are no lists
}


@pytest.mark.parametrize("flags", GRID)
def test_the_grid_holds_every_combination_named_by_what_varies_as_typed(flags):
    _, runs = sweep.parse(["--sweep_name", "s", *shlex.split(flags)])
    assert [run.name for run in runs] == [f"s_{name}" for name in GRID[flags]]


def test_a_run_script_takes_several_values_and_each_run_gets_its_own_and_the_constants():
    script = ["sh", ROOT / "run_dsprites_B.sh", "--gamma", "3", "--seed", "1", "2", "--C_max", "2", "8"]
    environment = {**os.environ, "PYTHON": "echo", "PROGRAM": "sweep.py"}
    words = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.split()
    args, runs = sweep.parse(words[1:])
    assert words[0] == "sweep.py" and args.sweep_name == "dsprites_B_sweep"  # not the folder of a single run
    assert [(run.args.seed, run.args.C_max) for run in runs] == [(1, 2), (1, 8), (2, 2), (2, 8)]
    assert {(run.args.gamma, run.args.model, run.args.threads) for run in runs} == {(3, "B", 1)}
    assert [run.args.viz_name for run in runs] == [run.name for run in runs]


WRONG = (
    "--bta 1|--beta 1,x|--seed 9-0|--train False|--parallel 0|--sweep_name ../s|--sweep_name=|--scheduler="
)


@pytest.mark.parametrize("flags", WRONG.split("|"))
def test_wrong_flags_of_the_sweep_or_of_any_run_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.parse(["--sweep_name", "s", *flags.split()])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(("sweep.py: ", "main.py: "))


# On this machine.


@pytest.mark.slow
def test_runs_of_a_sweep_give_the_bytes_of_main_alone_and_the_log_does_not_grow_with_each_look(
    runs, call, monkeypatch
):
    looks, began = [], time.monotonic()
    iterations = sweep.study.iterations
    monkeypatch.setattr(sweep.study, "iterations", lambda folder: looks.append(folder) or iterations(folder))
    monkeypatch.setattr(sweep, "POLL", 0.01)
    out, err = call("--seed", "1", "2", "--parallel", 2)
    assert out.count(": finished") == 2 and "2 of 2 runs" in out
    bars = err.replace("\r", "\n").count("it/s") + err.count("?it")
    assert len(looks) > 100 and 1 <= bars <= 8 + (time.monotonic() - began) / 30
    runs.run("alone", "--save_output no", "--seed", 2)
    assert_same_run(runs, "alone", "s_seed=2")


@pytest.mark.slow
def test_finished_runs_are_skipped_and_others_resume_and_all_are_on_the_dashboard(runs, call, monkeypatch):
    shown = set()
    send = lambda board, windows: shown.update(window["win"] for window in windows)  # noqa: E731
    monkeypatch.setattr("viz.dashboard.Dashboard.send", send)
    flags = ["--save_output", "False", "--seed", 1]
    runs.run("s_gamma=1_seed=1", *flags, "--gamma", 1)
    runs.run("s_gamma=4_seed=1", *flags, "--gamma", 4, "--max_iter", 20)
    out = call("--gamma", "1,4", "--viz_on", "True").out
    assert "s: 1 of 2 runs are finished\n" in out and "s: 2 of 2 runs are finished; " in out
    assert printed(runs, "s_gamma=1_seed=1") == ""
    assert "resumed at iteration 20" in printed(runs, "s_gamma=4_seed=1")
    assert shown == {"summary", "table"} and (runs.outputs("s") / "summary.csv").exists()


def test_a_run_is_finished_once_its_last_iteration_has_the_scores_asked_for(runs):
    runs.run("s_seed=1", "--max_iter", 8, "--save_output", "False")

    def finished(*flags):
        (run,) = sweep.parse(arguments(runs, "--metrics", "fast", "--max_iter", 8, *flags))[1]
        return sweep.read_result(run).finished

    assert not finished()
    (runs.outputs("s_seed=1") / "8").mkdir(exist_ok=True)
    for level, done in (("full", False), ("fast", True)):
        scores = {"mig": 0.5, "settings": {"level": level}}
        (runs.outputs("s_seed=1") / "8" / "metrics.json").write_text(json.dumps(scores))
        assert finished() == done
    assert finished("--threads", 2) and not finished("--max_iter", 9) and not finished("--gamma", 7)
    runs.checkpoint("s_seed=1").write_bytes(b"damaged")
    assert not finished()


@pytest.mark.slow
def test_a_run_that_fails_is_one_line_and_the_others_are_trained(runs, call):
    """One run has other settings; one is trained by this process."""
    runs.run("s_seed=1", "--max_iter", 8, "--lr", 5e-4, "--seed", 1)
    solver = runs.solver("s_seed=2", "--seed 2")
    out = call("--seed", "1-3", "--max_iter", 8, status=1).out
    solver.locked.close()
    lines = sorted(line for line in out.splitlines() if "failed" in line)
    assert "s_seed=1: failed, main.py: run s_seed=1 was made with other settings: lr" in lines[0]
    assert "another process is training s_seed=2" in lines[1] and len(lines) == 2
    assert "s_seed=3: finished" in out and "1 of 3 runs are finished; see " in out


def test_a_killed_process_starts_again_and_why_a_run_failed_is_its_own_line_not_the_bar_of_another_sweep(
    tmp_path, monkeypatch
):
    code = """if True:
        import os, sys
        with open("starts", "a") as file:
            file.write(".")
        if open("starts").read() == ".":
            os.kill(os.getpid(), 9)
        print("\\r 45%|###   |", end="")
        print("main.py: the disk is full")
        print("\\r 50%|####  |", end="")
        sys.exit(1)"""
    (tmp_path / "fake.py").write_text(code)
    monkeypatch.setattr(sweep.program, "__file__", tmp_path / "fake.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "printed").write_text("main.py: what an earlier sweep printed\n")
    assert sweep.make_task()([], "printed").startswith("main.py: the disk is full (status 1; ")
    assert (tmp_path / "starts").read_text() == ".."


@pytest.mark.parametrize("gpus, parallel", [(["4", "5"], 2), ([], 3)])
def test_as_many_runs_as_gpus_or_else_cores_train_at_once_and_each_gets_one_of_the_gpus(
    monkeypatch, gpus, parallel
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(gpus))
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(gpus))
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    together, seen = threading.Barrier(parallel, timeout=60), []

    def popen(command, env, **options):
        seen.append((env or {}).get("CUDA_VISIBLE_DEVICES"))
        together.wait()  # for as many as there should be at once
        return SimpleNamespace(wait=lambda: 0, returncode=0, terminate=lambda: None)

    monkeypatch.setattr(subprocess, "Popen", popen)
    with sweep.open_pool(SimpleNamespace(scheduler=None, parallel=None), cuda=True) as submit:
        for future in [submit([], os.devnull) for _ in range(2 * parallel)]:
            future.result()
    assert sorted(seen, key=str) == (["4", "4", "5", "5"] if gpus else [None] * 6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_runs_save_and_the_same_command_goes_on_to_the_same_bytes(
    runs, start, call, number
):
    process = start(ROOT / "sweep.py", *arguments(runs, "--seed", "1,2", "--parallel", 1, *LONG))
    wait_until(lambda: training(runs, "s_seed=1"))
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # to the whole group, as a terminal does
    else:
        process.terminate()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number and "Traceback" not in output and not trainer(runs, "s_seed=1")
    stopped = read_checkpoint(runs.checkpoint("s_seed=1"))["iter"]
    assert 0 < stopped < 160 and printed(runs, "s_seed=1").count("stopped at iteration") == 1
    assert not runs.outputs("s_seed=2").exists()
    call("--seed", 1, *LONG)
    assert f"resumed at iteration {stopped}" in printed(runs, "s_seed=1")
    runs.run("alone", "--seed", 1, "--save_output", "False", *LONG)
    assert_same_run(runs, "alone", "s_seed=1")


# On the workers of a dask scheduler.


@pytest.fixture
def dask(start, tmp_path):
    """Start programs of dask in a folder that is not the repository's, and the scheduler that the others are of."""

    def dask(program, *flags):
        return start("-m", f"distributed.cli.dask_{program}", "--no-dashboard", *flags)

    dask.scheduler = dask("scheduler", "--port", "0", "--host", "127.0.0.1")
    dask.address = next(line.split()[-1] for line in dask.scheduler.stdout if "Scheduler at:" in line)
    return dask


@pytest.mark.slow
def test_runs_share_the_cores_of_a_worker_and_sweep_and_worker_may_be_started_in_any_folder(
    runs, start, dask
):
    dask("worker", dask.address, "--nthreads", 2)
    runs.flags = shlex.split(shlex.join(map(str, runs.flags)).replace("--threads 1", ""))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sweep; sys.exit(sweep.main(sys.argv[1:]))"
    flags = arguments(runs, "--seed", "1,2", "--scheduler", dask.address)
    flags[flags.index("--output_dir") + 1] = "out"  # relative: to the folder of the sweep
    output, _ = (process := start("-c", code, *flags)).communicate(timeout=300)
    assert process.returncode == 0, output
    for name in ("s_seed=1", "s_seed=2"):
        assert json.loads((runs.outputs(name) / "args.json").read_text())["threads"] == 1


@pytest.mark.slow
def test_the_run_of_a_killed_worker_goes_on_at_another(runs, start, dask):
    workers = [dask("worker", dask.address, "--nthreads", 1, "--no-nanny") for _ in range(2)]
    process = start(ROOT / "sweep.py", *arguments(runs, "--scheduler", dask.address, *LONG))
    wait_until(lambda: runs.checkpoint("s_seed=1").exists())
    os.killpg(os.getpgid(trainer(runs, "s_seed=1").pid), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "s_seed=1: finished" in output, output
    assert "resumed at iteration" in printed(runs, "s_seed=1")
    assert sorted(worker.poll() for worker in workers if worker.poll() is not None) == [-signal.SIGKILL]


@pytest.mark.slow
def test_a_lost_scheduler_is_one_line(runs, start, dask):
    dask("worker", dask.address)
    process = start(ROOT / "sweep.py", *arguments(runs, "--scheduler", dask.address, *LONG))
    wait_until(lambda: training(runs, "s_seed=1"))
    dask.scheduler.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and f"lost the scheduler {dask.address}" in output
    assert "Traceback" not in output


def test_no_scheduler_and_no_dask_are_one_line(call, monkeypatch):
    import distributed

    monkeypatch.setattr(distributed, "Client", partial(distributed.Client, timeout=0.2))
    for address in ("tcp://127.0.0.1:9", "x://y"):
        err = call("--scheduler", address, status=1).err
        assert f"sweep.py: no dask scheduler at {address}: " in err and "Traceback" not in err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "no dask scheduler at x: " in call("--scheduler", "x", status=1).err
