"""dSprites, drawn or official: official frames come out exactly, and the array is made once."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from helpers import Code
from images import refusal
from prepare import dsprites, sets
from prepare.sets import find_dsprites

PLACES = sets.SETS["dsprites"].places


@pytest.mark.parametrize("kept", ["12 in the repository", "all 320"])
def test_official_frames_come_out_exactly(dset_dir, kept, request):
    if kept == "all 320":
        frames = np.load(request.getfixturevalue("shared") / "data" / "dsprites_frames.npz")
        images = np.packbits(frames["imgs"], axis=-1)
    else:
        frames = np.load(Path(__file__).parent / "dsprites_frames.npz")
        images = frames["imgs"]
    index = np.ravel_multi_index(frames["latents"].T, dsprites.FACTOR_SIZES)
    packed, fingerprint = find_dsprites(dset_dir)
    assert len(images) in (12, 320) and (packed[index] == images).all()
    assert fingerprint == "dSprites, drawn, checksum f6f30369"  # as checkpoints know it


@pytest.mark.parametrize("place", PLACES)
def test_the_official_file_is_packed_once_and_its_pickled_metadata_are_never_read(
    tmp_path, monkeypatch, capsys, place
):
    images = np.random.default_rng(0).integers(0, 2, (90, 64, 64), dtype=np.uint8)
    npz, marker = tmp_path / place, tmp_path / "marker"
    npz.parent.mkdir(exist_ok=True)
    np.savez(npz, imgs=images, metadata=np.array([Code(marker)]))
    data = npz.read_bytes()
    monkeypatch.setattr(dsprites, "MD5", hashlib.md5(data).hexdigest())
    packed, fingerprint = find_dsprites(tmp_path)
    assert (np.unpackbits(packed, axis=-1) == images).all() and "official" in fingerprint
    npz.unlink()
    capsys.readouterr()
    assert find_dsprites(tmp_path)[1] == fingerprint  # the packed set is enough
    assert "making" not in capsys.readouterr().out and not marker.exists()
    np.load(io.BytesIO(data), allow_pickle=True)["metadata"]
    assert marker.exists()  # it would have run code


def test_another_file_is_refused_by_name_and_leaves_nothing(tmp_path, capsys):
    np.savez(tmp_path / PLACES[0], imgs=np.zeros((9, 64, 64), np.uint8))
    error = refusal(capsys, "dsprites", "--dset_dir", tmp_path)
    assert str(tmp_path / PLACES[0]) in error and "not the official file" in error
    assert [path.name for path in tmp_path.iterdir()] == [PLACES[0]]
