import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import Runs  # noqa: E402

# nohup, and shells for what they start in the background, ignore these, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def dset_dir(tmp_path_factory):
    """A data folder with the drawn dSprites in it."""
    from prepare.sets import find_dsprites

    folder = tmp_path_factory.mktemp("data")
    find_dsprites(folder)
    return folder


@pytest.fixture(autouse=True)
def small_sample():
    """Pictures name latents from 300 images, which saves two seconds a picture."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo the others
        patch.setattr("evaluation.evaluator.SAMPLE", 300)
        yield


@pytest.fixture
def thumbnails(monkeypatch):
    """Pictures with images 16 pixels wide, which take a few tenths of a second where others take four."""
    from viz import pictures

    grid = pictures.grid
    monkeypatch.setattr(pictures, "grid", lambda rows, foot, tile, **options: grid(rows, foot, 16, **options))


@pytest.fixture
def few_points(monkeypatch):
    """Metrics with a tenth of the points of classifiers and three rounds of boosting."""
    from evaluation import metrics

    monkeypatch.setitem(metrics.BOOSTING, "n_estimators", 3)
    for metric in (metrics.higgins, metrics.factor_vae, metrics.dci, metrics.sap):
        monkeypatch.setattr(metric, "__kwdefaults__", metric.__kwdefaults__ | dict(train=1000, test=500))


@pytest.fixture
def runs(tmp_path, dset_dir, thumbnails):
    return Runs(tmp_path, dset_dir)


@pytest.fixture(scope="session")
def shared():
    """A folder of larger data that does not come with the repository; without it, a skip."""
    if "BETA_VAE_SHARED" not in os.environ:
        pytest.skip("BETA_VAE_SHARED names no folder")
    return Path(os.environ["BETA_VAE_SHARED"])


@pytest.fixture(autouse=True)
def denormals():
    """A Solver flushes denormal numbers in its process, over which other libraries' tests stumble."""
    import torch

    yield
    torch.set_flush_denormal(False)
