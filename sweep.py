"""Trains many runs, a grid of seeds and settings, and shows how far they spread.

    python sweep.py --sweep_name betas --seed 0-9 --beta 1,4,8 --max_iter 5e4     # and any flag of main.py
    python sweep.py --sweep_name betas --seed 0-9 --beta 1,4,8 --max_iter 5e4 --dry_run True
    torchrun --nproc_per_node 2 sweep.py --sweep_name betas --seed 0-9 --beta 1,4,8 --max_iter 5e4

A comma separates the values of a number or of a choice, and 0-9 is ten whole numbers. Each run is a main.py of
its own, named betas_beta=1_seed=0, with folders as any other. The same command, once more or on another machine
that shares the folders, skips what is finished, resumes what was interrupted, and leaves alone what another process
trains. outputs/<sweep_name>/ gets summary.csv, summary.md and summary.png, and what each run says, as text.
"""

import argparse
import ctypes
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import main as program
from dataset import return_data
from evaluation.study import Summary, iterations
from training.lock import lock_holder
from training.run import StopSignals
from training.settings import FLAGS_OF, defining_flags
from utils import UserError, boolean, count, progress, run_cli

OWN = ("sweep_name", "parallel", "dry_run")  # flags that main.py does not know
FIXED = ("train", "ckpt_name", "overwrite")  # each run decides by what is on disk
PAUSE = 0.1  # seconds between looks at the processes
LOOK = 2  # seconds between looks at the logs
TRIAL = 10  # seconds of training that --dry_run measures, and
ENOUGH = 50  # iterations, at least
GRACE = 60  # seconds in which a run that another process holds may yet be let go, as after a kill
MOST = 100_000  # runs of a grid


# The grid.


class Run(NamedTuple):
    """A cell of the grid."""

    settings: dict  # flags that the grid varies, as typed; the seed last
    flags: dict  # all that main.py gets, as typed
    args: argparse.Namespace  # the same, read

    @property
    def name(self):
        return self.args.viz_name

    @property
    def outputs(self):
        return Path(self.args.output_dir) / self.name

    @property
    def checkpoints(self):
        return Path(self.args.ckpt_dir) / self.name


def make_parser():
    parser = program.make_parser()
    parser.prog, parser.description = "sweep.py", __doc__
    parser.formatter_class = type(
        "Help", (argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter), {}
    )
    add = parser.add_argument_group(
        "the sweep; all flags above are main.py's, but --viz_name, which is not used, "
        f"and {', '.join(f'--{name}' for name in FIXED)}, which are refused"
    ).add_argument
    add(
        "--sweep_name",
        required=True,
        default=argparse.SUPPRESS,
        help="name of the study: of its folder, and the start of its runs' names",
    )
    add(
        "--parallel",
        type=count,
        default=1,
        help="runs at once in this process, each with its share of the CPU threads unless --threads says how many",
    )
    add(
        "--dry_run",
        type=boolean,
        default=False,
        help=f"print the runs and the hours they will take, from {TRIAL} or more seconds of training; keep nothing",
    )
    return parser


def expand(text):
    """The values in "1,4,8" or "0-9", as texts; a range is between two whole numbers without a sign."""
    values = []
    for part in text.split(","):
        if ends := re.fullmatch(r"(\d+)-(\d+)", part.strip()):
            first, last = map(int, ends.groups())
            values += map(str, range(first, min(last, first + MOST) + 1)) if first <= last else [part]
        else:
            values.append(part.strip())
    return values


def parse(argv=None):
    """Flags of the sweep, and its runs; what makes no sense in any of them ends the program with one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser, texts = make_parser(), make_parser()
    if {"-h", "--help"} & set(argv):
        parser.parse_args(argv)
    lists = {
        action.dest
        for action in parser._actions
        # scores are what runs are compared by
        if action.choices or action.type in (count, float)
    } - {*OWN, "metrics"}
    for action in texts._actions:  # as typed, and only what was typed
        action.type, action.choices, action.default = str, None, argparse.SUPPRESS
    flags = vars(texts.parse_args(argv))
    own = {name: flags.pop(name) for name in OWN if name in flags}
    args = parser.parse_args([f"--{name}={text}" for name, text in own.items()])
    name = Path(args.sweep_name)
    if not args.sweep_name.strip() or ".." in name.parts or name.is_absolute() or args.parallel < 1:
        parser.error("--sweep_name must be a name for a folder inside output_dir, and --parallel at least 1")
    for name in flags.keys() & {*FIXED}:
        parser.error(
            f"--{name} is for single runs: a sweep starts, resumes and skips its runs by what is on disk"
        )

    varied = {
        name: expand(text)
        for name, text in flags.items()
        if name in lists and re.search(r",|^\d+-\d+$", text)
    }
    names = sorted(varied, key=lambda name: name == "seed")  # the seed last, others in the order typed
    if math.prod(map(len, varied.values())) > MOST:
        parser.error(f"the grid has more than {MOST:,} runs")
    # Seeds change slowest: what is finished of a study tells of all its settings.
    cells = itertools.product(*(varied[name] for name in reversed(names)))
    runs = [make_run(parser, {**flags, **own}, dict(zip(names, reversed(cell)))) for cell in cells]
    if len({tuple(getattr(run.args, name) for name in names) for run in runs}) < len(runs):
        parser.error(f"the grid holds a run twice: a value of --{' or --'.join(names)} is repeated")
    for name in names:
        for run in runs:
            if name in sum(FLAGS_OF.values(), []) and name not in defining_flags(run.args):
                parser.error(
                    f"--{name} changes nothing with --objective {run.args.objective} --optimizer "
                    f"{run.args.optimizer}: its runs would be the same"
                )
    return args, runs


def make_run(parser, flags, settings):
    name = "_".join([flags["sweep_name"], *(f"{name}={text}" for name, text in settings.items())])
    flags = {**flags, **settings, "viz_name": name}
    args = program.parse([f"--{name}={text}" for name, text in flags.items()], parser)
    return Run(settings, {name: text for name, text in flags.items() if name not in OWN}, args)


# Processes.


class Place(NamedTuple):
    """Which of the study's processes this is."""

    rank: int
    world: int
    local_rank: int  # on this machine, of
    local_world: int  # those that share the CPUs that this one may use


def find_place(env=os.environ):
    """The place that torchrun or SLURM give this process; of SLURM's, each has CPUs of its own."""

    def numbers(**defaults):
        return [int(env.get(name, default)) for name, default in defaults.items()]

    if "RANK" in env:
        return Place(*numbers(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, LOCAL_WORLD_SIZE=1))
    if "SLURM_ARRAY_TASK_ID" in env:
        task, first, step, tasks = numbers(
            SLURM_ARRAY_TASK_ID=0, SLURM_ARRAY_TASK_MIN=0, SLURM_ARRAY_TASK_STEP=1, SLURM_ARRAY_TASK_COUNT=1
        )
        return Place((task - first) // step, tasks, 0, 1)
    return Place(*numbers(SLURM_PROCID=0, SLURM_NTASKS=1, SLURM_LOCALID=0), 1)


class Child:
    """A main.py at work on a run. What it says goes to the end of a text file in the study's folder."""

    def __init__(self, run, sweep, slot, place):
        self.run, self.began = run, time.monotonic()
        folder = Path(run.args.output_dir) / sweep.sweep_name
        folder.mkdir(parents=True, exist_ok=True)
        self.said = folder / f"{Path(run.name).name}.txt"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = run.args.threads or max(1, cores // (place.local_world * sweep.parallel))
        flags = [f"--{name}={text}" for name, text in {**run.flags, "threads": threads}.items()]
        with open(self.said, "ab") as file:
            self.start = file.tell()
            # In a session of its own, Ctrl-C reaches it through the sweep, once, and it saves.
            self.process = subprocess.Popen(
                [sys.executable, "-u", Path(__file__).with_name("main.py"), *flags],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent(),
                env=environment(place.local_rank * sweep.parallel + slot, run.args.cuda),
            )

    def last_words(self):
        text = self.said.read_bytes()[self.start :].decode(errors="replace")
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")

    def reason(self):
        """Why it ended early, in a line."""
        status = self.process.returncode
        if not status and not iterations(self.run):
            return f"{self.run.outputs / 'log.csv'} is gone or damaged: to train it again, remove {self.run.checkpoints}"
        return f"{signal.Signals(-status).name if status < 0 else f'status {status}'}: {self.last_words()}"


def end_with_parent():
    """What a child calls first: Linux then sends it SIGTERM when the sweep is killed, and it saves and ends."""
    PR_SET_PDEATHSIG = 1  # prctl.h
    if sys.platform == "linux":
        return partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)


def environment(number, cuda):
    """Variables for the child of that number on this machine: where there are several GPUs, one of them."""
    env = dict(os.environ)
    if "TORCHELASTIC_RUN_ID" in env:  # torchrun sets it to 1, which would slow the scoring down
        env.pop("OMP_NUM_THREADS", None)
    if cuda and (devices := torch.cuda.device_count()) > 1:
        names = env.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
        env["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
    return env


class Crew:
    """Trains what is not finished, --parallel runs at a time: this process's share first, then whatever is free."""

    def __init__(self, args, runs, summary):
        self.args, self.runs, self.summary, self.place = args, runs, summary, find_place()
        # First runs[rank::world], then the shares of the next ranks.
        self.order = [
            runs[i] for i in sorted(range(len(runs)), key=lambda i: (i - self.place.rank) % self.place.world)
        ]
        self.children, self.failed, self.elsewhere = {}, set(), []
        self.last_start = self.shown = time.monotonic()

    def work(self):
        """Returns the exit status: 0, 1 if a run failed, 130 or 143 if told to stop."""
        with StopSignals() as stop, self.progress_bar() as bar:
            try:
                while self.step() and not stop.received:
                    if time.monotonic() > self.shown + LOOK:
                        self.show(bar)
                    time.sleep(PAUSE)
            finally:
                for child in self.children.values():
                    child.process.terminate()  # it saves
                for child in self.children.values():
                    child.process.wait()
                self.show(bar)
        if stop.received:
            print(f"{self.args.sweep_name}: stopped; the same command goes on")
            return 128 + stop.received
        return int(not all(self.summary.done(run) for run in self.runs if run.name in self.failed))

    def step(self):
        """Notes what has ended, starts what is free; False when nothing is left to do or to wait for."""
        for slot, child in list(self.children.items()):
            if child.process.poll() is not None:
                del self.children[slot]
                self.ended(child)
        for slot in range(self.args.parallel):
            if slot not in self.children and (run := self.next_run()):
                self.children[slot] = Child(run, self.args, slot, self.place)
                self.last_start = time.monotonic()
        # What others train may become free. A task of an array does not keep its machine waiting for long.
        wait = self.elsewhere and (
            "SLURM_ARRAY_TASK_ID" not in os.environ or time.monotonic() < self.last_start + GRACE
        )
        return self.children or wait

    def next_run(self):
        """A run that nobody trains and that is not finished, or None; notes which others train."""
        self.elsewhere = []
        taken = self.failed | self.summary.rows.keys() | {child.run.name for child in self.children.values()}
        for run in self.order:
            if run.name not in taken:
                if lock_holder(run.outputs):
                    self.elsewhere.append(run)
                elif not self.summary.done(run):
                    return run
        return None

    def ended(self, child):
        """Tells in a line how a run went, and brings the summary up to date."""
        run, minutes = child.run, (time.monotonic() - child.began) / 60
        if child.process.returncode == 0 and self.summary.done(run):
            row = self.summary.rows[run.name]
            tqdm.write(
                f"{run.name}: finished after {minutes:.1f} min, reconstruction {row['recon_loss']:.1f}, "
                f"KL {row['total_kld']:.2f} nats"
            )
        elif lock_holder(run.outputs) or self.summary.done(run):
            tqdm.write(f"{run.name}: {child.last_words()}")  # another process was faster
        else:
            self.failed.add(run.name)
            tqdm.write(f"{run.name}: failed, {child.reason()}; all it said: {child.said}", file=sys.stderr)
        self.summary.write()

    def progress_bar(self):
        total = sum(run.args.max_iter for run in self.runs)
        return progress(
            total=total,
            initial=self.trained(),
            unit="it",
            delay=0,
            leave=True,
            smoothing=0,
            disable=self.place.local_rank > 0,
        )

    def trained(self):
        """Iterations of all runs so far, whoever trains them."""
        return sum(
            run.args.max_iter if run.name in self.summary.rows else min(iterations(run), run.args.max_iter)
            for run in self.runs
        )

    def show(self, bar):
        bar.set_description(f"{len(self.summary.rows)} of {len(self.runs)} runs", refresh=False)
        bar.update(self.trained() - bar.n)
        self.shown = time.monotonic()


# The time that it will take.


def estimate(args, runs, done):
    """Prints the grid and, from some seconds of training, how long what is not done will take."""
    for run in runs:
        state = "finished" if run.name in done else f"{iterations(run):,} of {run.args.max_iter:,}"
        print(f"{run.name:60} {state}")
    if todo := [run for run in runs if run.name not in done]:
        left = sum(max(0, run.args.max_iter - iterations(run)) for run in todo)
        together = todo[: args.parallel]
        rate = measure(args, together)
        print(
            f"{len(todo)} of {len(runs)} runs to train, {left:,} iterations. The first {len(together)}, at once, made "
            f"{rate:.1f} it/s in all just now: {left / rate / 3600:.2f} hours, without pictures and scores"
        )


def measure(args, runs):
    """Iterations a second of runs that train at once, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        trial = dict(
            output_dir=f"{folder}/outputs",
            ckpt_dir=f"{folder}/checkpoints",
            max_iter="1e9",
            gather_step="5",
            display_step="1e9",
            save_step="1e9",
            viz_on="False",
            metrics="none",
        )
        runs = [
            make_run(make_parser(), {**run.flags, **run.settings, **trial, "sweep_name": f"trial_{i}"}, {})
            for i, run in enumerate(runs)
        ]
        children = [Child(run, args, slot, find_place()) for slot, run in enumerate(runs)]
        try:
            while not all(map(iterations, runs)):
                wait(children)
            before, began, made, seconds = sum(map(iterations, runs)), time.monotonic(), 0, 0
            while seconds < TRIAL or made < ENOUGH:
                wait(children)
                made, seconds = sum(map(iterations, runs)) - before, time.monotonic() - began
            return made / seconds
        finally:
            for child in children:
                child.process.kill()
                child.process.wait()


def wait(children):
    """Pauses; raises UserError if one of the children has ended."""
    time.sleep(PAUSE)
    for child in children:
        if child.process.poll() is not None:
            raise UserError(f"{child.run.name}: {child.reason()}")


def main(argv=None):
    """Runs the program; returns its exit status."""
    args, runs = parse(argv)

    def run():
        summary = Summary(args, runs)
        todo = [run for run in runs if not summary.done(run)]
        # The data sets are made before the processes start that map them.
        for flags in {(run.args.dataset, run.args.dset_dir): run.args for run in todo}.values():
            return_data(flags)
        if args.dry_run:
            return estimate(args, runs, summary.rows)
        print(
            f"{args.sweep_name}: {len(runs)} runs, {len(runs) - len(todo)} of them finished already",
            flush=True,
        )
        status = Crew(args, runs, summary).work() if todo else 0
        summary.write()
        print(f"{len(summary.rows)} of {len(runs)} runs are finished: see {summary.folder}")
        return status

    return run_cli("sweep.py", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
