"""Many runs: a sweep trains what main.py would, loses nothing when killed, and shows how far the seeds spread."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest

import sweep
from helpers import ROOT, assert_same_run, wait_for
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

    def start(*command):
        options = dict(cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        command = [sys.executable, *map(str, command)]
        processes.append(subprocess.Popen(command, start_new_session=True, **options))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def printed(runs, name):
    """What all processes printed that trained a run."""
    return (runs.outputs("s") / f"{name}.txt").read_text()


def trainers(runs, name):
    """The processes that train a run."""
    words = {f"--viz_name={name}", f"--output_dir={runs.folder / 'out'}"}
    return [each for each in psutil.process_iter(["cmdline"]) if words <= set(each.info["cmdline"] or ())]


GRID = {
    "--seed 0-1 --beta 1,4 --max_iter 1e3": "beta=1_seed=0 beta=4_seed=0 beta=1_seed=1 beta=4_seed=1",
    "--model H FC --lr 5E-4 --seed=7": "model=H_seed=7 model=FC_seed=7",
    "--seed=3,5-6,3 --lr 0:1e-3,9:1e-4": "seed=3 seed=5 seed=6",
    "--kl_weight 4 0:4,1e4:1": "kl_weight=4_seed=1 kl_weight=0:4,1e4:1_seed=1",
}


@pytest.mark.parametrize("flags", GRID)
def test_the_grid_holds_every_combination_named_by_what_varies_as_typed(flags):
    _, runs = sweep.parse(["--sweep_name", "s", *shlex.split(flags)])
    assert [run.name for run in runs] == [f"s_{name}" for name in GRID[flags].split()]


def test_a_run_script_takes_several_values_and_each_run_gets_its_own_and_the_constants():
    script = ["sh", ROOT / "run_dsprites_B.sh", "--gamma", "3", "--seed", "1", "2", "--C_max", "2", "8"]
    environment = {**os.environ, "PYTHON": "echo", "PROGRAM": "sweep.py"}
    words = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.split()
    args, runs = sweep.parse(words[1:])
    assert words[0] == "sweep.py" and args.sweep_name == "dsprites_B_sweep"  # not the folder of a single run
    assert [(run.args.seed, run.args.C_max) for run in runs] == [(1, 2), (1, 8), (2, 2), (2, 8)]
    assert {(run.args.gamma, run.args.model, run.args.threads) for run in runs} == {(3, "B", 1)}
    assert [run.args.viz_name for run in runs] == [run.name for run in runs]


@pytest.mark.parametrize(
    "flags", ["--bta 1", "--beta 1,x", "--seed 9-0", "--train False", "--sweep_name ../s"]
)
def test_wrong_flags_of_the_sweep_or_of_any_run_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.parse(["--sweep_name", "s", *flags.split()])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(("sweep.py: ", "main.py: "))


@pytest.mark.slow
def test_finished_runs_are_skipped_and_others_resume_or_begin_or_fail_and_give_the_bytes_of_main(runs, call):
    runs.run("s_seed=1", "--save_output no --seed 1")
    runs.run("s_seed=2", "--save_output no --seed 2 --max_iter 20")
    runs.run("s_seed=3", "--save_output no --seed 3 --max_iter 1 --lr 5e-4")
    out, _ = call("--seed", "1-4", "--parallel", 2, status=1)
    assert "s: 1 of 4 runs are finished\n" in out and "s: 3 of 4 runs are finished; see " in out
    assert not (runs.outputs("s") / "s_seed=1.txt").exists()
    assert "resumed at iteration 20" in printed(runs, "s_seed=2")
    (line,) = [line for line in out.splitlines() if "failed" in line]
    assert line.startswith("s_seed=3: failed, main.py: run s_seed=3 was made with other settings: lr")
    assert {f"summary.{kind}" for kind in ("csv", "md", "png")} <= {
        path.name for path in runs.outputs("s").iterdir()
    }
    runs.run("alone", "--save_output no --seed 4")
    assert_same_run(runs, "alone", "s_seed=4")


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
    runs.checkpoint("s_seed=1").unlink()
    assert not finished()


def test_a_killed_process_starts_again_but_not_for_ever_and_a_failed_one_says_why(tmp_path, monkeypatch):
    """Its own words count, not the progress of another sweep of this name."""
    monkeypatch.setattr(sweep.program, "__file__", tmp_path / "fake.py")
    failing = "print('50%|main.py: why\\n 60%|another bar'); sys.exit(1)"
    for end, reason, starts in (("os.kill(os.getpid(), 9)", "status -9", 4), (failing, "main.py: why", 1)):
        (tmp_path / "fake.py").write_text(f"import os, sys; print('begun', flush=True); {end}")
        with sweep.open_pool(SimpleNamespace(scheduler=None, parallel=1), cuda=False) as submit:
            assert submit([], tmp_path / str(starts)).result() == reason
        assert (tmp_path / str(starts)).read_text().count("begun") == starts


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
    wait_for(runs.outputs("s_seed=1") / "log.csv", process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # to the whole group, as a terminal does
    else:
        process.terminate()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number and "Traceback" not in output and not trainers(runs, "s_seed=1")
    stopped = read_checkpoint(runs.checkpoint("s_seed=1"))["iter"]
    assert 0 < stopped < 160 and printed(runs, "s_seed=1").count("stopped at iteration") == 1
    assert not runs.outputs("s_seed=2").exists()
    call("--seed", 1, *LONG)
    assert f"resumed at iteration {stopped}" in printed(runs, "s_seed=1")


@pytest.mark.slow
def test_workers_in_another_folder_train_and_the_run_of_a_killed_one_goes_on_at_another(runs, start):
    dask = "-m distributed.cli.dask_"
    scheduler = start(*f"{dask}scheduler --no-dashboard --port 0 --host 127.0.0.1".split())
    address = next(line.split()[-1] for line in scheduler.stdout if "Scheduler at:" in line)
    worker = f"{dask}worker {address} --nthreads 1 --no-nanny --no-dashboard".split()
    workers = [start(*worker), start(*worker)]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sweep; sys.exit(sweep.main(sys.argv[1:]))"
    process = start("-c", code, *arguments(runs, "--seed", "1,2", "--scheduler", address, *LONG))
    wait_for(runs.checkpoint("s_seed=1"), process)
    os.killpg(os.getpgid(trainers(runs, "s_seed=1")[0].pid), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "2 of 2 runs are finished; " in output, output
    assert "resumed at iteration" in printed(runs, "s_seed=1")
    assert {worker.poll() for worker in workers} == {None, -signal.SIGKILL}
