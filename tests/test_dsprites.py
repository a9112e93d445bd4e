"""dSprites, drawn or official: official frames come out exactly, and the array on disk is whole or made again."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from images import refusal
from prepare import dsprites, sets
from prepare.sets import find_dsprites

NAME = "dsprites_64x64_packed.npy"
NPZ = sets.SETS["dsprites"].places[0]


@pytest.mark.parametrize("kept", ["12 in the repository", "all 320"])
def test_official_frames_come_out_exactly(dset_dir, kept, request):
    if kept == "all 320":
        frames = np.load(request.getfixturevalue("shared") / "data" / "dsprites_frames.npz")
        images = np.packbits(frames["imgs"], axis=-1)
    else:
        frames = np.load(Path(__file__).parent / "dsprites_frames.npz")
        images = frames["imgs"]
    index = np.ravel_multi_index(frames["latents"].T, dsprites.FACTOR_SIZES)
    assert len(images) in (12, 320) and (find_dsprites(dset_dir)[0][index] == images).all()


@pytest.mark.slow
def test_a_damaged_array_is_drawn_again_and_another_drawing_is_not_used(
    dset_dir, tmp_path, monkeypatch, capsys
):
    damaged = bytearray((dset_dir / NAME).read_bytes())
    damaged[-9] ^= 1
    (tmp_path / NAME).write_bytes(damaged)
    find_dsprites(tmp_path)
    assert (tmp_path / NAME).read_bytes() == (dset_dir / NAME).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    (tmp_path / NAME).unlink()
    monkeypatch.setattr(dsprites, "render", lambda: np.zeros((9, 64, 8), np.uint8))
    assert "differs from the reference drawing" in refusal(capsys, "dsprites", "--dset_dir", tmp_path)


class Trap:
    """Pickled, it makes a file as it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("place", sets.SETS["dsprites"].places)
def test_the_official_file_is_packed_once_and_its_pickled_metadata_are_never_read(
    tmp_path, monkeypatch, capsys, place
):
    images = np.random.default_rng(0).integers(0, 2, (90, 64, 64), dtype=np.uint8)
    npz, marker = tmp_path / place, tmp_path / "trapped"
    npz.parent.mkdir(exist_ok=True)
    np.savez(npz, imgs=images, metadata=np.array([Trap(marker)]))
    data = npz.read_bytes()
    monkeypatch.setattr(dsprites, "MD5", hashlib.md5(data).hexdigest())
    packed, fingerprint = find_dsprites(tmp_path)
    assert (np.unpackbits(packed, axis=-1) == images).all() and "official" in fingerprint
    npz.unlink()
    capsys.readouterr()
    assert find_dsprites(tmp_path)[1] == fingerprint  # the packed set is enough
    assert "making" not in capsys.readouterr().out and not marker.exists()
    np.load(io.BytesIO(data), allow_pickle=True)["metadata"]
    assert marker.exists()  # so the trap works


def test_another_file_is_refused_by_name_and_leaves_nothing(tmp_path, capsys):
    np.savez(tmp_path / NPZ, imgs=np.zeros((9, 64, 64), np.uint8))
    error = refusal(capsys, "dsprites", "--dset_dir", tmp_path)
    assert str(tmp_path / NPZ) in error and "not the official file" in error
    assert [path.name for path in tmp_path.iterdir()] == [NPZ]
