"""Train a grid of seeds and settings, and show how far the results of its runs spread.

    python sweep.py --sweep_name betas --seed 0-9 --beta 1 4 8 --max_iter 5e4
    PROGRAM=sweep.py sh run_dsprites_B.sh --seed 1 2 3 4 5
    python sweep.py --sweep_name betas --seed 0-9 --beta 1 4 8 --scheduler tcp://HOST:8786

Takes the flags of main.py (python main.py --help). Several values of a flag, "1 4 8", "1,4,8" or "0-9", span the grid.
A run is a main.py with one CPU thread, unless --threads is given, and is named after its values: betas_beta=1_seed=0.
The same command again skips finished runs and resumes the others. outputs/<sweep_name>/ gets summary.csv, summary.md,
summary.png and a text file of what each run prints.
"""

import argparse
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import NamedTuple

import joblib
import torch
from tqdm import tqdm

import main as program
from dataset import return_data
from evaluation import study
from run.checkpoint import Checkpoints
from run.folder import defining_flags
from utils import Parser, count, file_name, progress, run_cli, within

SINGLE = {"train", "ckpt_name", "overwrite", "image", "encode"}  # flags of main.py that a sweep does not take
POLL = 1  # seconds between looks at the logs, for the progress bar


class Run(NamedTuple):
    name: str
    settings: dict  # the flags that vary, as typed, and the seed
    flags: list  # all flags of its main.py, as typed
    args: argparse.Namespace  # the same, parsed

    @property
    def folder(self):
        return Path(self.args.output_dir) / self.name


def parse(argv=None):
    """Return the sweep's flags and its runs; wrong flags of either end the program with one line and status 2."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="sweep.py", description=__doc__, allow_abbrev=False, formatter_class=raw)
    # fmt: off
    parser.add_argument("--sweep_name", help="name of the sweep's folder and start of its runs' names; default: <viz_name>_sweep")
    parser.add_argument("--parallel", type=within(count, 1, 4097), help="runs at once on this machine; default: one per GPU, without GPUs one per CPU core")
    parser.add_argument("--scheduler", type=file_name, metavar="ADDRESS",
        help="dask scheduler whose workers train, a run per thread; they need this repository and its data in the same folders as here")
    # fmt: on
    for name in vars(program.make_parser().parse_args([])).keys() - SINGLE:
        parser.add_argument(f"--{name}", nargs="+", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    flags = {"threads": ["1"], "seed": ["1"], "viz_name": ["main"]}
    flags |= {name: texts for name, texts in vars(args).items() if isinstance(texts, list)}
    viz_name = flags.pop("viz_name")[-1]  # a run script's; each run gets its own
    args.sweep_name = args.sweep_name or f"{viz_name}_sweep"
    return args, grid(args.sweep_name, {name: expand(texts) for name, texts in flags.items()})


def expand(texts):
    """Return the values of a flag in texts such as "1,4,8", "0-9" or a schedule, "0:4,1e4:1", each once, as typed."""
    values = []
    for text in texts:
        for part in [text] if ":" in text else text.split(","):
            first, _, last = part.partition("-")
            numbers = first.isdecimal() and last.isdecimal() and range(int(first), int(last) + 1)
            values += map(str, numbers or [part])
    return list(dict.fromkeys(values))


def grid(sweep_name, flags):
    """Return the runs of all combinations of flags, {name: values}. The seed changes slowest: the first runs cover all settings."""
    constant, runs = {name: values[0] for name, values in flags.items()}, []
    varied = [name for name, values in flags.items() if len(values) > 1 and name != "seed"]
    for seed, *values in itertools.product(flags["seed"], *(flags[name] for name in varied)):
        settings = {**dict(zip(varied, values)), "seed": seed}
        name = "_".join([sweep_name, *(f"{flag}={value}" for flag, value in settings.items())])
        typed = [f"--{flag}={value}" for flag, value in {**constant, **settings, "viz_name": name}.items()]
        runs.append(Run(name, settings, typed, program.parse(typed)))
    return runs


@contextlib.contextmanager
def open_pool(args, cuda):
    """Within `with`: submit(flags, printed), which runs main.py as soon as there is room for it and returns a future.

    Leaving it early lets the runs of this machine save and end; those of a scheduler's workers go on to their end.
    """
    path, cwd, processes = str(Path(program.__file__).resolve()), os.getcwd(), []
    n = torch.cuda.device_count() if cuda and not args.scheduler else 0
    parallel = args.parallel or n or joblib.cpu_count()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n)))).split(",")
    free = [gpus[i % n] for i in range(parallel)] if n else []  # one for each run at once

    # Inside a function, so that dask sends its code, not a name to import: workers may start in any folder.
    def train(flags, printed):
        gpu = free.pop() if free else None
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu} if gpu else None
        with open(printed, "a+b") as file:
            begin = file.seek(0, os.SEEK_END)
            for _ in range(4):
                command = [sys.executable, "-u", path, *flags]
                process = subprocess.Popen(command, cwd=cwd, env=env, stdout=file, stderr=file)
                processes.append(process)
                if process.wait() != -signal.SIGKILL:  # or else, perhaps for want of memory, it resumes
                    break
            file.seek(begin)
            # Only main.py's own words: another sweep of this name may print its progress to this file.
            errors = re.findall(r"main\.py: .*", file.read().decode(errors="replace"))
        if gpu:
            free.append(gpu)
        return errors[-1] if errors else f"status {process.returncode}"

    if args.scheduler:
        from distributed import Client

        with Client(args.scheduler) as client:
            yield partial(client.get_executor(pure=False).submit, train)
        return
    pool = ThreadPoolExecutor(parallel)
    try:
        yield partial(pool.submit, train)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # Ctrl-C has reached them, too: main.py counts both as one
            process.terminate()
        pool.shutdown()


def read_result(run):
    """Read from disk how far a run is. It is finished when main.py has nothing left to train or to score."""
    numbers = study.read_numbers(run.folder)
    scores = study.read_scores(run.folder, numbers.get("iterations"), run.args.metrics)
    flags = vars(run.args)
    state = Checkpoints(Path(run.args.ckpt_dir) / run.name).load()
    same = state and defining_flags(state["arguments"], flags) == defining_flags(flags, flags)
    finished = same and state["iter"] >= run.args.max_iter and (run.args.metrics == "none" or scores)
    return study.Result(run.name, run.settings, bool(finished), numbers | scores)


def run_sweep(args, runs):
    """Train what is not finished, and summarise whenever a run ends; return the exit status, 1 if a run failed."""
    name = args.sweep_name
    folder = Path(runs[0].args.output_dir).absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    results = {run.name: read_result(run) for run in runs}

    def summarise():
        """Write the summary, and return how many runs are finished, as text."""
        study.write(folder, name, list(results.values()))
        return f"{sum(each.finished for each in results.values())} of {len(runs)} runs are finished"

    print(f"{name}: {summarise()}", flush=True)
    unfinished = [run for run in runs if not results[run.name].finished]
    for run, reason in train(args, unfinished, folder) if unfinished else ():
        results[run.name] = read_result(run)
        printed = folder / f"{Path(run.name).name}.txt"
        how = "finished" if results[run.name].finished else f"failed, {reason}; what it printed: {printed}"
        tqdm.write(f"{run.name}: {how}; {summarise()}")
    print(f"{name}: {summarise()}; see {folder}")
    return int(not all(each.finished for each in results.values()))


def train(args, runs, folder):
    """Train runs, with a progress bar; yield each one as it ends, and why if it failed. What they print goes to folder."""
    for flags in {run.args.dataset: run.args for run in runs}.values():
        return_data(flags)  # prepared once, before the processes start

    def iterations():
        return sum(min(study.iterations(run.folder), run.args.max_iter) for run in runs)

    # miniters: with its own, tqdm does not keep to a line every 30 s in a file
    total = sum(run.args.max_iter for run in runs)
    bar = progress(total=total, initial=iterations(), unit="it", delay=0, leave=True, miniters=1)
    with open_pool(args, runs[0].args.cuda) as submit, bar:
        futures = {submit(run.flags, str(folder / f"{Path(run.name).name}.txt")): run for run in runs}
        while futures:
            for future in wait(futures, POLL, FIRST_COMPLETED).done:
                yield futures.pop(future), future.exception() or future.result()
            bar.update(iterations() - bar.n)


def main(argv=None):
    return run_cli("sweep.py", "stopped; the same command resumes it", partial(run_sweep, *parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
