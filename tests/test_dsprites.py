"""The drawn dSprites: official frames come out exactly, and the array on disk is whole or drawn again."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import ROOT, wait_for
from images import refusal
from prepare import dsprites, sets
from prepare.sets import find_dsprites

NAME = "dsprites_64x64_packed.npy"


def wrong_frames(packed, imgs, latents):
    index = np.ravel_multi_index(latents.T, dsprites.FACTOR_SIZES)
    return (packed[index] != imgs).any(axis=(1, 2)).sum()


def test_some_official_frames_come_out_exactly(dset_dir):
    frames = np.load(Path(__file__).parent / "dsprites_frames.npz")
    assert len(frames["imgs"]) == 12
    assert wrong_frames(find_dsprites(dset_dir)[0], frames["imgs"], frames["latents"]) == 0


def test_all_official_frames_come_out_exactly(dset_dir, shared):
    frames = np.load(shared / "data" / "dsprites_frames.npz")
    packed = np.packbits(frames["imgs"], axis=-1)
    assert len(packed) == 320
    assert wrong_frames(find_dsprites(dset_dir)[0], packed, frames["latents"]) == 0


def test_orientation_0_and_39_are_one_picture_and_the_set_has_its_size(dset_dir):
    packed, fingerprint = find_dsprites(dset_dir)
    assert packed.shape == (737280, 64, 8) and packed.dtype == np.uint8
    grid = packed.reshape(*dsprites.FACTOR_SIZES, 64, 8)
    assert (grid[:, :, 0] == grid[:, :, 39]).all()
    assert "drawn" in fingerprint and "f6f30369" in fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped bit", "cut short"])
def test_a_damaged_array_is_drawn_again(dset_dir, tmp_path, damage, capsys):
    whole = (dset_dir / NAME).read_bytes()
    path, middle = tmp_path / NAME, len(whole) // 2
    path.write_bytes(
        {
            "flipped bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "cut short": whole[:middle],
        }[damage]
    )
    find_dsprites(tmp_path)
    assert "damaged" in capsys.readouterr().out
    assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == [NAME]


def test_an_array_that_cannot_be_read_is_reported_as_such(tmp_path, capsys):
    (tmp_path / NAME).mkdir()  # the one such error that root meets, too
    line = refusal(capsys, "dsprites", "--dset_dir", tmp_path)
    assert "Is a directory" in line and NAME in line and "write" not in line


def test_another_drawing_than_the_reference_is_not_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sets.dsprites, "render", lambda: np.zeros((737280, 64, 8), np.uint8))
    assert "differs from the reference drawing" in refusal(capsys, "dsprites", "--dset_dir", tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_signal_while_the_set_is_written_leaves_no_file(tmp_path):
    code = (
        "import sys, time, numpy as np, pathlib\n"
        "from prepare import dsprites; from prepare.__main__ import main\n"
        "def draw():\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'drawing').touch(); time.sleep(60)\n"
        "dsprites.render = draw\n"
        f"sys.exit(main(['dsprites', '--dset_dir', {str(tmp_path / 'data')!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(tmp_path / "drawing", process)
    assert len(list((tmp_path / "data").iterdir())) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert list((tmp_path / "data").iterdir()) == []
