"""What a run needs besides training: flag types, signals, and files that are never half-written."""
import argparse
import contextlib
import csv
import ctypes
import io
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # no such locks on Windows: there two runs of a name are not told apart
    fcntl = None

ACTIVE = 0.01  # nats of KL above which a latent counts as active


class UserError(Exception):
    """Something that the user can put right; it is printed without a traceback."""


class Parser(argparse.ArgumentParser):
    """Tells of a bad flag in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def exit_status(prog, interrupted, run):
    """What a program returns: of run(), None counting as 0; errors that the user can mend, and Ctrl-C, are one line."""
    try:
        return run() or 0
    except (UserError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: {interrupted}", file=sys.stderr)
        return 130


def boolean(text):
    """argparse type: true, yes, 1 or false, no, 0, in any case."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def count(text):
    """argparse type: a whole number, which may be written 1e6."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not (math.isfinite(value) and value == int(value)):
            raise ValueError(f"{text!r} is not a whole number") from None
        return int(value)


def find_device(cuda):
    """The CUDA device, if cuda and there is one, else the CPU."""
    return torch.device("cuda" if cuda and torch.cuda.is_available() else "cpu")


def keep_freed_memory():
    """Lets the process keep the memory that it frees, blocks of up to 256 MB, for its next allocations.

    glibc hands large blocks back to the system at once, and the system clears each page of the
    next one: in training, whose activations are blocks of 8 MB, a third of the time. Does
    nothing where there is no glibc.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_TRIM_THRESHOLD, 2**30)
    mallopt(M_MMAP_THRESHOLD, 2**28) or mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that older ones take


def versions():
    """Versions of what the numbers of a run depend on."""
    return {"python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")}}


def git_commit():
    """Commit of the code that runs, with '+changes' if files differ from it; None without git."""
    def git(*args):
        return subprocess.run(["git", *args], cwd=Path(__file__).resolve().parent, text=True,
                              capture_output=True, check=True, timeout=10).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def progress(iterable=None, delay=2, leave=False, **options):
    """tqdm that shows nothing of what is over in delay seconds; in a file it writes a line each 30 s."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(iterable, delay=delay, leave=leave, mininterval=interval, dynamic_ncols=True, **options)


def is_web_page(start):
    """Whether the first bytes of what should be data are those of a page, as servers send when a quota is used up."""
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


class StopSignals:
    """Within `with`: the first Ctrl-C or SIGTERM is kept in .received, a second ends the process."""

    def __enter__(self):
        self.received = None
        self.handlers = {number: signal.signal(number, self.receive)
                         for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def receive(self, number, frame):
        self.received = number
        for each in self.handlers:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def atomic_file(path, backup=None, writer=""):
    """Opens path to be written, and read, in bytes: it holds the old content or all of the new, also after a crash.

    backup: where the old content goes, if it is to be kept. writer: tells processes apart that may
    write path at once.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{writer}.tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if backup:
            os.replace(path, backup)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


LOCK = "lock"  # a file in each folder of a run: who trains it, or did last


def take_folder(folder):
    """Takes a run's folder for this process and returns the file that holds it, for as long as it is open.

    UserError says who has it. A POSIX record lock: it ends with its process, however that ends, no child
    inherits it, and NFS knows it. The process that has it must not open the file again: closing any drops the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / LOCK, "a+")
    for wait in (0.05, 0.05, None):  # lock_holder may be looking
        if try_lock(file, exclusive=True):
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        if wait:
            time.sleep(wait)
    raise UserError(f"{folder} is in use: {lock_holder(folder)} is training there; another run needs another --viz_name")


def lock_holder(folder):
    """Which other process is training in a run's folder, as "pid 123 on host"; None if none is. Changes nothing."""
    try:
        with open(Path(folder) / LOCK) as file:
            return None if try_lock(file, exclusive=False) else file.read() or "a process that has just started"
    except FileNotFoundError:
        return None


def try_lock(file, exclusive):
    """Whether a lock can be had; True also where there are none."""
    try:
        if fcntl:
            fcntl.lockf(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, by system
        return False
    except OSError:  # a file system without locks
        pass
    return True


class Log:
    """The curves of a run: a csv file of one row for each window of iterations.

    columns: names, the first of which is "iter". A value may be None: it is written as nothing.
    """

    def __init__(self, path, columns):
        self.path, self.columns, self.file = Path(path), columns, None

    def open(self, last_iter):
        """Opens the file to append after last_iter: later rows go. A fresh start keeps the old file as log.csv.old."""
        rows = [self.columns]
        if not last_iter and self.path.exists():
            os.replace(self.path, self.path.with_name(self.path.name + ".old"))
        if last_iter and self.path.exists():
            with open(self.path, newline="") as file:
                rows += [row for row in list(csv.reader(file))[1:]
                         if len(row) == len(self.columns) and row[0].isdecimal() and int(row[0]) <= last_iter]
        with atomic_file(self.path) as file:
            file.write("".join(",".join(row) + "\n" for row in rows).encode())
        self.file = open(self.path, "a", newline="")

    def append(self, iteration, values):
        """Adds a row; returns its values as a reader of the file will see them."""
        texts = ["" if value is None else f"{value:.6g}" for value in values]
        self.file.write(",".join([str(iteration), *texts]) + "\n")
        self.file.flush()
        return [float(text) if text else None for text in texts]

    def flush_to_disk(self):
        os.fsync(self.file.fileno())

    def close(self):
        if self.file:
            self.file.close()


def read_log(path):
    """Reads log.csv as {column: list of floats}; what is empty there is NaN."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    rows = [row for row in rows if len(row) == len(header)]  # a run may be writing the last one
    return {name: [float(row[i]) if row[i] else math.nan for row in rows]
            for i, name in enumerate(header)}


class Checkpoints:
    """A run's folder of checkpoints: last, previous, and one for each KEEP_EVERY iterations, kept for good.

    A checkpoint holds tensors and plain Python values only, so that loading one runs no code.
    """
    KEEP_EVERY = 50_000

    def __init__(self, folder):
        self.folder = Path(folder)

    def paths(self):
        """The checkpoints that are there, the newest first."""
        names = ["last", "previous"]
        if self.folder.is_dir():
            kept = [p.name for p in self.folder.iterdir() if p.name.isdecimal() and p.is_file()]
            names += sorted(kept, key=int, reverse=True)
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def forget_after(self, iteration):
        """Removes previous, and what is kept from later iterations; all of it after 0."""
        for path in self.paths():
            if path.name == "previous" or iteration == 0 or path.name != "last" and int(path.name) > iteration:
                path.unlink()

    def save(self, state):
        """Writes state as last; what was last, if whole, becomes previous: one of them is always whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = ["last"] + [str(state["iter"])] * (state["iter"] % self.KEEP_EVERY == 0)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        for name in reversed(names):
            path = self.folder / name
            keep = name == "last" and not damage(path)
            with atomic_file(path, backup=self.folder / "previous" if keep else None) as file:
                file.write(buffer.getbuffer())

    def load(self, name="last"):
        """Reads a checkpoint onto the CPU.

        name: "last" (if it is damaged the newest readable one; None if there are none at all), another
        name in the folder, or a path. Raises UserError if there is nothing readable to give.
        """
        if name == "last":
            return self.load_newest()
        path = self.folder / name if (self.folder / name).exists() else Path(name)
        if not path.exists():
            there = ", ".join(p.name for p in self.paths()) or "none"
            raise UserError(f"no checkpoint {name} in {self.folder} (there: {there}), nor a file of that name")
        try:
            return read_checkpoint(path)
        except ValueError as error:
            raise UserError(f"checkpoint {path} cannot be read: {error}") from None

    def load_newest(self):
        paths = self.paths()
        for path in paths:
            try:
                state = read_checkpoint(path)
            except ValueError as error:
                print(f"checkpoint {path} cannot be read ({error}): taking the one before")
                continue
            if path.name != "last":
                print(f"using checkpoint {path} of iteration {state['iter']}")
            return state
        if paths:
            raise UserError(f"no checkpoint in {self.folder} can be read; to start afresh and lose them: "
                            "--ckpt_name none --overwrite True")
        return None


OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first bytes of what torch.save wrote before 1.6


def damage(path):
    """What is wrong with the bytes of a checkpoint file, as text; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            member = archive.testzip()
        return f"checksum of {member} is wrong" if member else None
    except Exception as error:  # a dozen types, for as many kinds of damage
        return str(error) or type(error).__name__


def read_checkpoint(path):
    """Loads one checkpoint file; ValueError says what is wrong with it. Never runs code from it.

    Those of 1Konny/Beta-VAE, which hold iter, model_states and optim_states under the same names,
    may be in torch's format from before zip files; their "arguments" are None.
    """
    with open(path, "rb") as file:
        before_zip = file.read(len(OLD_FORMAT)) == OLD_FORMAT
    if not before_zip and (what := damage(path)):
        raise ValueError(what)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not (isinstance(state, dict) and {"iter", "model_states", "optim_states"} <= state.keys()):
        raise ValueError("it was not written by this program")
    return {"arguments": None, **state}
