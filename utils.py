"""What all programs share: types of flags, errors in one line, seeds, progress, and files that are never half-written."""

import argparse
import contextlib
import errno
import os
import platform
import secrets
import signal
import sys
import threading
import traceback
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

# Signals that end a program; the last two: terminal closed, SLURM's warning
ENDING = ("SIGTERM", "SIGHUP", "SIGUSR1")
ACTIVE = 0.01  # nats of KL above which a latent counts as active


class UserError(Exception):
    """Something that the user can put right; it is printed without a traceback."""


def printable(text, keep=""):
    """Text whose control characters, but for those to keep, are written as escapes: names may hold any."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def say(text):
    """Print a line for the user."""
    print(printable(text, keep="\n"), flush=True)


class Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line."""

    def parse_known_args(self, args=None, namespace=None):
        for text in sys.argv[1:] if args is None else args:
            if text.startswith("--") and text.endswith("=--"):  # argparse itself makes an empty list of it
                self.error(f"argument {text[:-3]}: expected a value, not --")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        self.exit(2, f"{self.prog}: {printable(message)}\n")


def show_traceback(error):
    """Prints where an error came from if BETA_VAE_DEBUG=1 is in the environment; else one line has to do."""
    if os.environ.get("BETA_VAE_DEBUG", "0") != "0":
        traceback.print_exception(error)


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run_cli(prog, interrupted, run):
    """Call run() and return an exit status; user errors and Ctrl-C print one line, no traceback.

    What the console cannot print is escaped. SIGTERM, SIGHUP and SIGUSR1 end run() as an exception does, so that no half-written
    file is left.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: 2>&-
            setattr(sys, name, open(os.devnull, "w"))
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with ended_by_signals():
            return run() or 0
    except KeyboardInterrupt:
        print(f"{prog}: {interrupted}", file=sys.stderr)
        return 130
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        message = printable(str(error), keep="\n")
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in message:
            message = "out of memory: a smaller --batch_size needs less"  # torch's own, on the CPU, is a RuntimeError
        elif isinstance(error, RuntimeError):
            raise
        show_traceback(error)
        print(f"{prog}: {message}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def ended_by_signals():
    """Within `with`: SIGTERM, SIGHUP and SIGUSR1 raise SystemExit, so that files are closed or removed on the way out."""

    def end(number, frame):
        raise SystemExit(128 + number)

    numbers = []
    if threading.current_thread() is threading.main_thread():  # the others cannot set handlers
        numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def boolean(text):
    """argparse type: true, yes, 1 or false, no, 0, in any case."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def file_name(text):
    """argparse type: the name of a file or folder, or of another machine; not empty."""
    if not text or b"\0" in os.fsencode(text):
        raise argparse.ArgumentTypeError(f"must be a valid file name, not {text!r}")
    return text


def count(text):
    """argparse type: a whole number, which may be written 1e6."""
    try:
        return int(text)
    except ValueError:
        if float(text).is_integer():
            return int(float(text))
        raise


def within(kind, least, below):
    """An argparse type: a number of that kind, count or float, in [least, below)."""

    def number(text):
        value = kind(text)
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"must be at least {least:g} and below {below:g}, not {text!r}")
        return value

    return number


def stream_seed(seed, stream, start=0):
    """A seed for one of a run's streams of random numbers, so that no two draw the same numbers."""
    key = (("model", "noise", "pictures").index(stream), start)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint32)[0])


def versions():
    """Versions of what the numbers of a run depend on."""
    names = ("torch", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def progress(iterable=None, delay=2, leave=False, **options):
    """tqdm that shows nothing of what is over in delay seconds; in a file it writes a line each 30 s."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(iterable, delay=delay, leave=leave, mininterval=interval, dynamic_ncols=True, **options)


@contextlib.contextmanager
def named(path):
    """Within `with`: an error of the system, such as a full disk, names the file, which a failing write does not."""
    try:
        yield
    except OSError as error:
        if error.filename:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def regular(path):
    """The path of a file to read; OSError if it is a pipe, which would be waited for, or the like."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path


@contextlib.contextmanager
def atomic_file(path, backup=None):
    """Atomic binary write: after a crash, path holds the old content or all of the new. Several may write it at once.

    backup: where the old content goes, if it is to be kept.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{path} names no file")
    # Nobody can guess the name, and "x" follows no link: none can be planted that leads to another file.
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(8)}.tmp")
    try:
        with named(path), open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if backup:
            os.replace(path, backup)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
