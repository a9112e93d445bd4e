"""Train many runs, a grid of seeds and settings, and show how far their results spread.

    python sweep.py --sweep_name betas --seed 0-9 --beta 1 4 8 --max_iter 5e4 --parallel 2
    PROGRAM=sweep.py sh run_dsprites_B.sh --seed 1 2 3 4 5
    python sweep.py --sweep_name betas --seed 0-9 --beta 1 4 8 --scheduler tcp://HOST:8786

Takes the flags of main.py (python main.py --help). Several values of a flag, "1 4 8", "1,4,8" or "0-9", span the grid.
A run is named after its values, as in betas_beta=1_seed=0, and has folders like any other. The same command again
skips finished runs and resumes the others. outputs/<sweep_name>/ gets summary.csv, summary.md, summary.png and a text
file of what each run prints.
"""

import argparse
import contextlib
import itertools
import logging
import os
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
from training.settings import defining_flags, saved_flags
from utils import Parser, UserError, file_name, progress, run_cli
from viz import dashboard

# Flags of main.py that only a single run takes
SINGLE = {"train", "ckpt_name", "overwrite", "image", "encode"}
RETRIES = 3  # of a run whose worker or main.py was killed
POLL = 0.5  # seconds between looks at processes and logs
TIMEOUT = 30  # seconds in which a scheduler must answer
SAVING = 60  # seconds that a stopped run may take to save


class Run(NamedTuple):
    name: str
    settings: dict  # the flags that vary, as typed; the seed last
    flags: list  # all flags of its main.py, as typed
    args: argparse.Namespace  # the same, parsed

    @property
    def folder(self):
        return Path(self.args.output_dir) / self.name


def make_parser():
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="sweep.py", description=__doc__, allow_abbrev=False, formatter_class=raw)
    # fmt: off
    parser.add_argument("--sweep_name", help="name of the sweep's folder and start of its runs' names; default: <viz_name>_sweep")
    parser.add_argument("--parallel", type=int, default=1,
        help="runs at once on this machine, which share its CPU threads unless --threads is given; default: 1")
    parser.add_argument("--scheduler", type=file_name, metavar="ADDRESS",
        help="dask scheduler whose workers train the runs, with the same code and folders; default: this machine trains")
    # fmt: on
    for name in vars(program.make_parser().parse_args([])).keys() - SINGLE:
        parser.add_argument(f"--{name}", nargs="+", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def expand(text):
    """The values in "1,4,8" or "0-9", as typed."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and last.isdecimal() and int(first) <= int(last):
            yield from map(str, range(int(first), int(last) + 1))
        else:
            yield part


def parse(argv=None):
    """Flags of the sweep, and its runs; wrong flags of either end the program with one line and status 2."""
    parser = make_parser()
    args = parser.parse_args(argv)
    flags = {name: values for name, values in vars(args).items() if isinstance(values, list)}
    for name, texts in flags.items():
        if not name.endswith(("_dir", "_name", "_server")):  # names may hold commas
            flags[name] = list(dict.fromkeys(value for text in texts for value in expand(text)))
    if viz_name := flags.pop("viz_name", None):  # of a run script
        args.sweep_name = args.sweep_name or f"{viz_name[-1]}_sweep"
    if not args.sweep_name:
        parser.error("--sweep_name is missing")
    if args.parallel < 1:
        parser.error("--parallel must be at least 1")
    return args, grid(args.sweep_name, flags)


def grid(sweep_name, flags):
    """The runs of all combinations of flags, {name: values}. The seed changes slowest: a part of them covers all settings."""
    flags.setdefault("seed", [str(program.make_parser().get_default("seed"))])
    constant, runs = {name: values[0] for name, values in flags.items()}, []
    varied = [name for name, values in flags.items() if len(values) > 1 and name != "seed"]
    for seed, *values in itertools.product(flags["seed"], *(flags[name] for name in varied)):
        settings = {**dict(zip(varied, values)), "seed": seed}
        name = "_".join([sweep_name, *(f"{flag}={value}" for flag, value in settings.items())])
        typed = [f"--{flag}={value}" for flag, value in {**constant, **settings, "viz_name": name}.items()]
        runs.append(Run(name, settings, typed, program.parse(typed)))
    return runs


# A run, on a worker.


def train(flags, printed, parallel, root, cwd):
    """Task of dask: main.py in a process of its own, until it ends or the scheduler takes the task from this worker.

    flags: of main.py; printed: file to which all that it prints is appended. Returns the last line printed. RuntimeError if
    the process was killed: dask tries again. Uses nothing of this repository, which workers elsewhere need not have on
    their path.
    """
    from dask.system import CPU_COUNT
    from distributed import get_client, get_worker

    worker = get_worker()
    task, client = worker.get_current_task(), get_client()
    threads = f"--threads={max(1, CPU_COUNT // parallel)}"  # flags may hold another one: the last counts
    n = torch.cuda.device_count()
    gpu = {}
    if n > 1 and isinstance(worker.name, int):  # workers of one machine are numbered, and take a GPU each
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n)))).split(",")
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[worker.name % n]}
    code = f"import sys; sys.path[0] = {root!r}; import sweep; sweep.run_main({SAVING})"
    with (
        open(printed, "ab") as file,
        subprocess.Popen(
            [sys.executable, "-u", "-c", code, threads, *flags],
            stdin=subprocess.PIPE,  # closed on leaving, which then waits for the process: see run_main()
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C stops the sweep, and the sweep its runs
            env={**os.environ, **gpu},
            cwd=cwd,
        ) as process,
    ):
        # A scheduler that lost this worker, or the sweep, no longer counts the task as this worker's.
        while process.poll() is None and task in client.processing([worker.address])[worker.address]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
    lines = [line.strip() for line in Path(printed).read_text(errors="replace").splitlines() if line.strip()]
    last = f"{lines[-1] if lines else 'it printed nothing'}; all that it printed: {printed}"
    if process.returncode < 0:
        raise RuntimeError(f"{Signals(-process.returncode).name}: {last}")
    return last


def run_main(saving):
    """main.py in the process that train() starts. saving: seconds to wait for an earlier main.py to save and end.

    Standard input is a pipe from the worker. It closes when the worker wants the run to stop, and when the worker or the
    whole sweep is killed; then SIGTERM makes main.py save and end.
    """

    def stop_with_the_worker():
        os.read(0, 1)
        os.kill(os.getpid(), SIGTERM)

    threading.Thread(target=stop_with_the_worker, daemon=True).start()
    args, end = program.parse(), time.monotonic() + saving
    while lock_holder(Path(args.output_dir) / args.viz_name) and time.monotonic() < end:
        time.sleep(POLL)
    sys.exit(program.main())


# The sweep.


def result(run):
    """What is on disk of a run. It is finished when main.py has nothing left to train or to score."""
    numbers = None
    # Of a checkpoint that is missing, damaged or of other settings, main.py says what is wrong.
    with contextlib.suppress(UserError, LookupError, AttributeError, TypeError, ValueError):
        state = read_checkpoint(Path(run.args.ckpt_dir) / run.name / "last")
        same = defining_flags(saved_flags(state["arguments"])) == defining_flags(run.args)
        if same and state["iter"] >= run.args.max_iter:
            numbers = study.read_numbers(run.folder, run.args.metrics)
    so_far = numbers or study.read_numbers(run.folder) or {}
    return study.Result(run.name, run.settings, bool(numbers), so_far)


def connect(args):
    """Client of the scheduler at --scheduler, or of one in this process, with --parallel workers.

    Those workers are threads, as each only waits for its main.py. No other machine can reach them.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UserError("a sweep needs dask.distributed: pip install distributed") from None
    for name in ("distributed", "distributed.client"):  # the sweep itself says in a line what fails
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not args.scheduler:
        pages = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
        return Client(n_workers=args.parallel, threads_per_worker=1, processes=False, memory_limit=0, **pages)
    try:
        return Client(args.scheduler, timeout=TIMEOUT)
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler at {args.scheduler}: {error}") from None


class Sweep:
    """The runs of a sweep, what is on disk of them, and the summary."""

    def __init__(self, args, runs):
        self.args, self.runs, one = args, runs, runs[0].args
        self.folder = Path(one.output_dir) / args.sweep_name
        self.board = dashboard.Dashboard(self.folder, args.sweep_name, one.viz_server, one.viz_port)
        self.results = {run.name: result(run) for run in runs}

    def unfinished(self):
        return [run for run in self.runs if not self.results[run.name].finished]

    def count(self):
        return f"{len(self.runs) - len(self.unfinished())} of {len(self.runs)} runs"

    def iterations(self):
        """Iterations of all runs so far."""
        return sum(min(study.iterations(run.folder), run.args.max_iter) for run in self.runs)

    def train(self, client):
        """Train what is unfinished. A signal or an error ends it once the runs have saved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.args.parallel, str(Path(__file__).resolve().parent), os.getcwd()
        tasks = {}
        for run in self.unfinished():
            printed = str(self.folder.absolute() / f"{Path(run.name).name}.txt")
            tasks[client.submit(train, run.flags, printed, *about, pure=False, retries=RETRIES)] = run
        total, begun = sum(run.args.max_iter for run in self.runs), self.iterations()
        try:
            with progress(total=total, initial=begun, unit="it", delay=0, leave=True) as bar:
                bar.set_description(self.count())
                while tasks:
                    time.sleep(POLL)
                    for future in [future for future in tasks if future.done()]:
                        self.end(tasks.pop(future), future)
                    bar.update(self.iterations() - bar.n)
                    bar.set_description(self.count())
        finally:
            if client.status == "running":
                client.cancel(list(tasks))
            end = time.monotonic() + SAVING
            while any(lock_holder(run.folder) for run in tasks.values()) and time.monotonic() < end:
                time.sleep(POLL)

    def end(self, run, future):
        """Bring the summary up to date and say in a line how a run went. future: its task, which is done."""
        if future.cancelled():
            raise UserError(f"lost the scheduler {self.args.scheduler}: give the same command with a new one")
        last = future.result() if future.status == "finished" else future.exception()
        self.summarise()
        if self.results[run.name].finished:
            tqdm.write(f"{run.name}: finished")
        else:
            tqdm.write(f"{run.name}: failed, {last}", file=sys.stderr)

    def summarise(self):
        """Write summary.csv, summary.md and summary.png, and show them on the dashboard."""
        self.results.update({run.name: result(run) for run in self.unfinished()})
        study.write(self.folder, self.args.sweep_name, list(self.results.values()))
        if self.runs[0].args.viz_on and len(self.unfinished()) < len(self.runs):
            self.board.send(dashboard.study(self.folder, self.args.sweep_name))


def run_sweep(args, runs):
    """Train and summarise; returns the exit status, 1 if a run failed."""
    sweep = Sweep(args, runs)
    print(f"{args.sweep_name}: {sweep.count()} are finished already", flush=True)
    if sweep.unfinished():
        with connect(args) as client:
            for flags in {run.args.dataset: run.args for run in sweep.unfinished()}.values():
                return_data(flags)  # prepared once, before the processes start
            sweep.train(client)
    sweep.summarise()
    print(f"{sweep.count()} are finished: see {sweep.folder}")
    return int(bool(sweep.unfinished()))


def main(argv=None):
    return run_cli("sweep.py", "stopped; the same command resumes it", partial(run_sweep, *parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
