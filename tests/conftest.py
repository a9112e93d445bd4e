import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def dset_dir(tmp_path_factory):
    """A data folder with the drawn dSprites in it."""
    import dataset
    folder = tmp_path_factory.mktemp("data")
    dataset.load_packed(folder)
    return folder


class Runs:
    """Starts main.py with its folders in a temporary place; small steps unless told otherwise."""

    def __init__(self, folder, dset_dir):
        self.folder = folder
        self.flags = ["--dset_dir", dset_dir, "--output_dir", folder / "out", "--ckpt_dir", folder / "ckpt",
                      "--model", "B", "--objective", "B", "--batch_size", 8, "--max_iter", 40, "--gather_step", 8,
                      "--display_step", 20, "--save_step", 10, "--threads", 1, "--viz_on", False]

    def start(self, name, *flags):
        """Starts a run in a process of its own."""
        command = [sys.executable, ROOT / "main.py", *self.flags, "--viz_name", name, *flags]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

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
