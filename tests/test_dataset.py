"""Sets of images: what is read, what is skipped or refused, and training on them."""

import io
import json
import os
import shutil
import stat
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
import main
import prepare.images
from images import FILES, encoded, photo, prepared, refusal, write_folder, write_tar, write_zip
from prepare import archives

# What is read.


@pytest.mark.parametrize("form", ["folder", "zip", "stored zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_folders_and_archives_of_all_kinds_give_the_same_rows_in_the_order_of_names(
    tmp_path, form, num_workers
):
    files = {**FILES, "readme.txt": b"not an image", "list.mat": b"neither"}
    source = {
        "folder": lambda: write_folder(tmp_path / "in", files),
        "zip": lambda: write_zip(tmp_path / "in", files),
        "stored zip": lambda: write_zip(tmp_path / "in", files, zipfile.ZIP_STORED),
    }.get(form, lambda: write_tar(tmp_path / "in", files, "w:" + form[4:]))()
    path, manifest = dataset.find_images("celeba", tmp_path / "out", source, num_workers=num_workers)
    expected = [prepare.images.decode(FILES[name], 0, 3) for name in sorted(FILES)]
    assert (np.load(path) == expected).all()
    assert (manifest["count"], manifest["listed"], manifest["skipped"]) == (4, 4, {})
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"celeba_64x64.npy", "celeba_64x64.json"}


def test_celeba_is_the_whole_frame_and_crop_148_the_centre_square(tmp_path):
    image = photo()
    source = write_zip(tmp_path / "in.zip", {"a.png": encoded(image, "PNG")})
    for crop, box in ((None, None), (148, (15, 35, 163, 183))):
        images, manifest = prepared(tmp_path, source, crop=crop)
        expected = image.crop(box).resize((64, 64), Image.Resampling.BILINEAR)
        assert np.abs(images[0].transpose(1, 2, 0) - np.asarray(expected).astype(int)).max() <= 1
        assert manifest["crop"] == (crop or 0) and manifest["channels"] == 3


def test_chairs_are_the_centre_in_grey(tmp_path):
    pixels = np.full((600, 600, 3), 255, np.uint8)
    pixels[100:500, 100:500] = (40, 90, 200)
    name = "rendered_chairs/1a6f/renders/image_000_p020_t000_r096.png"
    source = write_tar(tmp_path / "in.tar", {name: encoded(Image.fromarray(pixels), "PNG")})
    images, _ = prepared(tmp_path, source, "3dchairs")
    assert images.shape == (1, 1, 64, 64)
    assert (images == round(0.299 * 40 + 0.587 * 90 + 0.114 * 200)).all()


@pytest.mark.parametrize("crop", [0, 148])
def test_jpegs_decoded_small_stay_within_two_grey_levels(crop):
    assert draft_difference([encoded(photo(i)) for i in range(20)], crop) < 2


@pytest.mark.parametrize("crop", [0, 148])
def test_celebas_jpegs_decoded_small_stay_within_two_grey_levels(crop, shared):
    with zipfile.ZipFile(shared / "data" / "celeba_sample.zip") as archive:
        assert draft_difference([archive.read(name) for name in archive.namelist()[::100]], crop) < 2


def draft_difference(jpegs, crop):
    """Mean absolute difference, grey levels, from full decode and antialiased resize."""
    box = (15, 35, 163, 183) if crop else None
    full = [
        Image.open(io.BytesIO(data)).crop(box).resize((64, 64), Image.Resampling.BILINEAR) for data in jpegs
    ]
    small = np.stack([prepare.images.decode(data, crop, 3).transpose(1, 2, 0) for data in jpegs])
    difference = np.abs(small - np.stack(full).astype(int)).mean()
    assert difference > 0  # else nothing was decoded small
    return difference


def test_the_official_layouts_are_found_in_the_data_folder(tmp_path):
    png = encoded(photo(size=(600, 600)), "PNG")
    for i, (name, place) in enumerate(
        (
            ("celeba", "CelebA/img_align_celeba/000001.jpg"),
            ("3dchairs", "3DChairs/images/1.png"),
            ("3dchairs", "rendered_chairs/1a6f/renders/image_000.png"),
        )
    ):
        folder = write_folder(
            tmp_path / str(i), {place: FILES["img_align_celeba/000001.jpg"] if name == "celeba" else png}
        )
        assert dataset.main([name, "--dset_dir", str(folder), "--num_workers", "1"]) == 0
        assert json.loads((folder / f"{name}_64x64.json").read_text())["count"] == 1
    write_zip(tmp_path / "img_align_celeba.zip", FILES)
    assert prepared(tmp_path, None)[1]["count"] == 4


def test_the_real_sample_and_the_stand_in_are_read(tmp_path, shared):
    for name, file, count in (
        ("celeba", "celeba_sample.zip", 20_000),
        ("3dchairs", "rendered_chairs_standin.tar", 7_440),
    ):
        source = archives.Source(shared / "data" / file)
        assert (len(source.members), source.skipped) == (count, {})
        source.members = source.members[:: count // 40]
        path = tmp_path / f"{name}_64x64.npy"
        spec = dataset.IMAGE_SETS[name]
        assert prepare.images.make_cache(path, source, spec.crop, spec.channels, 2)["skipped"] == {}
        images = np.load(path)
        assert len(images) == 40 and 20 < images.std() and 60 < images.mean() < 252


# Bad input: read, or skipped and counted, or refused.


def animation():
    return encoded(photo(1), "GIF", save_all=True, append_images=[photo(2), photo(3)])


def sixteen_bits():
    return encoded(Image.fromarray(np.full((64, 64), 0x8040, np.uint16)), "PNG")


def see_through():
    return encoded(Image.new("RGBA", (64, 64), (10, 20, 30, 0)), "PNG")


@pytest.mark.parametrize(
    "data, pixel",
    [
        # grey: all channels alike
        (encoded(photo(1, mode="L")), lambda: prepare.images.decode(encoded(photo(1, mode="L")), 0, 1)),
        (encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0))), lambda: [[[254]], [[0]], [[0]]]),
        (sixteen_bits(), lambda: 0x80),
        (see_through(), lambda: 255),
        (
            animation(),
            lambda: prepare.images.decode(
                encoded(Image.open(io.BytesIO(animation())).convert("RGB"), "PNG"), 0, 3
            ),
        ),
        (
            encoded(photo(1, mode="P"), "PNG"),
            lambda: prepare.images.decode(encoded(photo(1, mode="P").convert("RGB"), "PNG"), 0, 3),
        ),
        (
            encoded(photo(1, mode="1"), "PNG"),
            lambda: prepare.images.decode(encoded(photo(1, mode="1").convert("L"), "PNG"), 0, 3),
        ),
    ],
    ids=["grey", "CMYK", "16-bit", "transparent", "animated", "palette", "1-bit"],
)
def test_images_of_other_modes_are_read(data, pixel):
    images = prepare.images.decode(data, 0, 3)
    assert images.shape == (3, 64, 64) and images.dtype == np.uint8
    assert np.abs(images.astype(int) - pixel()).max() <= 1
    assert prepare.images.decode(data, 0, 1).shape == (1, 64, 64)


def test_photos_are_turned_as_the_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned clockwise by a quarter
    upright = prepare.images.decode(
        encoded(photo(1, size=(128, 128)).transpose(Image.Transpose.ROTATE_270), "PNG"), 0, 3
    )
    turned = prepare.images.decode(encoded(photo(1, size=(128, 128)), "PNG", exif=exif), 0, 3)
    assert abs(upright.astype(int) - turned).max() <= 1  # resized before it is turned
    jpeg = prepare.images.decode(encoded(photo(1, size=(128, 128)), exif=exif), 0, 3).astype(int)
    assert abs(jpeg - upright).mean() < 3


def bomb():
    """A PNG of 2,800 bytes that says it has 9 GB of pixels."""
    data = bytearray(encoded(Image.new("L", (64, 64)), "PNG"))
    data[16:24] = (97_000).to_bytes(4, "big") * 2
    data[29:33] = archives.zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "data, reason",
    [
        (encoded(photo())[:3000], "cut short"),
        (encoded(photo(), "PNG")[:3000], "cut short"),
        (b"", "not an image"),
        (b"hello", "not an image"),
        (bomb(), "more than 16,777,216 pixels"),
        (encoded(Image.new("L", (5000, 5000)), "PNG"), "more than 16,777,216 pixels"),
        (encoded(Image.new("F", (178, 218)), "TIFF"), "floating-point"),
        (encoded(Image.new("L", (100, 300))), "smaller than the crop of 148"),
    ],
    ids=["truncated JPEG", "truncated PNG", "empty", "text", "bomb", "large", "float", "small"],
)
@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_what_cannot_be_read_is_skipped_counted_and_named(tmp_path, data, reason, form, capsys):
    files = {"a.jpg": encoded(photo(1)), "b/bad.jpg": data, "c.jpg": encoded(photo(2))}
    source = {"folder": write_folder, "zip": write_zip, "tar": write_tar}[form]
    folder, out = source(tmp_path / "in", files), tmp_path / "out"
    assert dataset.main(["celeba", "--archive", str(folder), "--dset_dir", str(out), "--crop", "148"]) == 0
    output = capsys.readouterr().out
    assert f"skipped 1 {reason}" in output and "(first: 'b/bad.jpg')" in output
    images = np.load(out / "celeba_64x64.npy")
    assert (images == [prepare.images.decode(files[name], 148, 3) for name in ("a.jpg", "c.jpg")]).all()
    [(why, found)] = json.loads((out / "celeba_64x64.json").read_text())["skipped"].items()
    assert reason in why and found == [1, "b/bad.jpg"]


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_a_source_without_an_image_is_refused_and_leaves_nothing(tmp_path, form, capsys):
    write = {"folder": write_folder, "zip": write_zip, "tar": write_tar}[form]
    (tmp_path / "empty").mkdir()
    for files, text in (
        ({}, "neither" if form == "tar" else "no image in"),
        ({"a.txt": b"x"}, "no image in"),
        ({"a.jpg": b"x"}, "no image remains"),
        (
            {"../a.jpg": FILES["img_align_celeba/000001.jpg"]},
            "leads out of" if form != "folder" else "no image in",
        ),
    ):
        source = tmp_path / f"{len(text)}{len(files)}{form}"
        source = write(source, files) if files or form != "folder" else tmp_path / "empty"
        source.mkdir(exist_ok=True) if form == "folder" else None
        line = refusal(capsys, "celeba", "--archive", source, "--dset_dir", tmp_path / "out")
        assert text in line and str(source) in line
        assert list((tmp_path / "out").glob("*")) == list((tmp_path / "out").glob(".*")) == []


def test_files_that_are_no_archives_are_refused_by_name(tmp_path, capsys):
    whole_zip, whole_tar = (
        write_zip(tmp_path / "a.zip", FILES).read_bytes(),
        write_tar(tmp_path / "a.tar", FILES).read_bytes(),
    )
    packed = write_tar(tmp_path / "a.tgz", FILES, "w:gz").read_bytes()
    # cut inside a header, inside data, before the end marks
    header = whole_tar.index(b"img_align_celeba/000040")
    for data, text in (
        (b"hello", "neither"),
        (b"", "neither"),
        (whole_zip[:-40], "neither"),
        (whole_tar[:9000], "cut short"),
        (whole_tar[: header + 100], "cut short"),
        (whole_tar[:header], "cut short"),
        (packed[:-900], "cut short"),
        (b"\x1f\x8bxx", "cut short"),
        (archives.gzip.compress(b"hello"), "cut short"),
        (b"\n<!DOCTYPE html><title>Quota exceeded", "web page"),
    ):
        (tmp_path / "file").write_bytes(data)
        line = refusal(capsys, "celeba", "--archive", tmp_path / "file", "--dset_dir", tmp_path)
        assert text in line and str(tmp_path / "file") in line, line
    assert "missing.zip" in refusal(
        capsys, "celeba", "--archive", tmp_path / "missing.zip", "--dset_dir", tmp_path
    )


def test_only_regular_members_with_names_inside_the_archive_count(tmp_path, capsys):
    jpeg = FILES["img_align_celeba/000001.jpg"]
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name, kind in (
            ("ok.jpg", tarfile.REGTYPE),
            ("../up.jpg", tarfile.REGTYPE),
            ("/abs.jpg", tarfile.REGTYPE),
            ("sym.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("dev.jpg", tarfile.CHRTYPE),
            ("fifo.jpg", tarfile.FIFOTYPE),
            ("__MACOSX/._ok.jpg", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(jpeg) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(jpeg) if info.size else None)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, kind in (
            ("ok.jpg", stat.S_IFREG),
            ("a/../../up.jpg", 0),
            ("/abs.jpg", 0),
            ("sym.jpg", stat.S_IFLNK),
            ("..\\up.jpg", 0),
            ("._ok.jpg", 0),
        ):
            info = zipfile.ZipInfo(name)
            info.external_attr = kind << 16
            archive.writestr(info, jpeg)
    for file, links, outside in (("in.tar", 4, 2), ("in.zip", 1, 3)):
        images, manifest = prepared(tmp_path, tmp_path / file)
        assert (images == [prepare.images.decode(jpeg, 0, 3)]).all()
        counts = {reason: found[0] for reason, found in manifest["skipped"].items()}
        assert counts == {
            "not regular files": links,
            "with a name that leads out of the archive": outside,
            "hidden": 1,
        }


def test_in_a_folder_links_to_nothing_and_pipes_are_skipped(tmp_path):
    folder = write_folder(tmp_path / "in", {"ok.jpg": encoded(photo())})
    os.mkfifo(folder / "pipe.jpg")  # opening it would wait for ever
    (folder / "nothing.jpg").symlink_to("gone.jpg")
    (folder / "loop").symlink_to(folder)
    images, manifest = prepared(tmp_path, folder)
    assert len(images) == 1 and sum(times for times, _ in manifest["skipped"].values()) == 2


def test_a_huge_member_is_skipped_and_a_header_is_not_believed(tmp_path, monkeypatch, capsys):
    small, huge = encoded(photo()), bytes(20_000)
    monkeypatch.setattr(archives, "MAX_BYTES", 19_999)
    assert len(small) < 19_999
    for source in (
        write_zip(tmp_path / "z", {"a.jpg": huge, "b.jpg": small}),
        write_tar(tmp_path / "t", {"a.jpg": huge, "b.jpg": small}),
        write_folder(tmp_path / "f", {"a.jpg": huge, "b.jpg": small}),
    ):
        assert prepared(tmp_path, source)[1]["skipped"] == {"larger than 19,999 bytes": [1, "a.jpg"]}
    whole = write_zip(tmp_path / "lie", {"a.jpg": huge, "b.jpg": small}).read_bytes()
    (tmp_path / "lie").write_bytes(whole.replace((20_000).to_bytes(4, "little"), (5).to_bytes(4, "little")))
    assert prepared(tmp_path, tmp_path / "lie")[1]["skipped"] == {"wrong checksum in the zip": [1, "a.jpg"]}
    whole = write_zip(
        tmp_path / "flipped", {"a.bmp": encoded(photo(), "BMP"), "b.jpg": small}, zipfile.ZIP_STORED
    ).read_bytes()
    (tmp_path / "flipped").write_bytes(whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:])
    monkeypatch.setattr(archives, "MAX_BYTES", 2**26)
    assert prepared(tmp_path, tmp_path / "flipped")[1]["skipped"] == {
        "wrong checksum in the zip": [1, "a.bmp"]
    }
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**40  # an extended header, read into memory by tarfile
    (tmp_path / "pax").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    assert "more than 1 MB" in refusal(
        capsys, "celeba", "--archive", tmp_path / "pax", "--dset_dir", tmp_path
    )


# Training on them.


def test_a_batch_is_the_rows_asked_for_in_0_to_1_and_takes_under_a_millisecond(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (500, 3, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    data = dataset.Images(tmp_path / "a.npy", "500 images", "gaussian")
    assert (len(data), data.channels, data.factor_sizes, data.fixed_images) == (500, 3, None, {})
    indices = torch.tensor([7, 0, 499, 7])
    batch = data.batch(indices)
    assert batch.dtype == torch.float32 and batch.shape == (4, 3, 64, 64)
    assert (batch.numpy() == images[indices.numpy()].astype(np.float32) / 255).all()
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for i in range(100):
        indices = torch.randint(500, (64,))
        start = time.perf_counter()
        data.batch(indices)
        times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    assert min(times) < 1e-3


@pytest.mark.parametrize(
    "name, channels, distribution",
    [("celeba", 3, "gaussian"), ("3dchairs", 1, "bernoulli"), ("folder", 3, "gaussian")],
)
def test_main_prepares_by_itself_and_trains(runs, name, channels, distribution):
    files = {f"{i}.png": encoded(photo(i, (400, 400)), "PNG") for i in range(9)}
    place = {"celeba": "CelebA/img_align_celeba", "3dchairs": "3DChairs/images", "folder": "."}[name]
    write_folder(runs.folder / "data" / place, files)
    flags = ["--dataset", name, "--dset_dir", runs.folder / "data", "--max_iter", 4, "--z_dim", 5]
    output = runs.run("run", *flags).stdout
    assert "preparing 9 images" in output and f"9 images, {'grey' if channels == 1 else 'colour'}" in output
    picture = Image.open(runs.outputs("run") / "4" / "reconstruction.png")
    assert picture.size[0] > 400 and (runs.outputs("run") / "4" / "traverse.png").exists()
    other = {"gaussian": "bernoulli", "bernoulli": "gaussian"}[distribution]
    losses = [
        main.Solver(main.parse(list(map(str, [*runs.flags, *flags, "--viz_name", "x", *dist])))).distribution
        for dist in ([], ["--dist", other])
    ]
    assert losses == [distribution, other]
    assert f"dist {distribution} (now {other})" in runs.run("run", *flags, "--dist", other, status=1).stderr
    # said or not, it is the same run
    assert "is finished" in runs.run("run", *flags, "--dist", distribution).stdout


def test_a_run_does_not_go_on_with_other_images(runs):
    folder = write_folder(runs.folder / "data", {f"{i}.png": encoded(photo(i), "PNG") for i in range(9)})
    flags = ["--dataset", "folder", "--dset_dir", folder]
    runs.run("run", *flags, "--max_iter", 3)
    assert dataset.main(["folder", "--dset_dir", str(folder), "--channels", "1"]) == 0
    for train in ("True", "False"):
        error = runs.run("run", *flags, "--max_iter", 6, "--train", train, status=1).stderr
        assert (
            "was made with 9 images, colour" in error
            and "holds 9 images, grey" in error
            and error.count("\n") == 1
        )


def test_a_folder_whose_images_changed_or_that_was_copied_or_renamed_is_prepared_again(tmp_path):
    def shown(folder):
        assert dataset.main(["folder", "--dset_dir", str(folder)]) == 0
        return np.load(folder / "folder_64x64.npy")[:, 0, 0, 0].tolist()

    def grey(level):
        return encoded(Image.new("RGB", (80, 80), (level,) * 3), "PNG")

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


def test_a_folder_that_was_prepared_from_an_archive_elsewhere_goes_on_with_it(tmp_path):
    source = write_zip(tmp_path / "in.zip", {f"{i}.png": encoded(photo(i), "PNG") for i in range(3)})
    assert dataset.main(["folder", "--archive", str(source), "--dset_dir", str(tmp_path / "set")]) == 0
    path, manifest = dataset.find_images("folder", tmp_path / "set")
    assert manifest["count"] == 3 and manifest["source"] == str(source.resolve())


def test_a_run_of_a_folder_is_drawn_with_its_images_and_no_others_are_prepared(runs, monkeypatch):
    monkeypatch.chdir(runs.folder)
    photos, others = (
        write_folder(runs.folder / name, {f"{i}.png": encoded(photo(i), "PNG") for i in range(9)})
        for name in ("photos", "data")
    )
    draw = ["--train", "no", "--dset_dir"]
    runs.run("run", "--dataset", "folder", "--dset_dir", photos, "--max_iter", 3)
    error = runs.run("run", *draw, "data", status=1).stderr
    assert f"give --dset_dir {photos}" in error and error.count("\n") == 1 and not list(others.glob("*.npy"))
    assert "pictures in" in runs.run("run", *draw, photos).stdout


def test_without_data_the_lines_that_get_it_are_printed(tmp_path, capsys):
    for name, words in (
        ("celeba", "1.44 GB to download, 2.49 GB prepared"),
        ("3dchairs", "0.35 GB prepared"),
    ):
        for program in (dataset.main, main.main):
            flags = (
                [name] if program is dataset.main else ["--dataset", name, "--ckpt_dir", str(tmp_path / "c")]
            )
            assert program([*flags, "--dset_dir", str(tmp_path)]) == 1
            err = capsys.readouterr().err
            assert (
                words in err and f"\n    python dataset.py {name} --dset_dir {tmp_path} --download\n" in err
            )
    assert dataset.main(["folder", "--dset_dir", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"dataset.py: no folder {tmp_path / 'none'}\n"


@pytest.mark.parametrize(
    "flags",
    [
        "mnist",
        "",
        "celeba --crop -1",
        "celeba --channels 2",
        "celeba --num_workers -1",
        "celeba --export x.npz",
        "dsprites --crop 3",
        "dsprites --archive x",
        "dsprites --channels 1",
        "celeba --download --archive x",
        "folder --download",
        "celeba --archives x",
    ],
)
def test_flags_of_dataset_py_that_make_no_sense_are_one_line_and_status_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        dataset.parse(flags.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
