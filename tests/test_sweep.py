"""Many runs: a sweep trains what main.py would, loses nothing when killed, and shows how far the seeds spread."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from run.lock import lock_run

import sweep
from evaluation import study
from helpers import ROOT
from run.checkpoint import read_checkpoint
from test_run import assert_same_run
from viz import figures

LONG = ["--max_iter", 160, "--save_step", 40, "--display_step", 160]  # some seconds


def arguments(runs, *flags):
    return [str(flag) for flag in (*runs.flags, "--sweep_name", "s", "--save_output", "False", *flags)]


@pytest.fixture
def call(runs, capsys):
    """Calls sweep.py in this process, with the flags of runs; returns what it prints."""

    def call(*flags, status=0):
        assert sweep.main(arguments(runs, *flags)) == status
        return capsys.readouterr()

    return call


@pytest.fixture
def start(runs):
    """Starts sweep.py as a terminal would, with the flags of runs; kills it in the end."""
    processes = []

    def start(*flags):
        command = [sys.executable, ROOT / "sweep.py", *arguments(runs, *flags)]
        options = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        processes.append(subprocess.Popen(command, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_until(true, seconds=300):
    end = time.time() + seconds
    while not (found := true()):
        assert time.time() < end
        time.sleep(0.02)
    return found


def training(runs, *names):
    """Whether the logs of these runs have begun."""
    logs = [runs.outputs(name) / "log.csv" for name in names]
    return all(log.exists() and log.read_bytes().count(b"\n") > 1 for log in logs)


def printed(runs, name):
    """What all processes printed that trained a run."""
    path = runs.outputs("s") / f"{name}.txt"
    return path.read_text() if path.exists() else ""


def trainers(runs):
    """The processes that train in a test's folders."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if "run_main" in words and str(runs.folder) in words:
            found.append(process)
    return found


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


def test_a_run_script_takes_several_values_and_each_run_gets_its_own_and_the_constants_of_which_the_last_counts():
    script = ["sh", ROOT / "run_dsprites_B.sh", "--gamma", "3", "--seed", "1", "2", "--C_max", "2", "8"]
    environment = {**os.environ, "PYTHON": "echo", "PROGRAM": "sweep.py"}
    words = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.split()
    args, runs = sweep.parse(words[1:])
    assert words[0] == "sweep.py" and args.sweep_name == "dsprites_B_sweep"  # not the folder of a single run
    assert [(run.args.seed, run.args.C_max) for run in runs] == [(1, 2), (1, 8), (2, 2), (2, 8)]
    assert {(run.args.gamma, run.args.model) for run in runs} == {(3, "B")}
    assert [run.args.viz_name for run in runs] == [run.name for run in runs]


WRONG = [
    "--bta 1",
    "--beta 1,x",
    "--seed 9-0",
    "--train False",
    "--parallel 0",
    "--sweep_name ../s",
    "--sweep_name=",
    "--scheduler=",
]


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_of_the_sweep_or_of_any_run_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.parse(["--sweep_name", "s", *flags.split()])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(("sweep.py: ", "main.py: "))


# Training.


@pytest.mark.slow
def test_a_run_of_a_sweep_gives_the_bytes_of_main_alone(runs, call):
    out, err = call("--seed", "1", "2", "--parallel", 2)
    assert out.count(": finished\n") == 2 and "2 of 2 runs" in err
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
    assert "1 of 2 runs are finished already" in out and "2 of 2 runs are finished: " in out
    assert printed(runs, "s_gamma=1_seed=1") == ""
    assert "resumed at iteration 20" in printed(runs, "s_gamma=4_seed=1")
    assert shown == {"summary", "table"} and (runs.outputs("s") / "summary.csv").exists()


def test_a_run_is_finished_once_its_last_iteration_has_the_scores_asked_for(runs):
    runs.run("s_seed=1", "--max_iter", 8, "--save_output", "False")

    def finished(*flags):
        (run,) = sweep.parse(arguments(runs, "--metrics", "fast", "--max_iter", 8, *flags))[1]
        return sweep.result(run).finished

    assert not finished()
    (runs.outputs("s_seed=1") / "8").mkdir(exist_ok=True)
    for level, done in (("full", False), ("fast", True)):
        scores = {"mig": 0.5, "settings": {"level": level}}
        (runs.outputs("s_seed=1") / "8" / "metrics.json").write_text(json.dumps(scores))
        assert finished() == done
    assert not finished("--max_iter", 9) and not finished("--gamma", 7)


@pytest.mark.slow
def test_a_run_that_fails_is_one_line_and_the_others_are_trained(runs, call, monkeypatch):
    """One run has other settings, one is trained by this process."""
    monkeypatch.setattr(sweep, "SAVING", 0)
    runs.run("s_seed=1", "--max_iter", 8, "--lr", 5e-4, "--seed", 1)
    with lock_run(runs.outputs("s_seed=2")):
        out, err = call("--seed", "1-3", status=1)
    lines = sorted(line for line in err.replace("\r", "\n").splitlines() if "failed" in line)
    assert "s_seed=1: failed, main.py: run s_seed=1 was made with other settings: lr" in lines[0]
    assert f"is in use: pid {os.getpid()}" in lines[1] and len(lines) == 2
    assert "s_seed=3: finished" in out and "1 of 3 runs are finished: " in out


@pytest.mark.slow
def test_runs_of_a_machine_share_its_cores_and_take_one_of_several_gpus_each(runs, call, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("dask.system.CPU_COUNT", 6)
    started, popen = [], subprocess.Popen

    def record(command, **options):
        if "--max_iter=1" in command:
            started.append(options["env"]["CUDA_VISIBLE_DEVICES"])
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", record)
    runs.flags = shlex.split(shlex.join(map(str, runs.flags)).replace("--threads 1", ""))
    call("--seed", "1", "2", "--parallel", 2, "--max_iter", 1)
    assert sorted(started) == ["4", "5"]
    assert "cpu, 3 threads" in printed(runs, "s_seed=1")


# Killed.


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_runs_save(runs, start, number):
    process = start("--seed", "1,2", *LONG)
    wait_until(lambda: training(runs, "s_seed=1"))
    os.killpg(process.pid, number)  # to the whole group, as a terminal sends it
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number and "Traceback" not in output and not trainers(runs)
    assert 0 < read_checkpoint(runs.checkpoint("s_seed=1"))["iter"] < 160
    assert printed(runs, "s_seed=1").count("stopped at iteration") == 1
    assert not runs.outputs("s_seed=2").exists()


@pytest.mark.slow
def test_the_runs_of_a_killed_sweep_save_and_end_and_a_second_call_goes_on(runs, start, call):
    process = start("--seed", "1,2", "--parallel", 2, *LONG)
    wait_until(lambda: training(runs, "s_seed=1", "s_seed=2"))
    process.kill()
    wait_until(lambda: not trainers(runs))
    stopped = read_checkpoint(runs.checkpoint("s_seed=1"))["iter"]
    assert 0 < stopped < 160 and f"stopped at iteration {stopped}" in printed(runs, "s_seed=1")
    call("--seed", "1,2", "--parallel", 2, *LONG)
    assert f"resumed at iteration {stopped}" in printed(runs, "s_seed=1")
    runs.run("alone", "--seed", 1, "--save_output", "False", *LONG)
    assert_same_run(runs, "alone", "s_seed=1")


@pytest.mark.slow
def test_a_run_that_is_killed_once_resumes(runs, start):
    process = start("--seed", 1, *LONG)
    wait_until(lambda: runs.checkpoint("s_seed=1").exists())
    trainers(runs)[0].kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "s_seed=1: finished" in output
    assert "resumed at iteration" in printed(runs, "s_seed=1")


# On workers of another scheduler.


@pytest.fixture
def cluster():
    """A scheduler and two workers in processes of their own, as "dask scheduler" and "dask worker" start them."""

    def dask(program, *flags):
        command = [sys.executable, "-m", f"distributed.cli.dask_{program}", "--no-dashboard", *flags]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    scheduler = dask("scheduler", "--port", "0")
    address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at:" in line)
    workers = [dask("worker", address, "--nthreads", "1", "--no-nanny") for _ in range(2)]
    yield SimpleNamespace(scheduler=scheduler, address=address)
    for process in (scheduler, *workers):
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_run_of_a_killed_worker_goes_on_once_its_process_has_saved(runs, start, cluster):
    process = start("--seed", 1, "--scheduler", cluster.address, *LONG)
    wait_until(lambda: training(runs, "s_seed=1"))
    trainers(runs)[0].parent().kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "s_seed=1: finished" in output, output
    text = printed(runs, "s_seed=1")
    assert "stopped at iteration" in text and "resumed at iteration" in text and "is in use" not in text


@pytest.mark.slow
def test_workers_elsewhere_stop_their_runs_when_the_sweep_is_killed(runs, start, cluster):
    process = start("--seed", "1,2", "--scheduler", cluster.address, *LONG)
    wait_until(lambda: training(runs, "s_seed=1", "s_seed=2"))
    process.kill()
    wait_until(lambda: not trainers(runs))
    assert "stopped at iteration" in printed(runs, "s_seed=1")
    assert start("--seed", "1,2", "--scheduler", cluster.address, *LONG).wait(300) == 0


@pytest.mark.slow
def test_a_lost_scheduler_is_one_line_and_its_runs_stop(runs, start, cluster):
    process = start("--seed", "1,2", "--scheduler", cluster.address, *LONG)
    wait_until(lambda: training(runs, "s_seed=1"))
    cluster.scheduler.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and f"lost the scheduler {cluster.address}" in output
    assert "Traceback" not in output
    wait_until(lambda: not trainers(runs))
    assert "stopped at iteration" in printed(runs, "s_seed=1")


def test_no_scheduler_and_no_dask_are_one_line(call, monkeypatch):
    monkeypatch.setattr(sweep, "TIMEOUT", 0.2)
    for address in ("tcp://127.0.0.1:9", "x://y"):
        out, err = call("--scheduler", address, status=1)
        assert err.count("\n") == 1 and f"no dask scheduler at {address}" in err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert call(status=1).err == "sweep.py: a sweep needs dask.distributed: pip install distributed\n"


def test_no_other_machine_can_reach_the_workers_of_a_sweep_of_its_own():
    with sweep.connect(SimpleNamespace(scheduler=None, parallel=2)):
        listening = [each for each in psutil.Process().net_connections() if each.status == "LISTEN"]
    assert listening and {each.laddr.ip for each in listening} == {"127.0.0.1"}


# The summary.


def test_the_summary_of_finished_runs_is_a_table_of_means_and_a_picture_with_a_dot_a_run(
    tmp_path, monkeypatch
):
    results = []
    for beta, seed, mig in ((1, 0, 0.25), (4, 0, 0.5), (1, 1, 0.75), (4, 1, None)):  # the last still trains
        folder = tmp_path / f"s_beta={beta}_seed={seed}"
        (folder / "9").mkdir(parents=True)
        log = f"iter,recon_loss,total_kld,kld_0,kld_1\n3,90,9,1,1\n9,{80 + seed},7.5,7.495,0.005\n"
        (folder / "log.csv").write_text(log)
        scores = {"mig": mig, "dci": None, "settings": {"level": "fast"}}
        (folder / "9" / "metrics.json").write_text(json.dumps(scores))
        numbers = study.read_numbers(folder, "fast" if mig else "none")
        results.append(study.Result(folder.name, {"beta": str(beta), "seed": str(seed)}, bool(mig), numbers))
    drawn = []
    monkeypatch.setattr(figures, "save", lambda path, write: drawn.append(write.__self__))
    study.write(tmp_path, "s", [*results, study.Result("s_beta=4_seed=2", {}, False, {})])
    assert list(csv.reader(open(tmp_path / "summary.csv"))) == [
        "run beta seed finished iterations recon_loss total_kld active_latents mig".split(),
        ["s_beta=1_seed=0", "1", "0", "True", "9", "80.0", "7.5", "1", "0.25"],
        ["s_beta=4_seed=0", "4", "0", "True", "9", "80.0", "7.5", "1", "0.5"],
        ["s_beta=1_seed=1", "1", "1", "True", "9", "81.0", "7.5", "1", "0.75"],
        ["s_beta=4_seed=1", "4", "1", "False", "9", "81.0", "7.5", "1", ""],
    ]
    text = (tmp_path / "summary.md").read_text()
    assert "3 of 5 runs are finished" in text
    assert [line for line in text.splitlines() if line.startswith("| beta")] == [
        "| beta=1 | 2 | 80.5 ± 0.7 | 7.500 ± 0.000 | 1.000 ± 0.000 | 0.500 ± 0.354 |",
        "| beta=4 | 1 | 80.0 | 7.500 | 1.000 | 0.500 |",
    ]
    panel = next(axes for axes in drawn[0].axes if axes.get_title() == "mig")
    assert [list(line.get_ydata()) for line in panel.lines] == [[0.25, 0.75], [0.5]]
    assert [lines.get_segments()[0][:, 1].tolist() for lines in panel.collections] == [[0.5, 0.5], [0.5, 0.5]]
    assert len({x for line in panel.lines for x in line.get_xdata()}) == 3  # none hides another

    results[0].numbers.pop("mig")  # what a run lacks is not in the table
    study.write(tmp_path, "s", results)
    assert (
        "| setting | n | recon_loss | total_kld | active_latents |\n" in (tmp_path / "summary.md").read_text()
    )


@pytest.mark.parametrize("log", [None, "iter,recon_loss\n", "\0\xff"])
def test_a_missing_or_damaged_log_has_no_iterations_and_no_numbers(tmp_path, log):
    if log is not None:
        (tmp_path / "log.csv").write_text(log)
    assert study.iterations(tmp_path) == 0 and study.read_numbers(tmp_path) is None
