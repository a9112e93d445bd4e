"""Many runs: that a sweep trains what main.py would, loses nothing when killed, and says how far the seeds spread."""

import csv
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import distributed
import numpy as np
import psutil
import pytest

import sweep
from conftest import ROOT
from evaluation import study
from test_run import assert_same_run
from training.checkpoint import read_checkpoint
from training.lock import lock_run
from viz import figures

LONG = ["--max_iter", 160, "--save_step", 40, "--display_step", 160]  # some seconds


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
        processes.append(
            subprocess.Popen(
                [sys.executable, ROOT / "sweep.py", *arguments(runs, *flags)],
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def arguments(runs, *flags):
    return [str(flag) for flag in (*runs.flags, "--sweep_name", "s", "--save_output", "False", *flags)]


def wait_until(true, seconds=120):
    end = time.time() + seconds
    while not (found := true()):
        assert time.time() < end
        time.sleep(0.02)
    return found


def training(runs, name):
    """Whether a run's log has begun."""
    log = runs.outputs(name) / "log.csv"
    return log.exists() and log.read_bytes().count(b"\n") > 1


def said(runs, name):
    """What all processes said that trained a run."""
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


def names(flags):
    return [run.name for run in sweep.parse(["--sweep_name", "s", *shlex.split(flags)])[1]]


def test_the_grid_holds_every_combination_named_by_what_varies_as_typed():
    grid = ["s_beta=1_seed=0", "s_beta=4_seed=0", "s_beta=1_seed=1", "s_beta=4_seed=1"]
    assert names("--seed 0-1 --beta 1,4 --max_iter 1e3") == grid
    assert names("--seed 0 1 --max_iter 1e3 --beta 1 4") == grid
    assert names("--model H FC --lr 1e-4,5E-4 --seed 7") == [
        "s_model=H_lr=1e-4_seed=7",
        "s_model=FC_lr=1e-4_seed=7",
        "s_model=H_lr=5E-4_seed=7",
        "s_model=FC_lr=5E-4_seed=7",
    ]
    assert names("--seed=3,5-6") == ["s_seed=3", "s_seed=5", "s_seed=6"]
    assert names("--beta 1e-3 --dset_dir a,b/0-9 --output_dir 0-9") == ["s_seed=1"]  # folders are no lists


def test_a_run_gets_its_own_values_and_the_constants_of_which_the_last_counts():
    _, runs = sweep.parse(shlex.split("--sweep_name s --beta 1,4 --gamma 3 --viz_name x --beta 2 8 --seed 5"))
    assert [(run.args.beta, run.args.gamma, run.args.seed, run.args.viz_name) for run in runs] == [
        (2, 3, 5, "s_beta=2_seed=5"),
        (8, 3, 5, "s_beta=8_seed=5"),
    ]


def test_a_run_script_takes_seeds_alone():
    script = ["sh", ROOT / "run_dsprites_B.sh", "--seed", "1", "2", "3"]
    environment = {**os.environ, "PYTHON": "echo", "PROGRAM": "sweep.py"}
    words = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.split()
    args, runs = sweep.parse(words[1:])
    assert words[0] == "sweep.py" and [run.args.seed for run in runs] == [1, 2, 3]
    assert {run.args.model for run in runs} == {"B"}
    # not the folder of the run that the script makes without PROGRAM
    assert args.sweep_name == "dsprites_B_sweep"


@pytest.mark.parametrize(
    "flags",
    [
        "--sweep_name s --bta 1",
        "--sweep_name s --beta 1,x",
        "--sweep_name s --beta 1 1.0",
        "--sweep_name s --seed 9-0",
        "--sweep_name s --seed=-1-3",
        "--sweep_name s --seed 0-999999999",
        "--sweep_name s --seed 0-999 --beta 0-999",
        "--sweep_name s --model B,Q",
        "--sweep_name s --cuda True False",
        "--sweep_name s --metrics none fast",
        "--sweep_name s --dset_dir a b",
        "--sweep_name s --train False",
        "--sweep_name s --image a.png b.png",
        "--sweep_name s --encode codes.npz",
        "--sweep_name s --overwrite True --ckpt_name none",
        "--sweep_name s --parallel 0",
        "--sweep_name s --seed",
        "--sweep_name s 5",
        "--sweep_name s --=5",
        "--sweep_name ''",
        "--sweep_name ../s --seed 0,1",
        "",
    ],
)
def test_bad_flags_of_the_sweep_or_of_any_run_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.parse(shlex.split(flags))
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(("sweep.py: ", "main.py: "))


@pytest.mark.parametrize(
    "flags, name",
    [
        ("--objective B --beta 1,4", "beta"),
        ("--objective H --C_max 15,25", "C_max"),
        ("--optimizer adagrad --beta1 0.5,0.9", "beta1"),
        ("--objective H,B --beta 1,4", "beta"),
    ],
)
def test_values_that_would_all_give_the_same_run_are_refused(flags, name, capsys):
    with pytest.raises(SystemExit):
        sweep.parse(["--sweep_name", "s", *flags.split()])
    assert f"--{name} takes one value" in capsys.readouterr().err


# Training.


def test_a_run_of_a_sweep_gives_the_bytes_of_main_alone(runs, call):
    out, err = call("--seed", "1", "2", "--parallel", 2)
    assert out.count(": finished, ") == 2 and "2 of 2 runs" in err
    runs.run("alone", "--save_output no", "--seed", 2)
    assert_same_run(runs, "alone", "s_seed=2")


def test_finished_runs_are_skipped_and_interrupted_ones_resume_and_all_are_on_the_dashboard(
    runs, call, monkeypatch
):
    shown = []
    send = lambda board, windows: shown.extend(window["win"] for window in windows) or True  # noqa: E731
    monkeypatch.setattr("viz.dashboard.Dashboard.send", send)
    flags = ["--save_output", "False", "--seed", 1]
    runs.run("s_gamma=1_seed=1", *flags, "--gamma", 1)
    runs.run("s_gamma=4_seed=1", *flags, "--gamma", 4, "--max_iter", 20)
    assert "2 runs, 1 of them finished already" in call("--gamma", "1,4").out
    assert not (runs.outputs("s") / "s_gamma=1_seed=1.txt").exists()
    before = said(runs, "s_gamma=4_seed=1")
    assert "resumed at iteration 20" in before
    (runs.outputs("s") / "summary.csv").unlink()
    assert "2 of 2 runs are finished" in call("--gamma", "1,4", "--viz_on", "True").out
    assert shown == ["summary", "table"]
    assert said(runs, "s_gamma=4_seed=1") == before  # nothing was started
    assert (runs.outputs("s") / "summary.csv").exists()


def test_a_run_is_finished_once_its_last_iteration_has_the_scores_asked_for(runs):
    runs.run("s_seed=1", "--max_iter", 8, "--save_output", "False")

    def finished(*flags):
        (run,) = sweep.parse(arguments(runs, "--metrics", "fast", "--max_iter", 8, *flags))[1]
        return sweep.look(run).finished

    (runs.outputs("s_seed=1") / "8").mkdir(exist_ok=True)
    for level, done in ((None, False), ("full", False), ("fast", True)):
        if level:
            scores = {"mig": 0.5, "settings": {"level": level}}
            (runs.outputs("s_seed=1") / "8" / "metrics.json").write_text(json.dumps(scores))
        assert finished() == done
    assert not finished("--max_iter", 9) and not finished("--gamma", 7)


def test_a_run_that_fails_is_one_line_and_the_others_are_trained(runs, call):
    runs.run("s_seed=1", "--max_iter", 8, "--lr", 5e-4, "--seed", 1)
    out, err = call("--seed", "1,2", status=1)
    (line,) = [line for line in err.replace("\r", "\n").splitlines() if "failed" in line]
    assert "s_seed=1: failed, main.py: run s_seed=1 was made with other settings: lr" in line
    assert "s_seed=2: finished" in out and "1 of 2 runs are finished" in out


def test_a_finished_run_whose_log_is_gone_says_how_to_train_it_again(runs, call):
    runs.run("s_seed=1", "--max_iter", 8, "--save_output", "False")
    (runs.outputs("s_seed=1") / "log.csv").unlink()
    err = call("--max_iter", 8, status=1).err
    assert f"to train it again, remove {runs.folder / 'ckpt' / 's_seed=1'};" in err


def test_a_run_that_another_process_trains_comes_last_and_waits_for_it(runs, start):
    with lock_run(runs.outputs("s_seed=1")):
        process = start("--seed", "1,2")
        wait_until(lambda: "waiting for pid" in said(runs, "s_seed=1"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and f"its turn comes when pid {os.getpid()}" in output
    assert output.index("s_seed=2: finished") < output.index("s_seed=1: finished")


# Killed.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_runs_save_and_the_sweep_says_so(runs, start, number):
    process = start("--seed", "1,2", *LONG)
    wait_until(lambda: training(runs, "s_seed=1"))
    os.killpg(process.pid, number)  # to the whole group, as a terminal sends it
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "the same command goes on" in output
    assert "Traceback" not in output and not trainers(runs)
    assert 0 < read_checkpoint(runs.checkpoint("s_seed=1"))["iter"] < 160
    assert said(runs, "s_seed=1").count("stopped at iteration") == 1
    assert not runs.outputs("s_seed=2").exists()


def test_the_runs_of_a_killed_sweep_save_and_end_and_a_second_call_goes_on(runs, start, call):
    process = start("--seed", "1,2", "--parallel", 2, *LONG)
    wait_until(lambda: training(runs, "s_seed=1") and training(runs, "s_seed=2"))
    process.kill()
    wait_until(lambda: not trainers(runs))
    stopped = read_checkpoint(runs.checkpoint("s_seed=1"))["iter"]
    assert 0 < stopped < 160 and f"stopped at iteration {stopped}" in said(runs, "s_seed=1")
    call("--seed", "1,2", "--parallel", 2, *LONG)
    assert f"resumed at iteration {stopped}" in said(runs, "s_seed=1")
    runs.run("alone", "--seed", 1, "--save_output", "False", *LONG)
    assert_same_run(runs, "alone", "s_seed=1")


def test_a_run_that_is_killed_is_tried_again_three_times(runs, start):
    process, killed = start("--seed", 1, *LONG), set()
    for _ in range(1 + sweep.RETRIES):
        (victim,) = wait_until(lambda: [each for each in trainers(runs) if each.pid not in killed])
        victim.kill()
        killed.add(victim.pid)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "s_seed=1: failed, SIGKILL: " in output and "Traceback" not in output


def test_a_run_that_is_killed_once_resumes(runs, start):
    process = start("--seed", 1, *LONG)
    wait_until(lambda: runs.checkpoint("s_seed=1").exists())
    trainers(runs)[0].kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "s_seed=1: finished" in output
    assert "resumed at iteration" in said(runs, "s_seed=1")


# On workers of another scheduler.


@pytest.fixture
def cluster():
    """A scheduler and two workers in processes of their own, as "dask scheduler" and "dask worker" start them."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


def worker_of(trainer):
    return psutil.Process(trainer.ppid())


@pytest.mark.slow
def test_the_run_of_a_killed_worker_goes_on_once_its_process_has_saved(runs, start, cluster):
    process = start("--seed", 1, "--scheduler", cluster.scheduler_address, *LONG)
    wait_until(lambda: training(runs, "s_seed=1"))
    worker_of(trainers(runs)[0]).kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "s_seed=1: finished" in output, output
    text = said(runs, "s_seed=1")
    assert "stopped at iteration" in text and "resumed at iteration" in text and "is in use" not in text
    runs.run("alone", "--seed", 1, "--save_output", "False", *LONG)
    assert_same_run(runs, "alone", "s_seed=1")


@pytest.mark.slow
def test_workers_elsewhere_stop_their_runs_when_the_sweep_is_killed(runs, start, cluster):
    process = start("--seed", "1,2", "--scheduler", cluster.scheduler_address, *LONG)
    wait_until(lambda: training(runs, "s_seed=1") and training(runs, "s_seed=2"))
    process.kill()
    wait_until(lambda: not trainers(runs))
    assert "stopped at iteration" in said(runs, "s_seed=1")
    assert start("--seed", "1,2", "--scheduler", cluster.scheduler_address, *LONG).wait(120) == 0


@pytest.mark.slow
def test_a_lost_scheduler_is_one_line_and_its_runs_stop(runs, start):
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"],
        stderr=subprocess.PIPE,
        text=True,
    )
    address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at:" in line)
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"],
        stderr=subprocess.DEVNULL,
    )
    try:
        process = start("--seed", "1,2", "--scheduler", address, *LONG)
        wait_until(lambda: training(runs, "s_seed=1"))
        scheduler.kill()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1 and f"lost the scheduler {address}" in output
        assert "Traceback" not in output
        wait_until(lambda: not trainers(runs))
        assert "stopped at iteration" in said(runs, "s_seed=1")
    finally:
        for each in (scheduler, worker):
            each.terminate()
            each.wait()
        scheduler.stderr.close()


def test_no_scheduler_and_no_dask_are_one_line(call, monkeypatch):
    monkeypatch.setattr(sweep, "CONNECT", 0.2)
    for address in ("tcp://127.0.0.1:9", "127.0.0.1:9", "x://y"):
        out, err = call("--scheduler", address, status=1)
        assert err.count("\n") == 1 and f"no dask scheduler at {address}" in err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert call(status=1).err == "sweep.py: a sweep needs dask.distributed: pip install distributed\n"


def test_no_other_machine_can_reach_the_workers_of_a_sweep_of_its_own():
    before = set(psutil.Process().net_connections())
    with sweep.connect(SimpleNamespace(scheduler=None, parallel=2)):
        opened = set(psutil.Process().net_connections()) - before
    assert opened and {each.laddr.ip for each in opened} == {"127.0.0.1"}


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """What sweep.train() starts as the worker of that number, on a machine of 16 cores: the command and environment."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))

    def trained(number=0, flags=(), parallel=1, gpus=()):
        worker = SimpleNamespace(name=number, address="a", get_current_task=lambda: "key")
        monkeypatch.setattr(distributed, "get_worker", lambda: worker)
        started = []

        class Process(SimpleNamespace):
            returncode = 0

            def __init__(self, command, **options):
                started.append(SimpleNamespace(command=command, **options))

            def __enter__(self):
                return self

            def __exit__(self, *error):
                pass

            def poll(self):
                return 0

        monkeypatch.setattr(subprocess, "Popen", Process)
        sweep.train(flags, tmp_path / "said", parallel, gpus, str(ROOT), str(tmp_path))
        return started[0]

    return trained


def test_runs_of_a_machine_share_its_cores_unless_told_otherwise(trained):
    def threads(parallel, *flags):
        return [flag for flag in trained(0, flags, parallel).command if "--threads" in flag][-1]

    assert [threads(1), threads(2), threads(99)] == ["--threads=16", "--threads=8", "--threads=1"]
    assert threads(2, "--threads=5") == "--threads=5"


def test_runs_of_a_machine_with_several_gpus_take_one_each(trained, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    gpus = sweep.visible_gpus()
    assert [trained(i, gpus=gpus).env["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["4", "5", "7", "4"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert trained(gpus=sweep.visible_gpus()).env["CUDA_VISIBLE_DEVICES"] == "4,5,7"


# The summary.


@pytest.fixture
def summary(tmp_path, monkeypatch):
    """A study of five runs: three finished ones with scores, one that trains, one that has not begun."""
    results = []
    for beta, seed, iteration, mig in ((1, 0, 9, 0.25), (4, 0, 9, 0.5), (1, 1, 9, 0.75), (4, 1, 5, None)):
        name = f"s_beta={beta}_seed={seed}"
        (tmp_path / name / "9").mkdir(parents=True)
        log = f"iter,recon_loss,total_kld,kld_0,kld_1\n3,90,9,1,1\n{iteration},{80 + seed},7.5,7.495,0.005\n"
        (tmp_path / name / "log.csv").write_text(log)
        scores = {"mig": mig, "dci": None, "settings": {"level": "fast"}}
        (tmp_path / name / "9" / "metrics.json").write_text(json.dumps(scores))
        numbers = study.read_numbers(tmp_path / name, "fast" if mig else "none")
        results.append(study.Result(name, {"beta": str(beta), "seed": str(seed)}, bool(mig), numbers))
    results.append(study.Result("s_beta=4_seed=2", {"beta": "4", "seed": "2"}, False, {}))
    drawn = []
    monkeypatch.setattr(figures, "save", lambda path, write: drawn.append(write.__self__))
    study.write(tmp_path / "s", "s", results)
    return tmp_path / "s", drawn[0]


def test_the_summary_says_what_is_on_disk_of_finished_and_unfinished_runs(summary):
    folder, _ = summary
    assert list(csv.reader(open(folder / "summary.csv"))) == [
        "run beta seed finished iterations recon_loss total_kld active_latents mig".split(),
        ["s_beta=1_seed=0", "1", "0", "True", "9", "80.0", "7.5", "1", "0.25"],
        ["s_beta=4_seed=0", "4", "0", "True", "9", "80.0", "7.5", "1", "0.5"],
        ["s_beta=1_seed=1", "1", "1", "True", "9", "81.0", "7.5", "1", "0.75"],
        ["s_beta=4_seed=1", "4", "1", "False", "5", "81.0", "7.5", "1", ""],
    ]


def test_the_table_gives_mean_deviation_and_number_of_finished_runs_by_setting(summary):
    folder, _ = summary
    text = (folder / "summary.md").read_text()
    assert "3 of 5 runs are finished" in text
    assert [line for line in text.splitlines() if line.startswith("| beta")] == [
        f"| beta=1 | 2 | 80.5 ± 0.7 | 7.500 ± 0.000 | 1.000 ± 0.000 | 0.500 ± {statistics.stdev([0.25, 0.75]):.3f} |",
        "| beta=4 | 1 | 80.0 | 7.500 | 1.000 | 0.500 |",
    ]


def test_the_picture_has_a_dot_a_run_and_a_line_at_the_median(summary):
    _, figure = summary
    panel = next(axes for axes in figure.axes if axes.get_title() == "mig")
    assert [list(line.get_ydata()) for line in panel.lines] == [[0.25, 0.75], [0.5]]
    assert [lines.get_segments()[0][:, 1].tolist() for lines in panel.collections] == [[0.5, 0.5], [0.5, 0.5]]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["beta=1", "beta=4"]
    assert len({x for line in panel.lines for x in line.get_xdata()}) == 3  # none hides another
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["recon_loss (nats per image)", "total_kld (nats per image)", "active_latents", "mig"]
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_a_score_that_some_runs_lack_is_left_out_of_the_table(tmp_path):
    both = {"iterations": 1, "recon_loss": 2.0}
    results = [
        study.Result("a", {"seed": "1"}, True, {**both, "mig": 0.5}),
        study.Result("b", {"seed": "2"}, True, both),
    ]
    study.write(tmp_path, "s", results)
    assert "| setting | n | recon_loss |\n" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("log", [None, "", "iter,recon_loss\n", "iter,recon_loss\n1", "\0\xff", "iter\nx,\n"])
def test_a_missing_or_damaged_log_has_no_iterations_and_no_numbers(tmp_path, log):
    if log is not None:
        (tmp_path / "log.csv").write_text(log)
    assert study.iterations(tmp_path) == 0 and study.read_numbers(tmp_path) is None
