import os
import subprocess
import sys
from pathlib import Path

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

    def command(self, name, *flags):
        return [sys.executable, ROOT / "main.py",
                *map(str, [*self.flags, "--viz_name", name, *flags])]

    def start(self, name, *flags):
        return subprocess.Popen(self.command(name, *flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True)

    def run(self, name, *flags, status=0):
        done = subprocess.run(self.command(name, *flags), capture_output=True, text=True, timeout=120)
        assert done.returncode == status, done.stdout + done.stderr
        return done

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
