"""What a run needs besides training: flag types, seeds, and files that are never half-written."""

import argparse
import contextlib
import ctypes
import glob
import math
import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # no such locks on Windows
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


def stream_seed(seed, stream, start=0):
    """A seed for one of a run's streams of random numbers, so that no two draw the same numbers."""
    key = (("model", "noise", "pictures", "restart").index(stream), start)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint32)[0])


def epoch_order(seed, epoch, n):
    """The order of n images in an epoch: int64 (n,), a function of its arguments alone."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


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
