"""Preparing a set of images: made again when it must be, always whole, whatever ends the preparation."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dataset
import main
from helpers import ROOT
from images import FILES, encoded, grey, photo, prepared, refusal, run, write_folder, write_zip
from prepare import __main__ as program
from prepare import arrays, sets
from utils import UserError

NAMES = {"celeba_64x64.npy", "celeba_64x64.json"}


def levels(folder, name="folder", size=64):
    return np.load(folder / f"{name}_{size}x{size}.npy")[:, 0, 0, 0].tolist()


# When it is made again.


def test_a_second_call_prepares_nothing_and_what_changed_is_made_again(tmp_path, capsys):
    folder = write_folder(
        tmp_path / "CelebA", {f"img_align_celeba/{i}.jpg": encoded(photo(i)) for i in range(3)}
    )

    def again(*flags):
        run("celeba", "--dset_dir", tmp_path, *flags)
        return capsys.readouterr().out

    assert "preparing 3 images" in again()
    assert "preparing" not in (output := again()) and "3 images, colour, whole frames" in output
    assert "was made with crop 0" in (output := again("--crop", 148)) and "centre 148" in output
    assert "preparing" not in again("--crop", 148)
    assert "3 channels" in again("--channels", 1)
    (folder / "img_align_celeba" / "3.jpg").write_bytes(encoded(photo(3)))
    assert "has changed" in (output := again()) and "4 images, grey, centre 148" in output  # its choices stay
    shutil.rmtree(folder)  # the prepared set is all that training needs
    assert "preparing" not in again()
    assert "its images are gone" in refusal(capsys, "celeba", "--dset_dir", tmp_path, "--crop", 0)
    assert "preparing" not in again()  # and that lost nothing


def test_it_is_made_again_from_where_it_came(tmp_path):
    write_zip(tmp_path / "img_align_celeba.zip", FILES)  # where it is looked for
    archive = write_zip(tmp_path / "other.zip", {"a.jpg": encoded(photo())})
    for flags in (["--archive", archive], ["--crop", 148]):
        run("celeba", "--dset_dir", tmp_path, *flags)
        assert len(np.load(tmp_path / "celeba_64x64.npy")) == 1


def test_an_archive_with_other_content_of_the_same_size_is_noticed(tmp_path):
    archive = write_zip(tmp_path / "in.zip", {"a.bmp": encoded(Image.new("RGB", (64, 64)), "BMP")}, 0)
    size = archive.stat().st_size
    prepared(tmp_path, archive)
    write_zip(archive, {"a.bmp": encoded(Image.new("RGB", (64, 64), "white"), "BMP")}, 0)
    assert archive.stat().st_size == size
    assert prepared(tmp_path)[0].mean() == 255


def test_a_folder_that_changed_or_was_copied_or_renamed_is_prepared_again(tmp_path):
    def shown(folder):
        run("folder", "--dset_dir", folder)
        return levels(folder)

    folder = write_folder(tmp_path / "photos", {f"{i}.png": grey(10 * i) for i in range(3)})
    assert shown(folder) == [0, 10, 20]
    before = (folder / "folder_64x64.npy").stat().st_mtime_ns
    assert shown(folder) == [0, 10, 20] and (folder / "folder_64x64.npy").stat().st_mtime_ns == before
    (folder / "1.png").write_bytes(grey(200))
    assert shown(folder) == [0, 200, 20]
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "3.png").write_bytes(grey(30))
    assert shown(copy) == [0, 200, 20, 30]
    renamed = folder.rename(tmp_path / "renamed")
    (renamed / "0.png").unlink()
    assert shown(renamed) == [200, 20]


def test_a_folder_that_was_prepared_from_an_archive_that_is_gone_goes_on_with_it(tmp_path):
    source = write_zip(tmp_path / "in.zip", {f"{i}.png": grey(i) for i in range(3)})
    run("folder", "--archive", source, "--dset_dir", tmp_path / "set")
    source.unlink()
    assert len(prepared(tmp_path / "set", name="folder")[0]) == 3


@pytest.mark.parametrize(
    "damage", ["version", "no manifest", "manifest", "keys", "cut short", "one bit", "pickle"]
)
def test_a_set_that_is_not_whole_is_made_again(tmp_path, damage, capsys):
    source = write_zip(tmp_path / "img_align_celeba.zip", FILES)
    images, manifest = prepared(tmp_path)
    images = np.array(images)
    path, beside = tmp_path / "celeba_64x64.npy", tmp_path / "celeba_64x64.json"
    whole = path.read_bytes()
    {
        "version": lambda: beside.write_text(json.dumps({**manifest, "version": 0})),
        "no manifest": beside.unlink,
        "manifest": lambda: beside.write_text("[1"),
        "keys": lambda: beside.write_text('{"version": 2, "count": -1}'),
        "cut short": lambda: path.write_bytes(whole[:-1]),
        "one bit": lambda: path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]),
        "pickle": lambda: np.save(path, np.array([print], dtype=object)),
    }[damage]()
    assert (prepared(tmp_path)[0] == images).all()
    assert "making it again" in capsys.readouterr().out and json.loads(beside.read_text()) == manifest
    source.unlink()
    beside.write_text(json.dumps({**manifest, "version": 0}))
    with pytest.raises(UserError, match="another version, and its images are gone: no CelebA in"):
        prepared(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (737280, 64, 80000000000)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2**80,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 64, 8)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (9,)}",
        "{'descr': '|u1'}",
        "[" * 3000,
        "\0" * 9,
    ],
)
def test_an_array_whose_header_lies_is_not_believed(tmp_path, header):
    text = header.encode().ljust(4000) + b"\n"
    path = tmp_path / "celeba_64x64.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(100))
    assert arrays.load_array(path, (1, 64, 8), 0) is None


# Sizes and further sets.


def test_sets_of_two_sizes_lie_side_by_side(tmp_path, capsys):
    source = write_zip(tmp_path / "in.zip", {"a.png": encoded(photo(1, (200, 100)), "PNG")})
    run("celeba", "--dset_dir", tmp_path, "--archive", source)
    run("celeba", "--dset_dir", tmp_path, "--archive", source, "--image_size", 96)
    assert np.load(tmp_path / "celeba_96x96.npy").shape == (1, 3, 96, 96)
    capsys.readouterr()
    run("celeba", "--dset_dir", tmp_path)
    assert np.load(tmp_path / "celeba_64x64.npy").shape == (1, 3, 64, 64)
    assert "preparing" not in capsys.readouterr().out


def test_one_entry_in_the_table_is_a_further_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sets.SETS, "flowers", sets.DataSet("Flowers", ("flowers.zip", "flowers")))
    assert "no Flowers in" in refusal_of(sets.find_images, "flowers", tmp_path, 64)
    write_folder(tmp_path / "flowers", {f"{i}.png": encoded(photo(i, (100, 80)), "PNG") for i in range(3)})
    args = main.parse(["--dset_dir", str(tmp_path)])
    args.dataset = "flowers"
    data = dataset.return_data(args)
    assert (len(data), data.channels, data.distribution) == (3, 3, "gaussian")


def refusal_of(function, *args):
    with pytest.raises(UserError) as error:
        function(*args)
    return str(error.value)


# Whatever ends it.


def slow_folder(path):
    """A folder of 600 images that take some seconds to decode."""
    write_folder(path, {"0.png": encoded(Image.effect_noise((1500, 1500), 50), "PNG", compress_level=1)})
    for i in range(1, 600):
        os.link(path / "0.png", path / f"{i}.png")
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    "command, number",
    [("prepare", signal.SIGINT), ("prepare", signal.SIGKILL), ("main.py", signal.SIGTERM)],
)
def test_an_interrupted_preparation_leaves_the_old_set_and_starts_again(tmp_path, command, number):
    folder = slow_folder(tmp_path / "in")
    old = {"folder_64x64.npy": b"old", "folder_64x64.json": b"[old"}
    write_folder(folder, old)
    start = {
        "prepare": ["-m", "prepare", "folder"],
        "main.py": [
            ROOT / "main.py",
            "--dataset",
            "folder",
            "--output_dir",
            tmp_path / "o",
            "--ckpt_dir",
            tmp_path / "c",
        ],
    }[command]
    process = subprocess.Popen(
        list(map(str, [sys.executable, "-u", *start, "--dset_dir", folder])),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    while "preparing 600" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in err and (number != signal.SIGINT or "interrupted" in err)
    assert all((folder / name).read_bytes() == data for name, data in old.items())
    left = list(folder.glob(".*"))
    assert not left or number == signal.SIGKILL  # of which nothing can clean up
    for path in [*left, *(folder / f"{i}.png" for i in range(3, 600))]:
        path.unlink()
    run("folder", "--dset_dir", folder)
    assert {path.name for path in folder.iterdir()} == {"0.png", "1.png", "2.png", *old}
    assert len(levels(folder)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dsprites", "celeba"])
def test_two_processes_may_prepare_the_same_data_at_once(tmp_path, name):
    write_zip(tmp_path / "in.zip", FILES)
    flags = [name, "--dset_dir", tmp_path / "data"] + ["--archive", tmp_path / "in.zip"] * (name == "celeba")
    both = [
        subprocess.Popen(
            list(map(str, [sys.executable, "-m", "prepare", *flags])), cwd=ROOT, stdout=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    assert [process.wait(100) for process in both] == [0, 0]
    names = {path.name for path in (tmp_path / "data").iterdir()}
    if name == "dsprites":
        assert names == {"dsprites_64x64_packed.npy"}
    else:
        assert (
            names == NAMES
            and (prepared(tmp_path / "data")[0] == prepared(tmp_path, tmp_path / "in.zip")[0]).all()
        )


def test_a_full_disk_is_noticed_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    source = write_zip(tmp_path / "a", FILES)
    assert "are free" in refusal(capsys, "celeba", "--archive", source, "--dset_dir", tmp_path)


@pytest.mark.parametrize("name", ["celeba", "dsprites"])
def test_a_read_only_folder_is_refused_with_the_command_that_prepares_elsewhere(
    tmp_path, monkeypatch, capsys, name
):
    archive = write_zip(tmp_path / "img_align_celeba.zip", FILES)
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write anywhere
    error = refusal(capsys, name, "--dset_dir", tmp_path)
    assert (
        f"{tmp_path} cannot be written to" in error and f"python -m prepare {name} --dset_dir OTHER" in error
    )
    assert name == "dsprites" or f"--archive {archive}" in error


def test_memory_that_runs_out_is_no_fault_of_an_image(tmp_path, monkeypatch, capsys):
    def run_out(*args):
        raise MemoryError

    monkeypatch.setattr("prepare.images.decode", run_out)
    source = write_zip(tmp_path / "in.zip", FILES)
    error = refusal(capsys, "celeba", "--archive", source, "--dset_dir", tmp_path)
    assert "fewer --num_workers, down to 0" in error and not (NAMES & {p.name for p in tmp_path.iterdir()})


# What it says.


def test_without_data_the_lines_that_get_it_are_printed(tmp_path, capsys):
    folder = tmp_path / "my data"
    for name, words in (("celeba", "celeba/img_align_celeba"), ("3dchairs", "0.35 GB prepared")):
        error = refusal(capsys, name, "--dset_dir", folder)
        assert (
            words in error and f"\n    python -m prepare {name} --dset_dir '{folder}' --download\n" in error
        )
    assert (
        main.main(["--dataset", "celeba", "--ckpt_dir", str(tmp_path / "c"), "--dset_dir", str(folder)]) == 1
    )
    assert f"python -m prepare celeba --dset_dir '{folder}' --download\n" in capsys.readouterr().err
    assert refusal(capsys, "folder", "--dset_dir", folder) == f"prepare: no folder {folder}"


def test_names_that_the_console_cannot_print_are_escaped(tmp_path):
    folder = write_folder(tmp_path / "\u732b\x1b[31m", {"\u72ac\x07.png": grey(1), "\u9ce5\x07.jpg": b"x"})
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    for dset_dir, status in ((folder, 0), (tmp_path / "\u732b\x1b[32m", 1)):
        done = subprocess.run(
            [sys.executable, "-m", "prepare", "folder", "--dset_dir", dset_dir],
            cwd=ROOT, env=environment, capture_output=True,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert done.returncode == status and b"Traceback" not in output
        assert b"\\u732b\\x1b[3" in output and not {0x1B, 0x07} & set(output)
    assert (folder / "folder_64x64.npy").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "mnist",
        "",
        "celeba --crop -1",
        "celeba --channels 2",
        "celeba --num_workers -1",
        "celeba --num_workers 257",
        "celeba --image_size 0",
        "celeba --archive=",
        "dsprites --crop 3",
        "dsprites --channels 1",
        "dsprites --image_size 32",
        "celeba --download --archive x",
        "folder --download",
        "celeba --archives x",
        "celeba --archive=--",
    ],
)
def test_flags_that_make_no_sense_are_one_line_and_status_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        program.parse(flags.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
