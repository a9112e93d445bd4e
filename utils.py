"""What a run needs besides training: flag types, seeds, and files that are never half-written."""

import argparse
import contextlib
import ctypes
import math
import os
import platform
import secrets
import signal
import subprocess
import sys
import threading
import traceback
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

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

    Whatever names the console cannot print are escaped. SIGTERM and SIGHUP end run() as an exception does, so that no
    half-written file is left.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: 2>&-
            setattr(sys, name, open(os.devnull, "w"))
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with ended_by_signals():
            return run() or 0
    except (UserError, OSError) as error:
        show_traceback(error)
        print(f"{prog}: {printable(str(error), keep=chr(10))}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        # torch's is a RuntimeError, and on the CPU no kind of its own
        if (
            not isinstance(error, (MemoryError, torch.OutOfMemoryError))
            and "allocate memory" not in f"{error}"
        ):
            raise
        show_traceback(error)
        print(f"{prog}: out of memory: a smaller --batch_size needs less", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: {interrupted}", file=sys.stderr)
        return 130


@contextlib.contextmanager
def ended_by_signals():
    """Within `with`: SIGTERM and SIGHUP raise SystemExit, so that files are closed or removed on the way out."""

    def end(number, frame):
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")):
            if number and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def set_up_device(cuda, threads=0):
    """Sets how torch computes in this process, and returns the device. threads: 0 is torch's choice.

    Trained networks make denormal numbers, over which a CPU's convolutions stumble: 1.3 times the time of a step.
    """
    torch.set_flush_denormal(True)  # before there are other threads: each inherits it when it is made
    if threads:
        torch.set_num_threads(threads)
    device = find_device(cuda)
    if device.type == "cuda":  # TensorFloat-32: products of 10-bit mantissas, sums in float32
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    return device


def all_finite(net, optim=None):
    """Whether the weights, and the averages that an optimiser keeps of them, are finite. Waits for the device."""
    averages = [each for state in optim.state.values() for each in state.values()] if optim else []
    return all(torch.as_tensor(each).isfinite().all() for each in [*net.parameters(), *averages])


def stream_seed(seed, stream, start=0):
    """A seed for one of a run's streams of random numbers, so that no two draw the same numbers."""
    key = (("model", "noise", "pictures", "restart").index(stream), start)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint32)[0])


def epoch_order(seed, epoch, n):
    """The order of n images in an epoch: int64 (n,), a function of its arguments alone."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


class Order:
    """Which images an iteration sees: each epoch is a new permutation of n, less its last partial batch."""

    def __init__(self, n, batch_size, seed, device):
        self.n, self.batch_size, self.seed, self.device = n, batch_size, seed, device
        self.batches, self.epoch = n // batch_size, None  # of an epoch; that whose permutation is at hand
        if not self.batches:
            raise UserError(f"{n} images are fewer than one batch of {batch_size}")

    def batch(self, step):
        """Indices (B,) of iteration step, from 1 on."""
        epoch, position = divmod(step - 1, self.batches)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, epoch_order(self.seed, epoch, self.n).to(self.device)
        return self.order[position * self.batch_size :][: self.batch_size]


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
        **{name: version(name) for name in ("torch", "numpy", "scikit-learn")},
    }


def machine(device, precision):
    """What the numbers of a run depend on besides its flags, for args.json, checkpoints and scores."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "versions": versions(),
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
