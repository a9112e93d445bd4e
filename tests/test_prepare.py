"""Preparing a set of images: made again when it must be, always whole, whatever ends the preparation."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image

import dataset
import main
from helpers import ROOT
from images import FILES, WRITERS, encoded, photo, prepared, refusal, run, write_folder, write_zip
from prepare import __main__ as program
from prepare import sets

# When it is made again.


def test_a_second_call_prepares_nothing_and_other_images_are_prepared_in_the_same_way(tmp_path, capsys):
    files = {f"{i}.jpg": encoded(photo(i)) for i in range(3)}
    folder = write_folder(tmp_path / "CelebA/img_align_celeba", files)

    def again(*flags):
        run("celeba", "--dset_dir", tmp_path, *flags)
        return capsys.readouterr().out

    assert "preparing 3 images" in again()
    assert "preparing" not in (output := again()) and "3 images, colour, whole frames" in output
    assert "3 images, grey, centre 148" in again("--crop", 148, "--channels", 1)
    (folder / "3.jpg").write_bytes(encoded(photo(3)))
    assert "have changed" in (output := again()) and "4 images, grey, centre 148" in output
    shutil.rmtree(folder)  # the prepared set is all that training needs
    assert "no CelebA in" in refusal(capsys, "celeba", "--dset_dir", tmp_path, "--crop", 0)
    assert "preparing" not in again()  # and that lost nothing


@pytest.mark.parametrize("form", WRITERS)
def test_other_content_of_the_same_size_is_noticed_also_in_a_folder_that_was_moved(tmp_path, form):
    dark, light = ({"a.bmp": encoded(Image.new("L", (64, 64), level), "BMP")} for level in (10, 200))
    (old := tmp_path / "old").mkdir()
    assert (prepared(old, WRITERS[form](old / "in", dark)) == 10).all()
    old.rename(new := tmp_path / "new")
    assert (prepared(new) == 10).all()
    WRITERS[form](new / "in", light)
    assert (prepared(new) == 200).all()


@pytest.mark.parametrize("place", ["data/img_align_celeba", "data/img_align_celeba.zip", "in.zip"])
def test_a_copy_with_other_times_is_used_as_it_is(tmp_path, place, capsys):
    (tmp_path / "data").mkdir()
    source = (write_zip if ".zip" in place else write_folder)(tmp_path / place, FILES)
    images = prepared(tmp_path / "data", source)
    copy = shutil.copytree(tmp_path / "data", tmp_path / "deep/copy", copy_function=shutil.copyfile)
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
    capsys.readouterr()
    assert (prepared(copy) == images).all() and "preparing" not in capsys.readouterr().out


def test_one_entry_in_the_table_is_a_further_data_set(tmp_path, monkeypatch):
    monkeypatch.setitem(sets.SETS, "flowers", sets.DataSet("Flowers", ("flowers.zip", "flowers")))
    write_folder(tmp_path / "flowers", {f"{i}.png": encoded(photo(i, (100, 80)), "PNG") for i in range(3)})
    args = main.parse(["--dset_dir", str(tmp_path)])
    args.dataset = "flowers"
    data = dataset.return_data(args)
    assert (len(data), data.channels) == (3, 3)


# Whatever ends it.


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_an_interrupted_preparation_leaves_the_old_set_and_starts_again(tmp_path, number, status):
    noise = encoded(Image.effect_noise((1500, 1500), 50), "PNG", compress_level=1)
    folder = write_folder(tmp_path / "in", {"0.png": noise})
    for i in range(1, 600):  # some seconds to decode
        os.link(folder / "0.png", folder / f"{i}.png")
    old = {"folder_64x64.npy": b"old", "folder_64x64.json": b"{}"}
    write_folder(folder, old)
    command = [sys.executable, "-m", "prepare", "folder", "--dset_dir", folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while "preparing 600" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == status and "Traceback" not in err
    assert all((folder / name).read_bytes() == data for name, data in old.items())
    assert not list(folder.glob(".*")) or number == signal.SIGKILL  # of which nothing can clean up
    for i in range(3, 600):
        (folder / f"{i}.png").unlink()
    assert len(prepared(folder, name="folder")) == 3


# What it says.


def test_without_data_the_command_that_gets_it_is_printed(tmp_path, capsys):
    (folder := tmp_path / "my data").mkdir()
    for name, place in (("celeba", "celeba/img_align_celeba"), ("3dchairs", "rendered_chairs.tar")):
        error = refusal(capsys, name, "--dset_dir", folder)
        assert place in error and f"python -m prepare {name} --dset_dir '{folder}' --download" in error
    error = refusal(capsys, "folder", "--dset_dir", tmp_path / "nothing")
    assert f"the folder {tmp_path / 'nothing'} does not exist" in error and "--archive FILE" in error


@pytest.mark.parametrize(
    "flags",
    ["mnist", "celeba --crop -1", "dsprites --crop 3", "folder --download", "celeba --download --archive x"],
)
def test_flags_that_make_no_sense_are_one_line_and_status_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        program.parse(flags.split())
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
