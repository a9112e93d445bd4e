"""What several tests share: runs of main.py in a temporary place, and comparisons to the byte."""

import contextlib
import io
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parent.parent

SMALL = (
    "--model B --objective B --batch_size 8 --max_iter 40 --gather_step 8 --display_step 20 --save_step 10 "
    "--threads 1 --viz_on False"
)


def split(flags):
    """Flags as texts: each may be one flag, a value, or several flags in one text, "--seed 2 --lr 1"."""
    texts = map(str, flags)
    return [part for text in texts for part in (text.split() if text.startswith("--") else [text])]


def same(a, b):
    """Whether two states are equal, their tensors in type, shape and every byte."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(runs, one, other):
    """Checkpoints (but for names and folders), log and pictures of two runs are equal to the byte."""
    from run.checkpoint import read_checkpoint

    states = [{**read_checkpoint(runs.checkpoint(name)), "arguments": 0} for name in (one, other)]
    for key in states[0].keys() | states[1].keys():
        assert same(states[0][key], states[1][key]), key
    files = [
        {
            path.relative_to(runs.outputs(name)): path.read_bytes()
            for path in runs.outputs(name).rglob("*")
            if path.suffix in (".csv", ".png", ".gif")
        }
        for name in (one, other)
    ]
    assert files[0].keys() == files[1].keys()
    assert [path for path in files[0] if files[0][path] != files[1][path]] == []


class Code:
    """Pickled, it makes a file as it is loaded: a marker that code was run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def wait_for(path, process):
    """Waits until a process that runs has made path."""
    start = time.time()
    while not path.exists():
        assert process.poll() is None and time.time() - start < 300
        time.sleep(0.01)


class Runs:
    """Starts main.py with its folders in a temporary place; small steps unless told otherwise."""

    def __init__(self, folder, dset_dir):
        self.folder = folder
        self.flags = [*SMALL.split(), "--dset_dir", str(dset_dir)]
        self.flags += ["--output_dir", str(folder / "out"), "--ckpt_dir", str(folder / "ckpt")]

    def command(self, name, *flags):
        return [*self.flags, "--viz_name", name, *split(flags)]

    def start(self, name, *flags, **options):
        """Starts a run in a process of its own."""
        command = [sys.executable, str(ROOT / "main.py"), *self.command(name, *flags)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen(command, **pipes, **options)

    def run(self, name, *flags, status=0):
        """Runs to the end, in this process, which saves the seconds that imports take."""
        import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            returned = main.main(self.command(name, *flags))
        assert returned == status, out.getvalue() + err.getvalue()
        return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())

    def refused(self, name, *flags):
        """The one line in which a run that cannot be ends, with status 1."""
        lines = self.run(name, *flags, status=1).stderr.splitlines()
        errors = [line for line in lines if line and "%|" not in line]  # but for the progress bar
        assert len(errors) == 1 and errors[0].startswith("main.py: "), lines
        return errors[0]

    def solver(self, name, *flags):
        """The Solver that main.py would make."""
        import main

        return main.Solver(main.parse(self.command(name, *flags)))

    def outputs(self, name):
        return self.folder / "out" / name

    def checkpoint(self, name, which="last"):
        return self.folder / "ckpt" / name / which

    def checkpoints(self, name):
        """Names of the checkpoints that are there."""
        return {path.name for path in self.checkpoint(name).parent.iterdir()} - {"lock"}
