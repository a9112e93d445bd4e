"""dSprites, drawn or official: official frames come out exactly, and the array on disk is whole or made again."""

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from helpers import ROOT
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
    monkeypatch.setattr(dsprites, "render", lambda: np.zeros((737280, 64, 8), np.uint8))
    assert "differs from the reference drawing" in refusal(capsys, "dsprites", "--dset_dir", tmp_path)


# The official file.


@pytest.mark.slow
def test_the_official_file_is_packed_once_in_bounded_memory(dset_dir, tmp_path, monkeypatch, capsys):
    # One with its keys and sizes, 3 GB unpacked: the drawn set with its first pixel lit.
    packed = np.array(find_dsprites(dset_dir)[0])
    packed[0, 0, 0] |= 128
    with zipfile.ZipFile(tmp_path / NPZ, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("imgs.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (737280, 64, 64)}
            np.lib.format.write_array_header_1_0(member, header)
            for some in np.array_split(packed, 180):
                member.write(np.unpackbits(some, axis=-1))
    md5 = hashlib.md5((tmp_path / NPZ).read_bytes()).hexdigest()
    code = (
        "from prepare import dsprites; from prepare.__main__ import main\n"
        f"dsprites.MD5 = {md5!r}; assert main(['dsprites', '--dset_dir', {str(tmp_path)!r}]) == 0\n"
        "print(open('/proc/self/status').read())"
    )
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert int(re.search(r"VmHWM:\s*(\d+) kB", output)[1]) * 1024 < 1e9  # most memory it ever had
    found, fingerprint = find_dsprites(tmp_path)
    assert (found == packed).all() and "making" not in capsys.readouterr().out
    assert "official" in fingerprint and fingerprint != find_dsprites(dset_dir)[1]
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz", ".npy", ".json"}  # nothing was drawn
    (tmp_path / NPZ).unlink()
    assert find_dsprites(tmp_path)[1] == fingerprint  # the packed set is enough


@pytest.mark.parametrize("place", ["", "dsprites-dataset"])
def test_another_file_is_refused_by_name_and_leaves_nothing(tmp_path, place, capsys):
    npz = tmp_path / place / NPZ
    npz.parent.mkdir(exist_ok=True)
    np.savez(npz, imgs=np.zeros((9, 64, 64), np.uint8))
    error = refusal(capsys, "dsprites", "--dset_dir", tmp_path)
    assert str(npz) in error and "not the official file" in error
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob(".*"))


def test_pickled_metadata_are_never_read(tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trapped"), "w")

    np.savez(tmp_path / NPZ, imgs=np.ones((360, 64, 64), np.uint8), metadata=np.array([Trap()]))
    data = (tmp_path / NPZ).read_bytes()
    monkeypatch.setattr(dsprites, "MD5", hashlib.md5(data).hexdigest())
    monkeypatch.setattr(dsprites, "PACKED", (360, 64, 8))
    assert (dsprites.read_official(tmp_path / NPZ) == 255).all() and not (tmp_path / "trapped").exists()
    np.load(io.BytesIO(data), allow_pickle=True)["metadata"]
    assert (tmp_path / "trapped").exists()  # so the trap works
