"""What a run needs besides training: flag types, signals, and files that are never half-written."""

import argparse
import contextlib
import csv
import ctypes
import glob
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import time
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
        message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        self.exit(2, f"{self.prog}: {message}\n")


def exit_status(prog, interrupted, run):
    """What a program returns: of run(), None counting as 0; errors that the user can mend, and Ctrl-C, are one line."""
    try:
        return run() or 0
    except (UserError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    # torch's is a RuntimeError, and on the CPU no kind of its own
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(
            error
        ):
            raise
        print(f"{prog}: out of memory: a smaller --batch_size needs less", file=sys.stderr)
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
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")},
    }


def git_commit():
    """Commit of the code that runs, with '+changes' if files differ from it; None without git."""

    def git(*args):
        return subprocess.run(
            ["git", *args],
            cwd=Path(__file__).resolve().parent,
            text=True,
            capture_output=True,
            check=True,
            timeout=10,
        ).stdout.strip()

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
    """Within `with`: the first Ctrl-C or SIGTERM is kept in .received, a second ends the process.

    Launchers may send one twice, to a process and to its group, and Linux sends the signal of a parent's death once
    for each thread of the parent: what comes within REPEAT seconds is no second one.
    """

    REPEAT = 0.5

    def __enter__(self):
        self.received = None
        self.handlers = {
            number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def receive(self, number, frame):
        if self.received is None:
            self.received, self.at = number, time.monotonic()
        elif time.monotonic() > self.at + self.REPEAT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def named(path):
    """Within `with`: an error of the system, such as a full disk, names the file, which a failing write does not."""
    try:
        yield
    except OSError as error:
        if error.filename:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


@contextlib.contextmanager
def atomic_file(path, backup=None, shared=False):
    """Opens path to be written, and read, in bytes: it holds the old content or all of the new, also after a crash.

    backup: where the old content goes, if it is to be kept. shared: other processes may write path at
    once; what those that were killed have left is removed.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{path} names no file")
    temporary = path.with_name(
        f".{path.name}{f'.{socket.gethostname()}.{os.getpid()}' if shared else ''}.tmp"
    )
    if shared:
        remove_leftovers(path)
    try:
        with named(path), open_temporary(temporary) if shared else open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not fcntl:
                file.close()  # Windows renames no open file
            if backup:
                os.replace(path, backup)
            os.replace(temporary, path)  # while it is open, and so locked
    finally:
        temporary.unlink(missing_ok=True)


def open_temporary(path):
    """Opens a file to write and locks it, which tells remove_leftovers that it is in use."""
    while True:
        file = open(path, "w+b")
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():  # not taken for a leftover just before the lock
            return file
        file.close()


def remove_leftovers(path):
    """Removes what writers of a shared file that were killed have left; that of one which is running is locked."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), open(leftover, "rb") as file:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink(missing_ok=True)


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
    raise UserError(
        f"{folder} is in use: {lock_holder(folder)} is training there; another run needs another --viz_name"
    )


def lock_holder(folder):
    """Which other process is training in a run's folder, as "pid 123 on host"; None if none is. Changes nothing."""
    try:
        with open(Path(folder) / LOCK) as file:
            return (
                None if try_lock(file, exclusive=False) else file.read() or "a process that has just started"
            )
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

    def open(self, last_iter, keep=False):
        """Opens the file to append after last_iter: later rows go.

        keep: leave the whole of it as log.csv.old, unless what is there already is longer.
        """
        rows, old = [self.columns], self.path.with_name(self.path.name + ".old")
        if (
            keep
            and self.path.exists()
            and not (old.exists() and old.stat().st_size > self.path.stat().st_size)
        ):
            with atomic_file(old) as file:
                file.write(self.path.read_bytes())
        if last_iter and self.path.exists():
            # no table: no rows
            with open(self.path, newline="", errors="replace") as file, contextlib.suppress(csv.Error):
                rows += [
                    row
                    for row in list(csv.reader(file))[1:]
                    if len(row) == len(self.columns) and row[0].isdecimal() and int(row[0]) <= last_iter
                ]
        with atomic_file(self.path) as file:
            file.write("".join(",".join(row) + "\n" for row in rows).encode())
        self.file = open(self.path, "a+", newline="")

    def append(self, iteration, values):
        """Adds a row; returns its values as a reader of the file will see them."""
        texts = ["" if value is None else f"{value:.6g}" for value in values]
        with named(self.path):
            self.file.write(",".join([str(iteration), *texts]) + "\n")
            self.file.flush()
        return [float(text) if text else None for text in texts]

    def flush_to_disk(self):
        if not self.path.exists():  # its folder was removed; the open file still has it all
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file.seek(0)
            with atomic_file(self.path) as file:
                file.write(self.file.read().encode())
            self.file.close()
            self.file = open(self.path, "a+", newline="")
            tqdm.write(f"{self.path} was removed: written again")
        with named(self.path):
            os.fsync(self.file.fileno())

    def close(self):
        if self.file:
            self.file.close()


def read_log(path):
    """Reads log.csv as {column: list of floats}; what is empty there is NaN."""
    try:
        with open(path, newline="") as file:
            header, *rows = csv.reader(file)
        rows = [row for row in rows if len(row) == len(header)]  # a run may be writing the last one
        return {
            name: [float(row[i]) if row[i] else math.nan for row in rows] for i, name in enumerate(header)
        }
    except (ValueError, csv.Error):  # empty, no text or no numbers
        raise UserError(
            f"{path} is damaged: it is no table of numbers; without it, all but the curves can be drawn"
        ) from None
