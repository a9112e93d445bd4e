"""The prepared array: made again when it must be, always whole, whatever ends the preparation."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import dataset
import prepare.images
from conftest import ROOT
from images import FILES, encoded, photo, prepared, refusal, write_folder, write_zip
from utils import UserError


def test_a_second_call_is_instant_and_what_changed_is_made_again(tmp_path, capsys, monkeypatch):
    folder = write_folder(
        tmp_path / "CelebA", {f"img_align_celeba/{i}.jpg": encoded(photo(i)) for i in range(3)}
    )
    command = ["celeba", "--dset_dir", str(tmp_path)]

    def again(*flags):
        assert dataset.main([*command, *flags]) == 0
        return capsys.readouterr().out

    assert "preparing 3 images" in again()
    assert "preparing" not in (output := again()) and "3 images, colour, whole frames" in output
    assert "made with crop 0" in (output := again("--crop", "148")) and "centre 148" in output
    assert "preparing" not in again("--crop", "148")
    assert "made with crop 148" in again("--channels", "1")
    (folder / "img_align_celeba" / "3.jpg").write_bytes(encoded(photo(3)))
    assert "has changed" in (output := again("--channels", "1")) and "4 images, grey" in output
    shutil.rmtree(folder)  # the prepared set is all that training needs
    assert "preparing" not in again("--channels", "1")
    assert "its images are gone" in (tmp_path, dataset.main(command), capsys.readouterr().err)[2]


def test_it_is_made_again_from_where_it_came(tmp_path):
    write_zip(tmp_path / "img_align_celeba.zip", FILES)  # where it is looked for
    archive = write_zip(tmp_path / "other.zip", {"a.jpg": encoded(photo())})
    for flags in (["--archive", str(archive)], ["--crop", "148"]):
        assert dataset.main(["celeba", "--dset_dir", str(tmp_path), *flags]) == 0
        assert read(tmp_path / "celeba_64x64.json")["source"] == str(archive.resolve())


@pytest.mark.parametrize("damage", ["version", "no manifest", "manifest", "cut short", "pickle"])
def test_a_cache_of_another_version_or_not_whole_is_made_again(tmp_path, damage, capsys):
    source = write_zip(tmp_path / "img_align_celeba.zip", FILES)
    images, manifest = prepared(tmp_path, None)
    path, beside = tmp_path / "celeba_64x64.npy", tmp_path / "celeba_64x64.json"
    {
        "version": lambda: beside.write_text(json.dumps({**manifest, "version": 0})),
        "no manifest": beside.unlink,
        "manifest": lambda: beside.write_text("[1"),
        "cut short": lambda: path.write_bytes(path.read_bytes()[:-1]),
        "pickle": lambda: np.save(path, np.array([print], dtype=object)),
    }[damage]()
    assert (prepared(tmp_path, None)[0] == images).all()
    assert "another version: making it again" in capsys.readouterr().out
    assert read(beside) == manifest
    source.unlink()
    beside.write_text(json.dumps({**manifest, "version": 0}))
    with pytest.raises(UserError, match="another version, and its images are gone: no CelebA in"):
        prepared(tmp_path, None)


def read(path):
    return json.loads(path.read_text())


def slow_folder(path):
    """A folder of 600 images that take some seconds to decode."""
    write_folder(path, {"0.png": encoded(Image.effect_noise((1500, 1500), 50), "PNG", compress_level=1)})
    for i in range(1, 600):
        os.link(path / "0.png", path / f"{i}.png")
    return path


def children(pid):
    return [int(each) for each in (ROOT / f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("script", ["dataset.py", "main.py"])
def test_an_interrupted_preparation_leaves_no_cache_and_no_process_and_starts_again(tmp_path, number, script):
    if script == "main.py" and number != signal.SIGINT:
        pytest.skip("as dataset.py")
    folder = slow_folder(tmp_path / "in")
    flags = {
        "dataset.py": ["folder"],
        "main.py": ["--dataset", "folder", "--output_dir", tmp_path / "o", "--ckpt_dir", tmp_path / "c"],
    }
    process = subprocess.Popen(
        list(map(str, [sys.executable, ROOT / script, *flags[script], "--dset_dir", folder])),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    start = time.time()
    while not list(folder.glob(".folder*.tmp")) or len(workers := children(process.pid)) < 2:
        assert process.poll() is None and time.time() - start < 60
        time.sleep(0.01)
    time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does; the others are sent to the parent alone
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in err and (number != signal.SIGINT or "interrupted" in err)
    start = time.time()
    while any((ROOT / f"/proc/{pid}").exists() for pid in workers):
        assert time.time() - start < 10
        time.sleep(0.01)
    assert not list(folder.glob("*.npy")) and not list(folder.glob("*.json"))
    for i in range(3, 600):
        (folder / f"{i}.png").unlink()
    assert dataset.main(["folder", "--dset_dir", str(folder)]) == 0
    assert {p.name for p in folder.iterdir()} == {
        "0.png",
        "1.png",
        "2.png",
        "folder_64x64.npy",
        "folder_64x64.json",
    }


def test_a_decoding_process_that_dies_is_an_error_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare.images, "decode", lambda *args: os._exit(9))
    source = write_zip(tmp_path / "in.zip", FILES)
    assert "ended early" in refusal(capsys, "celeba", "--archive", source, "--dset_dir", tmp_path)


def test_what_a_running_preparation_writes_is_left_alone(tmp_path):
    mine, dead = tmp_path / ".a.npy.1.tmp", tmp_path / ".a.npy.2.tmp"
    dead.write_bytes(b"")
    with open(mine, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        prepare.images.remove_leftovers(tmp_path / "a.npy")
        assert mine.exists() and not dead.exists()


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare.images.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    assert "are free" in refusal(
        capsys, "celeba", "--archive", write_zip(tmp_path / "a", FILES), "--dset_dir", tmp_path
    )
