"""Trains many runs, a grid of seeds and settings, and shows how far they spread.

    python sweep.py --sweep_name betas --seed 0-9 --beta 1 4 8 --max_iter 5e4 --parallel 2
    PROGRAM=sweep.py sh run_dsprites_B.sh --seed 1 2 3 4 5
    python sweep.py --sweep_name betas --seed 0-9 --beta 1 4 8 --scheduler tcp://HOST:8786

Any flag of main.py can be given (python main.py --help). Several values of a flag, "1 4 8", "1,4,8" or "0-9", span
the grid; a run is named after its values, as in betas_beta=1_seed=0, and has folders as any other. The same command
again skips finished runs and resumes interrupted ones. outputs/<sweep_name>/ gets summary.csv, summary.md, summary.png
and the text that each run prints.
"""

import argparse
import contextlib
import itertools
import logging
import math
import os
import re
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from signal import SIGTERM, Signals
from typing import NamedTuple

import torch
from tqdm import tqdm

import main as program
from dataset import return_data
from evaluation import study
from training.checkpoint import read_checkpoint
from training.lock import lock_holder
from training.run import StopSignals
from training.settings import defining_flags, saved_flags
from utils import Parser, UserError, progress, run_cli
from viz import dashboard

ROOT = Path(__file__).resolve().parent
SINGLE = ("train", "ckpt_name", "overwrite", "image", "encode")  # flags of main.py for single runs
RESUMABLE = ("max_iter", "precision")  # flags that may vary, although a run may go on with another value
MOST_RUNS = 10_000
RETRIES = 3  # after a worker or a main.py was killed
POLL = 1  # seconds between looks at a process or at the logs
CONNECT = 30  # seconds in which a scheduler must answer
STOP = 60  # seconds a stopped sweep waits for its runs to save


# The grid.


class Run(NamedTuple):
    """A cell of the grid."""

    name: str
    settings: dict  # flags that the grid varies, as typed; the seed last
    flags: list  # all flags of its main.py, as typed
    args: argparse.Namespace  # the same, parsed

    @property
    def outputs(self):
        return Path(self.args.output_dir) / self.name


def make_parser():
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="sweep.py", description=__doc__, allow_abbrev=False, formatter_class=raw)
    # fmt: off
    parser.add_argument("--sweep_name", help="name of the study's folder, and start of its runs' names; "
                        "without: <viz_name>_sweep")
    parser.add_argument("--parallel", type=int, default=1, help="runs at once on a machine, each with its share of "
                        "the CPU threads unless --threads says how many (default: 1)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="dask scheduler whose workers train the runs; they "
                        "need the same code and folders (default: workers inside this process)")
    # fmt: on
    for name in vars(program.make_parser().parse_args([])).keys() - {*SINGLE}:
        parser.add_argument(f"--{name}", nargs="+", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def refuse(message):
    make_parser().error(message)


def expand(text):
    """The values in "1,4,8" or "0-9", as typed; a range lies between two whole numbers without a sign."""
    for part in text.split(","):
        if (ends := re.fullmatch(r"(\d+)-(\d+)", part)) and int(ends[1]) <= int(ends[2]):
            yield from map(str, range(int(ends[1]), min(int(ends[2]), int(ends[1]) + MOST_RUNS) + 1))
        else:
            yield part


def parse(argv=None):
    """Flags of the sweep, and its runs; bad flags of either end the program with one line and status 2."""
    args = make_parser().parse_args(argv)
    flags = {name: texts for name, texts in vars(args).items() if isinstance(texts, list)}  # as typed
    for name in flags:
        if not name.endswith(("_dir", "_name", "_server")):  # names may hold commas
            flags[name] = list(itertools.chain.from_iterable(map(expand, flags[name])))
    if script := flags.pop("viz_name", None):
        args.sweep_name = args.sweep_name or f"{script[-1]}_sweep"
    if not args.sweep_name:
        refuse("--sweep_name is missing")
    if args.parallel < 1:
        refuse("--parallel must be at least 1")
    return args, grid(args.sweep_name, flags)


def grid(sweep_name, flags):
    """The runs of all combinations of values. Seeds change slowest, so that a part of a study covers all settings."""
    flags.setdefault("seed", [str(program.make_parser().get_default("seed"))])
    varied = [name for name, texts in flags.items() if len(texts) > 1 and name != "seed"] + ["seed"]
    if math.prod(map(len, flags.values())) > MOST_RUNS:
        refuse(f"the grid has more than {MOST_RUNS:,} runs")
    runs, constant = [], {name: texts[0] for name, texts in flags.items()}
    for cell in itertools.product(*(flags[name] for name in reversed(varied))):
        settings = dict(zip(varied, reversed(cell)))
        name = "_".join([sweep_name, *(f"{name}={text}" for name, text in settings.items())])
        typed = [f"--{name}={text}" for name, text in {**constant, **settings, "viz_name": name}.items()]
        runs.append(Run(name, settings, typed, program.parse(typed)))
        for flag in settings.keys() - defining_flags(runs[-1].args).keys() - {*RESUMABLE}:
            refuse(f"--{flag} takes one value: with another one, {name} would be the same run")
    if len({tuple(getattr(run.args, name) for name in varied) for run in runs}) < len(runs):
        refuse(f"a value of --{' or --'.join(varied)} is given twice")
    return runs


# A run, on a worker.


def run_main():
    """What the process that train() starts does: main.py, once no other process trains in the run's folder.

    Its standard input is a pipe from the worker. It closes when the worker wants the run to stop, and when the
    worker, or the whole sweep, is killed; then main.py gets SIGTERM, on which it saves and ends.
    """

    def stop_with_the_worker():
        os.read(0, 1)
        os.kill(os.getpid(), SIGTERM)

    threading.Thread(target=stop_with_the_worker, daemon=True).start()
    args = program.parse()
    outputs = Path(args.output_dir) / args.viz_name
    if holder := lock_holder(outputs):  # perhaps the main.py of a lost worker, which is about to end
        print(f"{args.viz_name}: waiting for {holder}, which trains it")
    while lock_holder(outputs):
        time.sleep(POLL / 4)
    sys.exit(program.main())


def train(flags, said, parallel, gpus, root, cwd):
    """A task of dask: trains a run in a process of its own, for as long as the scheduler wants this worker to.

    Returns the exit status and the last line that the run printed; said is the file for all of it. A process that
    was killed is a RuntimeError, after which dask tries again. Uses nothing of this repository, which workers of
    another scheduler need not have on their path.
    """
    from distributed import get_client, get_worker

    worker = get_worker()
    key = worker.get_current_task()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f"--threads={max(1, cores // parallel)}"  # unless flags say otherwise: the last counts
    gpu = {"CUDA_VISIBLE_DEVICES": gpus[worker.name % len(gpus)]} if gpus else {}
    code = f"import sys; sys.path[0] = {root!r}; import sweep; sweep.run_main()"
    with open(said, "a+b") as file:
        start = file.seek(0, os.SEEK_END)
        with subprocess.Popen(
            [sys.executable, "-u", "-c", code, threads, *flags],
            stdin=subprocess.PIPE,  # closed on leaving, which then waits for the process: see run_main()
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C stops the sweep, and the sweep its runs
            env={**os.environ, **gpu},
            cwd=cwd,
        ) as child:
            # A scheduler that lost this worker, or the sweep, no longer counts the task as this worker's.
            while child.poll() is None and key in get_client().processing([worker.address])[worker.address]:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL)
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    if child.returncode < 0:
        raise RuntimeError(f"{Signals(-child.returncode).name}: {last}")
    return child.returncode, last


# The sweep.


def look(run):
    """What is on disk of a run. It is finished when main.py has nothing left to do: neither to train nor to score."""
    numbers = None
    # Of a checkpoint that is missing, damaged or of other settings, main.py says what is wrong.
    with contextlib.suppress(UserError, OSError, ValueError, LookupError, AttributeError, TypeError):
        state = read_checkpoint(Path(run.args.ckpt_dir) / run.name / "last")
        same = defining_flags(saved_flags(state["arguments"])) == defining_flags(run.args)
        if same and state["iter"] >= run.args.max_iter:
            numbers = study.read_numbers(run.outputs, run.args.metrics)
    so_far = numbers or study.read_numbers(run.outputs) or {}
    return study.Result(run.name, run.settings, bool(numbers), so_far)


def connect(args):
    """A client of the scheduler at --scheduler, or of one in this process with --parallel workers.

    Those workers are threads, as each only waits for its main.py; other machines can reach none of them.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UserError("a sweep needs dask.distributed: pip install distributed") from None
    for name in ("distributed", "distributed.client"):  # what fails is said in a line, by ended()
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if args.scheduler:
        try:
            return Client(args.scheduler, timeout=CONNECT)
        except (OSError, ValueError) as error:
            raise UserError(f"no dask scheduler at {args.scheduler}: {error}") from None
    pages = dict.fromkeys(("dashboard_address", "worker_dashboard_address"), "127.0.0.1:0")
    return Client(n_workers=args.parallel, threads_per_worker=1, processes=False, memory_limit=0, **pages)


def visible_gpus():
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them, if there are several to share out."""
    n = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n)))).split(",")
    return names if n > 1 else []


class Sweep:
    """The runs of a study: what is on disk of them, the tasks that train them, and the summary."""

    def __init__(self, args, runs):
        self.args, self.runs, one = args, runs, runs[0].args
        self.folder = Path(one.output_dir) / args.sweep_name
        board = dashboard.Dashboard(self.folder, args.sweep_name, one.viz_server, one.viz_port)
        self.board = board if one.viz_on else None
        self.results = {run.name: look(run) for run in runs}
        self.tasks = {}  # {future: run}

    def finished(self):
        return sum(result.finished for result in self.results.values())

    def iterations(self):
        """Iterations of all runs so far."""
        return sum(min(study.iterations(run.outputs), run.args.max_iter) for run in self.runs)

    def submit(self, client, todo):
        """Makes tasks of runs; those that another process trains come last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        gpus = [] if self.args.scheduler or not todo[0].args.cuda else visible_gpus()
        for run in sorted(todo, key=lambda run: bool(lock_holder(run.outputs))):
            if holder := lock_holder(run.outputs):
                print(f"{run.name}: its turn comes when {holder}, which trains it, has ended")
            call = run.flags, str(self.said(run)), self.args.parallel, gpus, str(ROOT), os.getcwd()
            self.tasks[client.submit(train, *call, pure=False, retries=RETRIES)] = run

    def said(self, run):
        """The file of all that a run printed."""
        return self.folder.absolute() / f"{Path(run.name).name}.txt"

    def wait(self, client):
        """Returns when all tasks have ended, or the signal on which those that had not have saved."""
        total, begun = sum(run.args.max_iter for run in self.runs), self.iterations()
        bar = progress(total=total, initial=begun, unit="it", delay=0, leave=True, smoothing=0)
        with bar, StopSignals() as stop:
            while self.tasks and not stop.received:
                time.sleep(POLL / 2)
                for future in [future for future in self.tasks if future.done()]:
                    self.ended(self.tasks.pop(future), future)
                bar.set_description(f"{self.finished()} of {len(self.runs)} runs", refresh=False)
                bar.update(self.iterations() - bar.n)
            client.cancel(list(self.tasks))
            end = time.monotonic() + STOP
            while any(lock_holder(run.outputs) for run in self.tasks.values()) and time.monotonic() < end:
                time.sleep(POLL / 4)
        return stop.received

    def ended(self, run, future):
        """Says in a line how a run went, and brings the summary up to date."""
        if future.cancelled():
            raise UserError(f"lost the scheduler {self.args.scheduler}: give the same command with a new one")
        status, last = future.result() if future.status == "finished" else (None, future.exception())
        self.write()
        result = self.results[run.name]
        if result.finished:
            loss, kl = result.numbers["recon_loss"], result.numbers["total_kld"]
            tqdm.write(f"{run.name}: finished, reconstruction {loss:.1f}, KL {kl:.2f} nats")
        else:
            if status == 0:
                last = f"no log or scores; to train it again, remove {Path(run.args.ckpt_dir) / run.name}"
            tqdm.write(f"{run.name}: failed, {last}; all that it said: {self.said(run)}", file=sys.stderr)

    def write(self):
        """Writes summary.csv, summary.md and summary.png, and shows them on the dashboard."""
        for run in self.runs:
            if not self.results[run.name].finished:
                self.results[run.name] = look(run)
        study.write(self.folder, self.args.sweep_name, list(self.results.values()))
        if self.board and self.finished():
            windows = dashboard.study(self.folder, self.args.sweep_name)
            self.board = self.board.send(windows) and self.board


def run_sweep(args, runs):
    """Trains and summarises; returns the exit status: 0, 1 if a run failed, 128 + the signal that stopped it."""
    sweep, stopped, n = Sweep(args, runs), None, len(runs)
    print(f"{args.sweep_name}: {n} runs, {sweep.finished()} of them finished already", flush=True)
    if todo := [run for run in runs if not sweep.results[run.name].finished]:
        with connect(args) as client:
            for flags in {(run.args.dataset, run.args.dset_dir): run.args for run in todo}.values():
                return_data(flags)  # made before the processes start that map it
            sweep.submit(client, todo)
            stopped = sweep.wait(client)
    sweep.write()
    go_on = "; stopped: the same command goes on" if stopped else ""
    print(f"{sweep.finished()} of {n} runs are finished: see {sweep.folder}{go_on}")
    return 128 + stopped if stopped else int(sweep.finished() < n)


def main(argv=None):
    """Runs the program; returns its exit status."""
    return run_cli("sweep.py", "interrupted", partial(run_sweep, *parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
