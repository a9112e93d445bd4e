"""Which images of folders and archives are read, how they become pixels, and what is left out, counted and named."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from images import (
    FILES,
    WRITERS,
    decoded,
    encoded,
    grey,
    photo,
    prepared,
    refusal,
    run,
    write_folder,
    write_tar,
    write_zip,
)
from prepare.images import make_array, open_images, read_image
from prepare.sets import SETS
from utils import UserError

# What is read.


@pytest.mark.parametrize("form", WRITERS)
def test_folders_and_archives_give_the_same_rows_in_the_order_of_names(tmp_path, form):
    images, manifest = prepared(tmp_path, WRITERS[form](tmp_path / "in", FILES), workers=3)
    assert (images == [decoded(FILES[name]) for name in sorted(FILES)]).all()
    assert (manifest["count"], manifest["skipped"]) == (4, {})


@pytest.mark.parametrize("crop, box", [(None, None), (148, (15, 35, 163, 183))])
def test_celeba_is_the_whole_frame_and_crop_148_the_centre_square(tmp_path, crop, box):
    source = write_zip(tmp_path / "in.zip", {"a.png": encoded(photo(), "PNG")})
    images, _ = prepared(tmp_path, source, crop=crop)
    expected = photo().crop(box).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(images[0].transpose(1, 2, 0) - np.asarray(expected).astype(int)).max() <= 1


def test_chairs_are_the_centre_in_grey(tmp_path):
    pixels = np.full((600, 600, 3), 255, np.uint8)
    pixels[100:500, 100:500] = (40, 90, 200)
    source = write_tar(tmp_path / "in.tar", {"a/renders/b.png": encoded(Image.fromarray(pixels), "PNG")})
    images, _ = prepared(tmp_path, source, "3dchairs")
    assert images.shape == (1, 1, 64, 64)
    assert (images == round(0.299 * 40 + 0.587 * 90 + 0.114 * 200)).all()


@pytest.mark.parametrize("size", [(178, 218), (1200, 900)])
@pytest.mark.parametrize("crop", [0, 170])
def test_jpegs_decoded_small_stay_within_two_grey_levels(size, crop):
    jpeg = encoded(photo(1, size))
    full = decoded(encoded(Image.open(io.BytesIO(jpeg)), "PNG"), crop).astype(int)
    difference = np.abs(decoded(jpeg, crop) - full).mean()
    assert difference < 2 and (crop or difference > 0)  # at 0 nothing was decoded small


def test_an_image_smaller_than_the_crop_keeps_its_whole_short_side():
    wide = Image.new("L", (120, 60), 0)
    wide.paste(200, (30, 0, 90, 60))
    assert (decoded(encoded(wide, "PNG"), crop=128) == 200).all()


@pytest.mark.parametrize("name", ["celeba", "3dchairs"])
def test_the_usual_layouts_are_found_in_the_data_folder_archives_first(tmp_path, name):
    for i, place in enumerate(reversed(SETS[name].places), 1):
        files = {f"a/{j}.png": grey(j) for j in range(i)}
        write = {".zip": write_zip, ".tar": write_tar}.get((tmp_path / place).suffix, write_folder)
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write(tmp_path / place, files)
        (tmp_path / f"{name}_64x64.json").unlink(missing_ok=True)
        assert prepared(tmp_path, name=name)[1]["count"] == i


def test_the_real_sample_and_the_stand_in_are_read(tmp_path, shared):
    for file, count, crop, channels in (
        ("celeba_sample.zip", 20_000, 0, 3),
        ("rendered_chairs_standin.tar", 7_440, 400, 1),
    ):
        with open_images(shared / "data" / file) as (files, _):
            some = files[:: count // 40]
            assert len(files) == count
            assert make_array(tmp_path / "a.npy", some, 64, crop, channels, 2)["count"] == 40
        pixels = np.load(tmp_path / "a.npy")
        assert 20 < pixels.std() and 60 < pixels.mean() < 252


# Kinds of images.


@pytest.mark.parametrize(
    "image, kind, colour",
    [
        (Image.new("L", (70, 70), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (70, 70), 1), "PNG", (255, 255, 255)),
        (Image.new("CMYK", (70, 70), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.new("RGB", (70, 70), (51, 102, 204)).convert("P"), "PNG", (51, 102, 204)),
        (Image.new("RGBA", (70, 70), (10, 20, 30, 0)), "PNG", (255, 255, 255)),
        (Image.new("LA", (70, 70), (10, 0)), "PNG", (255, 255, 255)),
    ],
)
def test_images_of_other_modes_are_read_and_transparency_becomes_white(image, kind, colour):
    pixels = decoded(encoded(image, kind))
    assert pixels.shape == (3, 64, 64) and pixels.dtype == np.uint8
    assert np.abs(pixels - np.array(colour)[:, None, None]).max() <= 1
    assert decoded(encoded(image, kind), channels=1).shape == (1, 64, 64)


@pytest.mark.parametrize("kind, tag", [("JPEG", 3), ("JPEG", 6), ("PNG", 6), ("TIFF", 8)])
def test_photos_are_turned_as_the_camera_was_held(kind, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    upright = photo(1, size=(256, 192))
    held = upright.transpose(Image.Transpose[{3: "ROTATE_180", 6: "ROTATE_90", 8: "ROTATE_270"}[tag]])
    for crop in (0, 100):
        turned = decoded(encoded(held, kind, exif=exif), crop).astype(int)
        assert abs(turned - decoded(encoded(upright, "PNG"), crop)).mean() < 3


@pytest.mark.parametrize(
    "kind, name, count", [("GIF", "a.gif", 3), ("TIFF", "stack.tif", 30), ("WEBP", "w.webp", 2)]
)
def test_of_more_frames_the_first_is_used_and_a_line_says_so(tmp_path, kind, name, count, capsys):
    frames = [Image.new("L", (64, 64), 10 + 8 * i).convert("RGB") for i in range(count)]
    stack = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    images, _ = prepared(
        tmp_path, write_folder(tmp_path / "in", {name: stack, "x.png": grey(9)}), name="folder"
    )
    assert np.abs(images[0].astype(int) - 10).max() <= 1
    line = f"1 file has more frames; the first is used (first: {name!r}, {count})\n"
    assert line in capsys.readouterr().out


def test_one_image_file_can_be_read_alone(tmp_path):
    write_folder(tmp_path, {"a.png": grey(7), "b.png": b"x"})
    assert (read_image(tmp_path / "a.png", 32, 1) == np.full((1, 32, 32), 7, np.uint8)).all()
    for name, why in (("b.png", "b.png: not an image"), ("none.png", "there is no image file .*none.png")):
        with pytest.raises(UserError, match=why):
            read_image(tmp_path / name, 32, 1)


# What is left out.


@pytest.mark.parametrize(
    "data, reason",
    [
        (encoded(photo())[:3000], "cut short"),
        (encoded(photo(), "PNG")[:3000], "cut short"),
        (b"", "not an image of a known kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # would start Ghostscript
        (encoded(Image.new("F", (178, 218)), "TIFF"), "16-bit or float pixels: save it with 8 bits"),
        (
            encoded(Image.fromarray(np.ones((9, 9), np.uint16)), "PNG"),
            "16-bit or float pixels: save it with 8 bits",
        ),
    ],
    ids=["truncated JPEG", "truncated PNG", "empty", "EPS", "float", "16 bits"],
)
def test_what_cannot_be_read_is_skipped_counted_and_named(tmp_path, data, reason, capsys):
    files = {"a.jpg": encoded(photo(1)), "b/bad.jpg": data, "c.jpg": encoded(photo(2)), "d.jpg": data}
    run("celeba", "--archive", write_zip(tmp_path / "in", files), "--dset_dir", tmp_path)
    skipped = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped 2 "))
    assert reason in skipped and "(first: 'b/bad.jpg')" in skipped
    images, manifest = prepared(tmp_path)
    assert (images == [decoded(files[name]) for name in ("a.jpg", "c.jpg")]).all()
    assert list(manifest["skipped"].values()) == [[2, "b/bad.jpg"]]


def test_a_damaged_member_of_a_zip_and_a_link_to_nowhere_are_skipped(tmp_path):
    write_zip(tmp_path / "in", {"a.jpg": encoded(photo()), "b.jpg": encoded(photo())})
    data = bytearray((tmp_path / "in").read_bytes())
    data[3000] ^= 1
    (tmp_path / "in").write_bytes(data)
    [(reason, first)] = prepared(tmp_path, tmp_path / "in")[1]["skipped"].items()
    assert first == [1, "a.jpg"] and reason.startswith("not decodable")
    folder = write_folder(tmp_path / "photos", {"a.png": grey(1)})
    (folder / "b.png").symlink_to(tmp_path / "gone.png")
    assert prepared(folder, name="folder")[1]["skipped"] == {
        "not decodable (FileNotFoundError)": [1, "b.png"]
    }


@pytest.mark.parametrize(
    "files, text",
    [
        ({}, "no image in"),
        ({"a.heic": b"x"}, "1 of a kind that is not read (first: 'a.heic')"),
        ({"a.jpg": b"x"}, "none of 1 images can be read"),
        ({".a.jpg": grey(1)}, "1 hidden"),
    ],
)
def test_a_source_without_an_image_is_refused_and_leaves_nothing(tmp_path, files, text, capsys):
    source = write_folder(tmp_path / "in", files)
    assert text in refusal(capsys, "celeba", "--archive", source, "--dset_dir", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("form", WRITERS)
def test_hidden_files_and_kinds_that_are_not_read_are_left_out_and_named(tmp_path, form):
    hidden = [".ipynb_checkpoints/a.jpg", "x/.thumbnails/a.jpg", "__MACOSX/._a.jpg", ".a.jpg"]
    files = {"ok.jpg": grey(1), "a.heic": b"x", "list.mat": b"x", **dict.fromkeys(hidden, grey(2))}
    (tmp_path / ".cache").mkdir()  # parts above the given folder do not count
    images, manifest = prepared(tmp_path / "out", WRITERS[form](tmp_path / ".cache" / "in", files))
    assert len(images) == 1
    counts = {reason: count for reason, (count, _) in manifest["skipped"].items()}
    assert counts == {"hidden": len(hidden), "of a kind that is not read": 2}


def test_files_that_are_no_archives_are_refused_by_name(tmp_path, capsys):
    whole_zip = write_zip(tmp_path / "a.zip", FILES).read_bytes()
    whole_tar = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    for data in (
        b"",
        b"\n<!DOCTYPE html><title>Quota exceeded",
        whole_zip[:-40],
        whole_tar[:9000],  # inside an image
        write_tar(tmp_path / "a.tgz", FILES, "w:gz").read_bytes(),
    ):
        (tmp_path / "file").write_bytes(data)
        line = refusal(capsys, "celeba", "--archive", tmp_path / "file", "--dset_dir", tmp_path)
        assert f"{tmp_path / 'file'} is cut short, or neither a zip nor an uncompressed tar" in line
        assert "\n" not in line
    missing = tmp_path / "missing.zip"
    assert str(missing) in refusal(capsys, "celeba", "--archive", missing, "--dset_dir", tmp_path)


def test_no_name_in_an_archive_is_used_as_a_path(tmp_path):
    secret = encoded(Image.new("L", (64, 64), 99), "PNG")
    (tmp_path / "up.png").write_bytes(secret)
    names = {"ok.png": 1, "../up.png": 2, str(tmp_path / "up.png"): 3}
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name, level in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(grey(level))
            archive.addfile(info, io.BytesIO(grey(level)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "up.png")
        archive.addfile(link)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, level in names.items():
            archive.writestr(name, grey(level))
    for file in ("in.tar", "in.zip"):
        images, _ = prepared(tmp_path / "out", tmp_path / file)
        assert sorted(images[:, 0, 0, 0]) == [1, 3]  # of the archive, and not 99
    assert (tmp_path / "up.png").read_bytes() == secret
