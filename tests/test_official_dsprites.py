"""The official file of dSprites, used in place of the drawn set."""

import io
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from helpers import ROOT
from images import refusal
from prepare import official_dsprites, sets
from prepare.sets import find_dsprites

NPZ = sets.SETS["dsprites"].places[0]


@pytest.fixture(scope="module")
def official(dset_dir, tmp_path_factory):
    """A file with the official keys, 3 GB unpacked: the drawn set with its first pixel lit, and its md5."""
    folder = tmp_path_factory.mktemp("official")
    packed = np.array(find_dsprites(dset_dir)[0])
    packed[0, 0, 0] |= 128
    with zipfile.ZipFile(folder / NPZ, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("imgs.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (737280, 64, 64)}
            np.lib.format.write_array_header_1_0(member, header)
            for start in range(0, 737280, 4096):
                member.write(np.unpackbits(packed[start : start + 4096], axis=-1))
    md5 = official_dsprites.hashlib.md5((folder / NPZ).read_bytes()).hexdigest()
    return folder, packed, md5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_is_packed_once_in_bounded_memory_and_has_a_fingerprint_of_its_own(
    official, dset_dir, monkeypatch, capsys
):
    folder, packed, md5 = official
    code = (
        "from prepare import official_dsprites; from prepare.__main__ import main\n"
        f"official_dsprites.MD5 = {md5!r}; assert main(['dsprites', '--dset_dir', {str(folder)!r}]) == 0\n"
        "print(open('/proc/self/status').read())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert int(re.search(r"VmHWM:\s*(\d+) kB", output)[1]) * 1024 < 700e6  # most memory it ever had
    found, fingerprint = find_dsprites(folder)
    assert (found == packed).all() and "official" in fingerprint
    assert fingerprint != find_dsprites(dset_dir)[1] and "packing" not in capsys.readouterr().out
    assert {path.suffix for path in folder.iterdir()} == {".npz", ".npy", ".json"}  # nothing was drawn
    with open(folder / "dsprites_official_64x64_packed.npy", "r+b") as file:  # damaged: packed again
        file.seek(100_000_000)
        file.write(b"x")
    monkeypatch.setattr(official_dsprites, "MD5", md5)
    assert (find_dsprites(folder)[0] == packed).all() and "packing" in capsys.readouterr().out
    (folder / NPZ).unlink()
    assert find_dsprites(folder)[1] == fingerprint  # the packed set is enough


@pytest.mark.parametrize("place", ["", "dsprites-dataset", "dsprites", "elsewhere"])
def test_another_file_is_refused_by_name_and_leaves_nothing(tmp_path, place, capsys):
    npz = tmp_path / place / NPZ
    npz.parent.mkdir(exist_ok=True)
    np.savez(npz, imgs=np.zeros((9, 64, 64), np.uint8))
    flags = ["--archive", npz] if place == "elsewhere" else []
    error = refusal(capsys, "dsprites", "--dset_dir", tmp_path, *flags)
    assert str(npz) in error and "not the official file" in error and "--download" in error
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob(".*"))


def test_pickled_metadata_are_never_read(tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trapped"), "w")

    trap = np.empty((), dtype=object)
    trap[()] = Trap()
    np.savez(tmp_path / NPZ, imgs=np.ones((5, 64, 64), np.uint8), metadata=trap)
    monkeypatch.setattr(official_dsprites, "COUNT", 5)
    monkeypatch.setattr(
        official_dsprites, "MD5", official_dsprites.hashlib.md5((tmp_path / NPZ).read_bytes()).hexdigest()
    )
    official_dsprites.pack(tmp_path / NPZ, tmp_path / "packed.npy", "")
    assert (np.load(tmp_path / "packed.npy") == 255).all() and not (tmp_path / "trapped").exists()
    np.load(io.BytesIO((tmp_path / NPZ).read_bytes()), allow_pickle=True)["metadata"]
    assert (tmp_path / "trapped").exists()  # so the trap works
