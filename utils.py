"""What all programs share: errors in one line, signals, types of flags, seeds, progress, and files never half-written."""

import argparse
import contextlib
import difflib
import inspect
import os
import secrets
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

# Ctrl-C, kill, terminal closed, SLURM's and submitit's warnings, limit of CPU time
ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
ACTIVE = 0.01  # nats of KL above which a latent counts as active
SHOWN = 0.1  # nats of KL above which it is shown, named after a factor, and its total effect counts


class UserError(Exception):
    """An error that the user can put right; it is printed without a traceback."""


def run_cli(prog, interrupted, run):
    """Call run() and return an exit status; user errors and Ctrl-C print one line, no traceback.

    SIGTERM and the like end run() as an exception does, so that no half-written file is left.
    """
    try:
        with handle_signals(lambda number, frame: sys.exit(128 + number), but="SIGINT"):
            return run() or 0
    except KeyboardInterrupt:
        print(f"{prog}: {interrupted}", file=sys.stderr)
        return 130
    except (MemoryError, torch.OutOfMemoryError):
        print(f"{prog}: out of memory: a smaller --batch_size needs less", file=sys.stderr)
        return 1
    except (UserError, OSError) as error:
        file = getattr(error, "filename", None)
        print(f"{prog}: {f'{file}: {error.strerror}' if file else error}", file=sys.stderr)
        return 1


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def bind(function, args):
    """Fill in the keyword-only arguments of function from the flags of the same name; one with a default needs no flag."""
    names = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    if missing := names - vars(args).keys() - (function.__kwdefaults__ or {}).keys():
        raise UserError(f"{function.__name__} needs the flag --{min(missing)}, which main.py does not have")
    return partial(function, **{name: value for name, value in vars(args).items() if name in names})


# Signals.


@contextlib.contextmanager
def handle_signals(handler, but=None):
    """Within `with`, call handler(number, frame) for the signals ENDING, except the one named by but.

    What the launcher ignores stays ignored (nohup), but for SIGINT, which shells ignore in the background. Outside the
    main thread, where Python has no signals, this does nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in ENDING if name != but):
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class StopSignal:
    """Keep the first signal in .received; let a second one end the process.

    What comes within REPEAT seconds is no second one: launchers may send one to a process and to its group.
    """

    REPEAT = 0.5
    received = None

    def __call__(self, number, frame):
        if self.received is None:
            self.received, self.at = number, time.monotonic()
        elif time.monotonic() > self.at + self.REPEAT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


# Flags.


class Parser(argparse.ArgumentParser):
    """Report a wrong flag in one line, with the nearest flag that there is."""

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            nearest = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            self.error(
                f"unknown argument {unknown[0]}" + (f", did you mean {nearest[0]}?" if nearest else "")
            )
        return args

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def boolean(text):
    """argparse type: true, yes, 1 or false, no, 0, in any case."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def file_name(text):
    """argparse type: the name of a file or folder, not empty; ~ is the home folder."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return os.path.expanduser(text)


def count(text):
    """argparse type: a whole number, which may be written 1e6."""
    value = float(text)
    if not value.is_integer():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text) if text.isdecimal() else int(value)


def within(kind, least, below):
    """An argparse type: a number of that kind, count or float, in [least, below)."""

    def number(text):
        value = kind(text)
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"must be at least {least:g} and below {below:g}, not {text!r}")
        return value

    return number


# Seeds, progress, files.


def stream_seed(seed, stream, start=0):
    """A seed for one of a run's streams of random numbers, so that no two draw the same numbers."""
    key = (("model", "noise", "pictures").index(stream), start)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint32)[0])


def progress(iterable=None, delay=2, leave=False, **options):
    """tqdm that shows nothing of what is over in delay seconds; in a file it writes a line each 30 s."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(iterable, delay=delay, leave=leave, mininterval=interval, dynamic_ncols=True, **options)


@contextlib.contextmanager
def atomic_file(path):
    """Atomic binary write: after a crash, path holds the old content or all of the new. Several may write it at once."""
    path = Path(path)
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
