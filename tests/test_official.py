"""The official file of dSprites: read in place of the drawn set, checked, and written."""

import io
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import dataset
from conftest import ROOT
from prepare import dsprites, official
from utils import UserError


@pytest.fixture(scope="module")
def exported(dset_dir, tmp_path_factory):
    """A data folder with the exported set in the layout of the original repository, 3 GB unpacked."""
    path = tmp_path_factory.mktemp("official") / "dsprites-dataset" / official.NAME
    path.parent.mkdir()
    assert dataset.main(["dsprites", "--dset_dir", str(dset_dir), "--export", str(path)]) == 0
    return path


def test_the_export_has_the_official_keys_shapes_and_types_and_says_redrawn(exported):
    archive = np.load(exported, allow_pickle=True, encoding="latin1")  # as other projects' loaders do
    assert set(archive.files) == {"imgs", "latents_values", "latents_classes", "metadata"}
    values, classes, metadata = archive["latents_values"], archive["latents_classes"], archive["metadata"][()]
    assert (values.dtype, classes.dtype, values.shape, classes.shape) == (
        np.float64,
        np.int64,
        (737280, 6),
        (737280, 6),
    )
    assert "redrawn" in metadata["title"] and list(metadata["latents_sizes"]) == [1, 3, 6, 40, 32, 32]
    assert metadata["latents_names"] == ("color", "shape", "scale", "orientation", "posX", "posY")
    last = 737279
    assert list(classes[last]) == [0, 2, 5, 39, 31, 31] and list(classes[1]) == [0, 0, 0, 0, 0, 1]
    assert list(values[last]) == [1, 3, 1, 2 * np.pi, 1, 1] and list(values[0]) == [1, 1, 0.5, 0, 0, 0]
    assert (values[:, 5] == np.linspace(0, 1, 32)[classes[:, 5]]).all()
    with zipfile.ZipFile(exported) as file, file.open("imgs.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        assert np.lib.format.read_array_header_1_0(member) == ((737280, 64, 64), False, np.uint8)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_is_used_in_place_of_the_drawn_set_in_bounded_memory(exported, dset_dir):
    folder = exported.parent.parent
    code = (
        f"import dataset; assert dataset.main(['dsprites', '--dset_dir', {str(folder)!r}]) == 0\n"
        "print(open('/proc/self/status').read())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert int(re.search(r"VmHWM:\s*(\d+) kB", output)[1]) * 1024 < 900e6  # most memory it ever had
    assert "not the official file" in output
    assert not (folder / "dsprites_64x64_packed.npy").exists()  # nothing was drawn
    packed = dataset.load_packed(folder)
    assert packed.shape == (737280, 64, 8) and (packed[::1000] == dataset.load_drawn(dset_dir)[::1000]).all()
    assert len(dataset.DSprites(folder)) == dsprites.COUNT


def test_a_second_call_does_not_read_it_and_a_damaged_cache_is_made_again(exported, capsys, monkeypatch):
    folder = exported.parent.parent
    dataset.load_packed(folder)
    calls, pack = [], official.pack
    monkeypatch.setattr(official, "pack", lambda *args: calls.append(1) or pack(*args))
    dataset.load_packed(folder)
    assert not calls
    cache = folder / "dsprites_official_64x64_packed.npy"
    with open(cache, "r+b") as file:
        file.seek(100_000_000)
        file.write(b"x")
    dataset.load_packed(folder)
    assert calls and "packing" in capsys.readouterr().out


# Small files, for what is wrong with them.

SIZES = (1, 3, 2, 2, 4, 4)
N = 192


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Makes everything believe in a set of 192 images; returns a function that writes one to be packed."""
    monkeypatch.setattr(official, "SIZES", SIZES)
    monkeypatch.setattr(
        official, "ARRAYS", {key: ((N, *shape[1:]), dtype) for key, (shape, dtype) in official.ARRAYS.items()}
    )
    for module in (official, dsprites):
        monkeypatch.setattr(module, "COUNT", N)
    monkeypatch.setattr(official, "CHUNK", 50)

    def write(**changes):
        rng = np.random.default_rng(0)
        arrays = {
            "imgs": rng.integers(0, 2, (N, 64, 64), dtype=np.uint8),
            "latents_values": np.zeros((N, 6)),
            "latents_classes": np.stack(np.unravel_index(np.arange(N), SIZES), axis=1),
            "metadata": np.array({"x": 1}, dtype=object),
            **changes,
        }
        np.savez_compressed(tmp_path / official.NAME, **{k: v for k, v in arrays.items() if v is not None})
        return arrays

    return write


def test_a_small_file_is_packed_exactly(small, tmp_path, capsys):
    images = small()["imgs"]
    assert (np.unpackbits(dataset.load_packed(tmp_path), axis=-1) == images).all()
    data = dataset.DSprites(tmp_path)
    assert (data.batch(torch.arange(N))[:, 0].numpy() == images).all()
    (tmp_path / official.NAME).unlink()
    assert (np.unpackbits(dataset.load_packed(tmp_path), axis=-1) == images).all()  # the cache is enough


class Trap:
    """Pickled into a file, it leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_metadata_is_never_unpickled(small, tmp_path):
    trap = np.empty((), dtype=object)
    trap[()] = Trap(tmp_path / "trapped")
    small(metadata=trap)
    dataset.load_packed(tmp_path)
    assert not (tmp_path / "trapped").exists()
    np.load(tmp_path / official.NAME, allow_pickle=True)["metadata"]
    assert (tmp_path / "trapped").exists()  # so the trap works


CLASSES = np.stack(np.unravel_index(np.arange(N), SIZES), axis=1)


@pytest.mark.parametrize(
    "changes, text",
    [
        (dict(imgs=np.full((N, 64, 64), 255, np.uint8)), "other values than 0 and 1"),
        (dict(imgs=np.zeros((N, 64, 64), bool)), "imgs is bool"),
        (dict(imgs=np.zeros((N - 1, 64, 64), np.uint8)), "imgs is uint8 (191"),
        (dict(imgs=np.asfortranarray(np.zeros((N, 64, 64), np.uint8))), "order"),
        (dict(imgs=None), "imgs"),
        (dict(latents_classes=CLASSES[::-1].copy()), "whole grid in its order"),
        (dict(latents_classes=CLASSES.astype(np.int32)), "int32"),
        (dict(latents_values=np.zeros((N, 6), np.float32)), "latents_values is float32"),
        (dict(imgs=np.array([print] * 3, dtype=object)), "imgs is object"),
    ],
    ids=["grey", "bool", "short", "fortran", "missing", "order", "int32", "float32", "pickle"],
)
def test_another_content_is_refused_by_name_and_leaves_nothing(small, tmp_path, changes, text, capsys):
    small(**changes)
    assert dataset.main(["dsprites", "--dset_dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and text in err and str(tmp_path / official.NAME) in err
    assert [p.name for p in tmp_path.iterdir()] == [official.NAME]


def member(header, data=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + data


def test_damage_and_headers_that_lie_are_refused(small, tmp_path):
    arrays = small()
    path = tmp_path / official.NAME
    whole = path.read_bytes()
    right = {"descr": "|u1", "fortran_order": False, "shape": (N, 64, 64)}
    for change, text in (
        (member({**right, "shape": (2**40, 64, 64)}), "imgs is uint8 (1099511627776"),
        (member(right, bytes(N * 4096 - 1)), "cut short"),
        (member(right, bytes(N * 4096 + 1)), "longer than"),
        (b"hello", "cannot be read"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "npy format"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("imgs.npy", change)
            for key in ("latents_values", "latents_classes"):
                with archive.open(key + ".npy", "w") as file:
                    np.lib.format.write_array(file, arrays[key])
        with pytest.raises(UserError, match=text.replace("(", r"\(")):
            dataset.load_packed(tmp_path)
    for data in (whole[: len(whole) // 2], b"hello", whole[:5000] + b"xxxx" + whole[5004:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read"):
            dataset.load_packed(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [official.NAME]
