import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def same(a, b):
    """Whether two states are equal: their tensors in type, shape and every byte, and without NaN."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b) and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def wait_for(path, process):
    """Waits until a process that runs has made path."""
    start = time.time()
    while not path.exists():
        assert process.poll() is None and time.time() - start < 60
        time.sleep(0.01)


@pytest.fixture(scope="session")
def dset_dir(tmp_path_factory):
    """A data folder with the drawn dSprites in it."""
    import dataset

    folder = tmp_path_factory.mktemp("data")
    dataset.load_packed(folder)
    return folder


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    """Pictures name latents from 300 images, which saves two seconds a picture."""
    monkeypatch.setattr("evaluation.metrics.SAMPLE", 300)


class Runs:
    """Starts main.py with its folders in a temporary place; small steps unless told otherwise."""

    def __init__(self, folder, dset_dir):
        self.folder = folder
        self.flags = [
            "--dset_dir",
            dset_dir,
            "--output_dir",
            folder / "out",
            "--ckpt_dir",
            folder / "ckpt",
            "--model",
            "B",
            "--objective",
            "B",
            "--batch_size",
            8,
            "--max_iter",
            40,
            "--gather_step",
            8,
            "--display_step",
            20,
            "--save_step",
            10,
            "--threads",
            1,
            "--viz_on",
            False,
        ]

    def start(self, name, *flags):
        """Starts a run in a process of its own."""
        command = [sys.executable, ROOT / "main.py", *self.flags, "--viz_name", name, *flags]
        return subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, name, *flags, status=0):
        """Runs to the end, in this process, which saves the seconds that imports take."""
        import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            returned = main.main([*map(str, self.flags), "--viz_name", name, *map(str, flags)])
        assert returned == status, out.getvalue() + err.getvalue()
        return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())

    def outputs(self, name):
        return self.folder / "out" / name

    def checkpoint(self, name, which="last"):
        return self.folder / "ckpt" / name / which


@pytest.fixture
def runs(tmp_path, dset_dir):
    return Runs(tmp_path, dset_dir)


@pytest.fixture(scope="session")
def shared():
    """A folder of larger data that does not come with the repository; without it, a skip."""
    if "BETA_VAE_SHARED" not in os.environ:
        pytest.skip("BETA_VAE_SHARED names no folder")
    return Path(os.environ["BETA_VAE_SHARED"])
