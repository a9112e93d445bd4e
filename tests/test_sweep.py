"""Many runs: that a sweep trains what main.py would, loses nothing when killed, and says how far the seeds spread."""

import csv
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

import sweep
from conftest import ROOT
from evaluation import study
from sweep import Place, find_place
from test_run import assert_same_run
from training.checkpoint import read_checkpoint
from training.lock import LOCK
from viz import figures

LONG = ["--max_iter", 400, "--save_step", 400, "--display_step", 400]  # some seconds


@pytest.fixture
def call(runs, capsys):
    """Calls sweep.py in this process, with the flags of runs; returns what it prints."""

    def call(*flags, status=0):
        assert sweep.main(arguments(runs, *flags)) == status
        return capsys.readouterr()

    return call


def arguments(runs, *flags):
    return [str(flag) for flag in (*runs.flags, "--sweep_name", "s", "--save_output", "False", *flags)]


def start(runs, *flags, launcher=()):
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "sweep.py"), *arguments(runs, *flags)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_until(true, seconds=120):
    end = time.time() + seconds
    while not true():
        assert time.time() < end
        time.sleep(0.02)


def training(runs, name):
    """Whether a run's log has begun."""
    log = runs.outputs(name) / "log.csv"
    return log.exists() and log.read_bytes().count(b"\n") > 1


def said(runs, name):
    """What all processes said that trained a run."""
    return (runs.outputs("s") / f"{name}.txt").read_text()


def children_of(pid):
    """Processes that a process has started and that still run."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in found.split()]


def runs_on(pid):
    status = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(status) and not status.startswith("Z")


# The grid.


def names(flags):
    return [run.name for run in sweep.parse(["--sweep_name", "s", *shlex.split(flags)])[1]]


def test_the_grid_holds_every_combination_named_by_what_varies_as_typed():
    assert names("--seed 0-2 --beta 1,4 --max_iter 1e3") == [
        "s_beta=1_seed=0",
        "s_beta=4_seed=0",
        "s_beta=1_seed=1",
        "s_beta=4_seed=1",
        "s_beta=1_seed=2",
        "s_beta=4_seed=2",
    ]
    assert names("--model H,FC --lr 1e-4,5E-4 --seed 7") == [
        "s_model=H_lr=1e-4",
        "s_model=FC_lr=1e-4",
        "s_model=H_lr=5E-4",
        "s_model=FC_lr=5E-4",
    ]
    assert names("--seed 3,5-6") == ["s_seed=3", "s_seed=5", "s_seed=6"]
    assert names("--beta 1e-3 --dset_dir a,b/0-9 --output_dir 0-9") == ["s"]  # numbers and names, no lists


def test_a_run_gets_its_own_values_and_the_constants():
    _, runs = sweep.parse(shlex.split("--sweep_name s --beta 1,4 --gamma 3 --viz_name x --beta 2,8"))
    assert [(run.args.beta, run.args.gamma, run.args.viz_name) for run in runs] == [
        (2, 3, "s_beta=2"),
        (8, 3, "s_beta=8"),  # the last of two counts, as when a script passes flags on
    ]


@pytest.mark.parametrize(
    "flags",
    [
        "--sweep_name s --bta 1",
        "--sweep_name s --beta 1,x",
        "--sweep_name s --beta 1,4,",
        "--sweep_name s --beta 1,1.0",
        "--sweep_name s --seed 9-0",
        "--sweep_name s --seed 0-1e3",
        "--sweep_name s --seed=-1-3",
        "--sweep_name s --lr=1,-1e-4",
        "--sweep_name s --seed 0-999999999",
        "--sweep_name s --seed 0-999 --beta 0-999",
        "--sweep_name s --model B,Q",
        "--sweep_name s --cuda True,False",
        "--sweep_name s --train False",
        "--sweep_name s --overwrite True --ckpt_name none",
        "--sweep_name s --parallel 0",
        "--sweep_name s --parallel 1,2",
        "--sweep_name s --seed",
        "--sweep_name ''",
        "--sweep_name ../s --seed 0,1",
        "--sweep_name /s --seed 0,1",
        "--seed 0-3",
        "",
    ],
)
def test_what_makes_no_sense_in_any_run_is_one_line_and_nothing_starts(flags, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "Child", None)
    with pytest.raises(SystemExit) as stop:
        sweep.main(shlex.split(flags))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (
        out == "" and err.count("\n") == 1 and err.startswith("sweep.py: ") and "--viz_name must" not in err
    )


# Training.


def test_a_run_of_a_sweep_gives_the_bytes_of_main_alone(runs, call):
    flags = ["--display_step", 40]
    out, err = call("--seed", "1,2", "--parallel", 2, "--save_output", "True", *flags)
    assert out.count(": finished after") == 2 and "2 of 2 runs" in err
    runs.run("alone", "--seed", 2, *flags)
    assert_same_run(runs, "alone", "s_seed=2")


def test_finished_runs_are_skipped_and_interrupted_ones_resume(runs, call):
    flags = ["--save_output", "False", "--seed", 1]
    runs.run("s_gamma=1", *flags, "--gamma", 1)
    runs.run("s_gamma=4", *flags, "--gamma", 4, "--max_iter", 20)
    assert "2 runs, 1 of them finished already" in call("--gamma", "1,4").out
    assert not (runs.outputs("s") / "s_gamma=1.txt").exists() and "resumed at iteration 20" in said(
        runs, "s_gamma=4"
    )
    before = said(runs, "s_gamma=4")
    (runs.outputs("s") / "summary.csv").unlink()
    assert "2 of 2 runs are finished" in call("--gamma", "1,4").out
    assert said(runs, "s_gamma=4") == before  # nothing was started
    assert (runs.outputs("s") / "summary.csv").exists()


def test_a_run_counts_as_finished_once_it_has_the_scores_asked_for(runs):
    runs.run("s", "--max_iter", 8, "--save_output", "False")
    args, grid = sweep.parse(arguments(runs, "--metrics", "fast", "--max_iter", 8))
    (runs.outputs("s") / "8").mkdir(exist_ok=True)
    for level, done in ((None, False), ("full", False), ("fast", True)):
        if level:
            (runs.outputs("s") / "8" / "metrics.json").write_text(
                json.dumps({"mig": 0.5, "settings": {"level": level}})
            )
        assert study.Summary(args, grid).done(grid[0]) == done
    args, grid = sweep.parse(arguments(runs, "--metrics", "fast", "--max_iter", 9))
    assert not study.Summary(args, grid).done(grid[0])


def test_a_run_that_fails_is_one_line_and_the_others_are_trained(runs, call):
    runs.run("s_seed=1", "--max_iter", 8, "--lr", 5e-4, "--seed", 1)
    out, err = call("--seed", "1,2", status=1)
    lines = [line for line in err.replace("\r", "\n").splitlines() if "failed" in line]
    assert (
        len(lines) == 1
        and "s_seed=1: failed, status 1: main.py: run s_seed=1 was made with other settings: lr" in lines[0]
    )
    assert "s_seed=2: finished" in out and "1 of 2 runs are finished" in out


def test_a_finished_run_whose_log_is_gone_says_how_to_train_it_again(runs, call):
    runs.run("s", "--max_iter", 8, "--save_output", "False")
    (runs.outputs("s") / "log.csv").unlink()
    err = call("--max_iter", 8, status=1).err
    assert f"log.csv is gone or damaged: to train it again, remove {runs.folder / 'ckpt' / 's'};" in err


def test_ctrl_c_lets_a_run_save_and_the_sweep_says_so(runs):
    process = start(runs, "--seed", "1,2", *LONG)
    wait_until(lambda: training(runs, "s_seed=1"))
    (child,) = children_of(process.pid)
    # or the run would be told twice, by the terminal and by the sweep
    assert os.getpgid(child) != process.pid
    os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal sends it, and torchrun SIGTERM
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in output and "Traceback" not in output
    assert 0 < read_checkpoint(runs.checkpoint("s_seed=1"))["iter"] < 400
    assert not runs.outputs("s_seed=2").exists()


def test_the_run_of_a_killed_sweep_saves_ends_and_is_finished_by_a_second_call(runs, call):
    process = start(runs, "--seed", "1-1", *LONG)
    wait_until(lambda: training(runs, "s_seed=1"))
    (child,) = children_of(process.pid)
    process.kill()
    process.communicate()
    wait_until(lambda: not runs_on(child), 30)
    stopped = read_checkpoint(runs.checkpoint("s_seed=1"))["iter"]
    assert 0 < stopped < 400  # told to stop, it saved
    call("--seed", "1-1", *LONG)
    assert f"resumed at iteration {stopped}" in said(runs, "s_seed=1")
    runs.run("alone", "--seed", 1, "--save_output", "False", *LONG)
    assert_same_run(runs, "alone", "s_seed=1")


# Many processes.


def test_what_another_process_trains_is_left_alone_until_it_is_free(runs, call):
    folder = runs.outputs("s_seed=1")
    folder.mkdir(parents=True)
    hold = (
        "import fcntl, os, sys, time; file = open(sys.argv[1], 'a+'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True)\n"
        "end = time.time() + 120\n"
        "while not os.path.exists(sys.argv[2]) and time.time() < end: time.sleep(0.1)\n"
        "time.sleep(2)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, folder / LOCK, runs.outputs("s") / "summary.png"], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        out, _ = call("--seed", "1,2")
        assert other.poll() == 0  # the sweep waited for it
    assert (
        out.index("s_seed=2: finished") < out.index("s_seed=1: finished")
        and "2 of 2 runs are finished" in out
    )


def test_torchrun_and_slurm_say_which_process_this_is():
    torchrun = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "SLURM_PROCID": "9",
    }
    array = {
        "SLURM_ARRAY_TASK_ID": "9",
        "SLURM_ARRAY_TASK_COUNT": "4",
        "SLURM_ARRAY_TASK_MIN": "3",
        "SLURM_ARRAY_TASK_STEP": "2",
        "SLURM_PROCID": "0",
    }
    srun = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert [find_place(env) for env in ({}, torchrun, array, srun)] == [
        (0, 1, 0, 1),
        (3, 4, 1, 2),
        (3, 4, 0, 1),
        (5, 8, 1, 1),
    ]


def test_each_process_begins_with_its_share(monkeypatch):
    args, runs = sweep.parse(shlex.split("--sweep_name s --seed 0-6"))
    monkeypatch.setattr(sweep, "find_place", lambda: Place(1, 3, 0, 1))
    order = [run.args.seed for run in sweep.Crew(args, runs, None).order]
    assert order == [1, 4, 2, 5, 0, 3, 6]


def test_the_threads_are_shared_out_and_torchruns_own_number_does_not_count(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: started.append((command, options["env"]))
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for flags, place in (
        ("--parallel 2", Place(0, 1, 0, 1)),
        ("--parallel 2", Place(0, 4, 0, 4)),
        ("--threads 5", Place(0, 1, 0, 1)),
        ("--parallel 99", Place(0, 1, 0, 1)),
    ):
        args, (run,) = sweep.parse(shlex.split(f"--sweep_name s --output_dir {tmp_path} {flags}"))
        sweep.Child(run, args, 0, place)
    assert [flag for command, _ in started for flag in command if "--threads" in str(flag)] == [
        f"--threads={n}" for n in (8, 2, 5, 1)
    ]
    assert all("OMP_NUM_THREADS" not in env for _, env in started)


def test_processes_of_a_machine_with_several_gpus_take_one_each(monkeypatch):
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert [sweep.environment(i, True)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["4", "5", "7", "4"]
    assert sweep.environment(0, False)["CUDA_VISIBLE_DEVICES"] == "4,5,7"


@pytest.mark.parametrize(
    "flags, name",
    [
        ("--objective B --beta 1,4", "beta"),
        ("--objective H --C_max 15,25", "C_max"),
        ("--optimizer adagrad --beta1 0.5,0.9", "beta1"),
        ("--objective H,B --beta 1,4", "beta"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(flags, name, capsys):
    with pytest.raises(SystemExit) as exit:
        sweep.parse(["--sweep_name", "s", *flags.split()])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and f"--{name} changes nothing" in error and error.count("\n") == 1


def torchrun(*flags):
    return "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *flags


def test_two_processes_of_torchrun_train_each_run_once(runs):
    process = start(runs, "--seed", "0-2", launcher=torchrun())
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    # A process that looks just before another's run takes its lock starts it once more; that child finds it trained, or
    # locked. So a run may be told of twice, but is trained once.
    assert set(re.findall(r"s_seed=(\d): finished after", output)) == {"0", "1", "2"}
    for seed in range(3):
        assert said(runs, f"s_seed={seed}").count("a new run;") == 1  # as against "... starts a new run"
    rows = list(csv.DictReader(open(runs.outputs("s") / "summary.csv")))
    assert [row["finished"] for row in rows] == ["True"] * 3


def test_torchrun_starts_again_when_a_process_is_killed_and_its_run_goes_on(runs):
    process = start(runs, "--seed", "0-1", *LONG, launcher=torchrun("--max_restarts", "1"))
    wait_until(lambda: training(runs, "s_seed=0") and training(runs, "s_seed=1"))
    victim = next(pid for pid in children_of(process.pid) if children_of(pid))
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0 and "2 of 2 runs are finished" in output, output
    # that of the killed process, and that of the one which torchrun then stopped
    for name in ("s_seed=0", "s_seed=1"):
        assert "stopped at iteration" in said(runs, name) and "resumed at iteration" in said(runs, name)


# What is made of it.


def test_dry_run_prints_runs_and_time_and_leaves_nothing(runs, call, monkeypatch):
    monkeypatch.setattr(sweep, "TRIAL", 0.5)
    runs.run("s_seed=1", "--max_iter", 16, "--seed", 1)
    files = set(runs.folder.rglob("*"))
    out, _ = call("--seed", "1,2", "--dry_run", "True")
    lines = out.splitlines()
    assert lines[0].split() == ["s_seed=1", "16", "of", "40"] and lines[1].split()[:2] == ["s_seed=2", "0"]
    assert "2 of 2 runs to train, 64 iterations" in out and "it/s in all" in out and "hours" in out
    assert set(runs.folder.rglob("*")) == files


def test_dry_run_ends_with_a_trial_that_ends_and_trains_for_as_long_as_it_needs(call, monkeypatch):
    monkeypatch.setattr(sweep, "TRIAL", 0.5)
    assert "it/s in all" in call("--max_iter", "1,2", "--dry_run", "True")[0]
    monkeypatch.setattr(sweep, "ENOUGH", 10**9)
    monkeypatch.setattr(sweep, "iterations", lambda run: 1)
    monkeypatch.setattr(sweep, "TRIAL", 5)
    _, error = call("--lr", "1e30", "--dry_run", "True", status=1)
    assert "trial_0: status 1" in error and "not finite" in error


def test_a_sweep_over_levels_of_metrics_is_refused(call, capsys):
    with pytest.raises(SystemExit, match="2"):
        call("--metrics", "none,fast")
    assert "--metrics: invalid choice: 'none,fast'" in capsys.readouterr().err


@pytest.fixture
def summary(runs, monkeypatch):
    """A study of four runs, three of them finished, with made-up scores of the first three."""
    for beta, seed, iterations in ((1, 0, 9), (4, 0, 9), (1, 1, 9), (4, 1, 5)):
        runs.run(
            f"s_beta={beta}_seed={seed}",
            "--objective",
            "H",
            "--beta",
            beta,
            "--seed",
            seed,
            "--max_iter",
            iterations,
            "--gather_step",
            5,
            "--save_output",
            "False",
        )
    for name, mig in (("s_beta=1_seed=0", 0.25), ("s_beta=1_seed=1", 0.75), ("s_beta=4_seed=0", 0.5)):
        (runs.outputs(name) / "9").mkdir()
        (runs.outputs(name) / "9" / "metrics.json").write_text(
            json.dumps({"mig": mig, "dci": None, "active_latents": 7, "settings": {"level": "fast"}})
        )
    args, grid = sweep.parse(
        arguments(
            runs,
            "--objective",
            "H",
            "--beta",
            "1,4",
            "--seed",
            "0-1",
            "--max_iter",
            9,
            "--gather_step",
            5,
            "--metrics",
            "fast",
        )
    )
    drawn = []
    monkeypatch.setattr(figures, "save", lambda path, write: drawn.append(write.__self__))
    study.Summary(args, grid).write()
    return runs.outputs("s"), drawn[0]


def test_the_summary_says_what_is_on_disk_of_finished_and_unfinished_runs(summary):
    folder, _ = summary
    rows = list(csv.DictReader(open(folder / "summary.csv")))
    assert [
        (row["run"], row["beta"], row["seed"], row["finished"], row["iterations"], row["mig"]) for row in rows
    ] == [
        ("s_beta=1_seed=0", "1", "0", "True", "9", "0.25"),
        ("s_beta=4_seed=0", "4", "0", "True", "9", "0.5"),
        ("s_beta=1_seed=1", "1", "1", "True", "9", "0.75"),
        ("s_beta=4_seed=1", "4", "1", "False", "5", ""),
    ]
    assert list(rows[0]) == [
        "run",
        "beta",
        "seed",
        "finished",
        "iterations",
        "recon_loss",
        "total_kld",
        "active_latents",
        "mig",
    ]
    assert float(rows[3]["recon_loss"]) > 0


def test_the_table_gives_mean_deviation_and_number_of_finished_runs_by_setting(summary):
    folder, _ = summary
    text = (folder / "summary.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| beta")]
    assert lines[0].startswith("| beta=1 | 2 |") and lines[0].endswith(
        f"| 0.500 ± {statistics.stdev([0.25, 0.75]):.3f} |"
    )
    assert lines[1].startswith("| beta=4 | 1 |") and lines[1].endswith("| 0.500 |") and "±" not in lines[1]
    assert "3 of 4 runs are finished" in text


def test_the_picture_has_a_dot_a_run_and_a_line_at_the_median(summary):
    _, figure = summary
    panel = next(axes for axes in figure.axes if axes.get_title() == "mig")
    assert [list(line.get_ydata()) for line in panel.lines] == [[0.25, 0.75], [0.5]]
    assert [lines.get_segments()[0][:, 1].tolist() for lines in panel.collections] == [[0.5, 0.5], [0.5, 0.5]]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["beta=1", "beta=4"]
    assert len({x for line in panel.lines for x in line.get_xdata()}) == 3  # none hides another
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
        "recon_loss (nats)",
        "total_kld (nats)",
        "active_latents",
        "mig",
    ]
    assert np.isfinite(figure.axes[0].get_ylim()).all()
