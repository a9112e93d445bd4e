"""Trains, kills, and trains on, until it has killed often enough; each run must end as one that was left alone.

    python tests/crash.py --kills 200 --minutes 30 --dset_dir data
    python tests/crash.py --kills 20 --pictures True

Real trainings on dSprites, small ones: batches of 1, 240 iterations, a checkpoint every 30; with pictures, which take most
of the time, every 120. Each is killed at a random moment, or as it writes a checkpoint, a row of the log or a picture,
and called again with the same flags, until one call gets to the end. Then weights, optimiser, noise, log.csv and
pictures are compared, byte for byte, with those of a run in a process of its own that nobody disturbed. The trainings
that are killed are forked from this process, which has loaded torch but computes nothing: it saves the imports' seconds.
"""

import ctypes
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

# before any thread: forks have none but their own
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from tqdm import tqdm

from conftest import ROOT, same  # puts the repository on the path

# isort: split
import main as program
from solver import Solver
from training.checkpoint import read_checkpoint
from training.log import Log
from utils import Parser, boolean, progress

SAVE_STEP = 30
FLAGS = (
    "--model B --objective B --batch_size 1 --max_iter 240 --gather_step 7 --display_step 120 "
    f"--save_step {SAVE_STEP} --threads 1 --viz_on False"
).split()
# Kinds of kills: signals, where they are aimed, and up to which event there (a file opened, moved, removed; a row).
KINDS = [
    ("SIGKILL", "anywhere", 0),
    ("SIGKILL", "checkpoint", 20),
    ("SIGKILL", "log", 60),
    ("SIGTERM", "anywhere", 0),
    ("Ctrl-C", "anywhere", 0),
    ("Ctrl-C twice", "anywhere", 0),
]
DRAWING = [("SIGKILL", "pictures", 40), ("SIGKILL", "anywhere", 0)]
SIGNALS = {
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "Ctrl-C": [signal.SIGINT],
    "Ctrl-C twice": [signal.SIGINT, signal.SIGINT],
}
STATUS = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "Ctrl-C": {130}, "Ctrl-C twice": {130, -2}}


def interrupt(number, frame):
    """In a fork: Ctrl-C is a KeyboardInterrupt within main.py, and elsewhere its end, as this script must not go on there."""
    while frame is not None:
        if frame.f_code is program.main.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back
    os._exit(130)


class Training:
    """A run of main.py under a name, called again and again: each time a fork of this process."""

    def __init__(self, folder, name, dset_dir, draws):
        self.outputs, self.checkpoints = folder / "out" / name, folder / "ckpt" / name
        self.text = folder / f"{name}.txt"
        self.flags = [*FLAGS, "--viz_name", name, "--dset_dir", str(dset_dir), "--save_output", str(draws)]
        self.flags += ["--output_dir", str(folder / "out"), "--ckpt_dir", str(folder / "ckpt")]
        self.reached = ctypes.c_int64.from_buffer(mmap.mmap(-1, 8))  # iteration, shared with the fork

    def fork(self, place=None, nth=0, at_once=False):
        """Starts it; returns its pid and a pipe in which a byte comes at the nth event at that place."""
        reader, writer = os.pipe()
        # until the fork has its own handler
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        if pid := os.fork():
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(writer)
            return pid, reader
        status = 1
        try:
            signal.signal(signal.SIGINT, interrupt)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(reader)
            # its own is shared with all forks, and stays taken when one is killed in it
            tqdm.set_lock(threading.RLock())
            for number in (1, 2):
                os.dup2(os.open(self.text, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            self.watch(place, nth, at_once, writer)
            status = program.main(self.flags)
        except SystemExit as stop:  # SIGTERM outside the training loop
            status = stop.code
        except KeyboardInterrupt:  # in main.py's own lines: there is no run yet, or no longer
            status = 130
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def watch(self, place, nth, at_once, pipe):
        """In the fork: notes how far it is; tells of the nth event at a place, and dies there if at_once."""
        count = 0

        def event():
            nonlocal count
            count += 1
            if count == nth:
                os.write(pipe, b"x")
                if at_once:
                    os.kill(os.getpid(), signal.SIGKILL)

        def audit(name, args):  # Python calls it before it opens, moves or removes a file
            if place in ("checkpoint", "log", "pictures") and (
                name in ("os.rename", "os.remove") or name == "open" and args[1] and set(args[1]) & set("wa+")
            ):
                path = str(args[0])
                if place == (
                    "checkpoint"
                    if path.startswith(f"{self.checkpoints}/")
                    else "log"
                    if "log.csv" in path
                    else "pictures"
                    if path.startswith(f"{self.outputs}/")
                    else ""
                ):
                    event()

        def next_indices(solver, of=Solver.next_indices):
            self.reached.value = solver.iter
            return of(solver)

        def append(log, *values, of=Log.append):
            if place == "log":
                event()
            row = of(log, *values)
            if place == "log":
                event()
            return row

        sys.addaudithook(audit)
        Solver.next_indices, Log.append = next_indices, append

    def run(self):
        """Calls it once more and leaves it alone; returns its exit status."""
        pid, reader = self.fork()
        os.close(reader)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def kill(self, kind, place, latest, length, rng):
        """Calls it once more, which takes up to length seconds, and kills it; returns its exit status."""
        at_once = place != "anywhere" and rng.random() < 0.5
        pid, reader = self.fork(place, rng.randint(1, latest + 1), at_once)
        # a byte, or its end
        select.select([reader], [], [], rng.random() * length if place == "anywhere" else None)
        if place != "anywhere":
            time.sleep(rng.random() * 0.02)
        for number in SIGNALS[kind]:
            os.kill(pid, number)  # until waitpid the pid is its own, alive or not
            time.sleep(rng.random() * 0.05)
        os.close(reader)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def resumed(self):
        """The iteration from which the next call will go on."""
        for name in ("last", "previous"):
            if (self.checkpoints / name).exists():
                return read_checkpoint(self.checkpoints / name)["iter"]
        return 0

    def temporaries(self):
        """What was being written as it was killed: it is still there, under its temporary name; with the time."""
        return {
            (path, path.stat().st_mtime_ns)
            for folder in (self.outputs, self.checkpoints)
            for path in folder.rglob(".*.tmp")
        }


def differences(one, other):
    """What two finished trainings do not have in common: parts of the checkpoint, and files."""
    states = [read_checkpoint(each.checkpoints / "last") for each in (one, other)]
    found = [
        key
        for key in states[0].keys() | states[1].keys()
        if key != "arguments" and not same(states[0].get(key), states[1].get(key))
    ]
    files = [
        {
            str(path.relative_to(each.outputs)): path.read_bytes()
            for path in each.outputs.rglob("*")
            if path.is_file()
            and path.name not in ("args.json", "explore.html", "log.csv.old", "lock", "lock.pid")
        }
        for each in (one, other)
    ]
    return found + [
        name for name in files[0].keys() | files[1].keys() if files[0].get(name) != files[1].get(name)
    ]


def undisturbed(folder, dset_dir, draws):
    """A finished training in a process of its own, and the seconds that a fork takes for the same."""
    whole, fork = (Training(folder, f"{name}_{draws}", dset_dir, draws) for name in ("whole", "fork"))
    subprocess.run(
        [sys.executable, ROOT / "main.py", *whole.flags],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    start = time.monotonic()
    if fork.run() or differences(whole, fork):
        sys.exit("a fork does not train as a process of its own does")
    return whole, time.monotonic() - start


def disturbed(training, whole, length, kinds, most, rng):
    """Kills a training until it ends, or most times; yields (kind, amid writing, lost iterations, fault or None)."""
    status = None
    while status != 0 and most > 0:
        kind = rng.choice(kinds)
        training.reached.value, before = 0, training.temporaries()
        if (status := training.kill(*kind, length, rng)) == 0:
            break
        most -= 1
        lost = max(0, training.reached.value - training.resumed())
        # it may come between two of them
        allowed = 1 if kind[0] in ("SIGTERM", "Ctrl-C") and status > 0 else SAVE_STEP
        fault = (
            f"{kind[0]} lost {lost} iterations"
            if lost > allowed
            else f"{kind[0]} ended it with status {status}"
            if status not in STATUS[kind[0]]
            else None
        )
        yield kind[:2], bool(training.temporaries() - before), lost, fault
    status = training.run() if status else 0
    fault = f"ends with status {status}" if status else ", ".join(differences(whole, training))
    text = training.text.read_text(errors="replace")
    if "Traceback" in text:
        fault += text[text.index("Traceback") :]
    if fault:
        yield None, False, 0, f"{training.outputs.name} {fault}"


def campaign(folder, dset_dir, kills, minutes, seed, draw=False, bar=None):
    """Kills trainings in folder; returns {kind: [kills, amid writing, most lost]}, the number of trainings, and faults."""
    rng, end, kinds = random.Random(seed), time.monotonic() + 60 * minutes, DRAWING if draw else KINDS
    whole, length = undisturbed(folder, dset_dir, draw)
    table, faults, runs = {kind[:2]: [0, 0, 0] for kind in kinds}, [], 0
    while (done := sum(row[0] for row in table.values())) < kills and time.monotonic() < end:
        training = Training(folder, f"run_{runs}", dset_dir, draw)
        for kind, amid, lost, fault in disturbed(training, whole, length, kinds, kills - done, rng):
            if fault:
                faults.append(fault)
            if kind:
                row = table[kind]
                row[:] = row[0] + 1, row[1] + amid, max(row[2], lost)
                if bar is not None:
                    bar.update()
        runs += 1
    return table, runs, faults


def main(argv=None):
    parser = Parser(prog="crash.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=200, help="how often to kill a training")
    parser.add_argument("--minutes", type=float, default=30, help="after which no new training begins")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--dset_dir", default="data", help="folder of dSprites")
    parser.add_argument("--pictures", type=boolean, default=False, help="draw them, and kill amid them")
    args = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress(total=args.kills, unit=" kills", delay=0, leave=True) as bar,
    ):
        table, runs, faults = campaign(
            Path(folder), args.dset_dir, args.kills, args.minutes, args.seed, args.pictures, bar
        )
    print(f"{'kill':<14}{'aimed at':<12}{'kills':>6}{'amid writing':>14}{'most iterations lost':>22}")
    for (kind, place), (count, amid, lost) in table.items():
        print(f"{kind:<14}{place:<12}{count:>6}{amid:>14}{lost:>22}")
    kills = sum(row[0] for row in table.values())
    print(
        f"{kills} kills in {runs} runs, a checkpoint every {SAVE_STEP} iterations; "
        + (f"{len(faults)} faults" if faults else "each run ended with the bytes of one that was left alone")
    )
    print(*faults, sep="\n", end="\n" * bool(faults))
    return 1 if faults or kills < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
