"""Which images of folders and archives are read, how they become pixels, and what is left out, counted and named."""

import io

import numpy as np
import pytest
from PIL import Image

from images import FILES, WRITERS, decoded, encoded, grey, photo, prepared, refusal, write_tar, write_zip
from prepare.sets import SETS

# What is read.


@pytest.mark.parametrize("form", WRITERS)
def test_folders_and_archives_give_the_same_rows_in_the_order_of_names(tmp_path, form, capsys):
    hidden = ["x/.thumbnails/a.jpg", "__MACOSX/._a.jpg", ".a.jpg"]
    files = {**FILES, "list.mat": b"x", **dict.fromkeys(hidden, grey(2))}
    (tmp_path / ".cache").mkdir()  # parts above the given folder do not count
    images = prepared(tmp_path, WRITERS[form](tmp_path / ".cache/in", files), workers=3)
    assert (images == [decoded(FILES[name]) for name in sorted(FILES)]).all()
    assert "1 left out: of a kind that is not read (first: 'list.mat')" in capsys.readouterr().out


@pytest.mark.parametrize("crop, box", [(None, None), (148, (15, 35, 163, 183))])
def test_celeba_is_the_whole_frame_and_crop_148_the_centre_square(tmp_path, crop, box):
    source = write_zip(tmp_path / "in.zip", {"a.png": encoded(photo(), "PNG")})
    [image] = prepared(tmp_path, source, crop=crop)
    expected = photo().crop(box).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(image.transpose(1, 2, 0) - np.asarray(expected).astype(int)).max() <= 1


def test_an_image_smaller_than_the_crop_keeps_its_whole_short_side():
    wide = Image.new("L", (120, 60), 0)
    wide.paste(200, (30, 0, 90, 60))
    assert (decoded(encoded(wide, "PNG"), crop=128) == 200).all()


def test_chairs_are_the_centre_400_pixels_in_grey(tmp_path):
    chair = photo(size=(600, 600))
    source = write_tar(tmp_path / "in.tar", {"./a/renders/b.png": encoded(chair, "PNG")})
    [image] = prepared(tmp_path, source, "3dchairs")
    expected = chair.convert("L").crop((100, 100, 500, 500)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(image[0] - np.asarray(expected).astype(int)).max() <= 1 and len(image) == 1


@pytest.mark.parametrize("crop", [0, 170])
def test_jpegs_decoded_small_stay_within_two_grey_levels(crop):
    jpeg = encoded(photo(1, (1200, 900)))
    full = decoded(encoded(Image.open(io.BytesIO(jpeg)), "PNG"), crop).astype(int)
    difference = np.abs(decoded(jpeg, crop) - full).mean()
    assert difference < 2 and (crop or difference > 0)  # at 0 nothing was decoded small


@pytest.mark.parametrize("name", ["celeba", "3dchairs"])
def test_the_usual_layouts_are_found_in_the_data_folder_archives_first(tmp_path, name):
    for i, place in enumerate(reversed(SETS[name].places), 1):
        files = {f"a/{j}.png": grey(j) for j in range(i)}
        write = {".zip": write_zip, ".tar": write_tar}.get((tmp_path / place).suffix, WRITERS["folder"])
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write(tmp_path / place, files)
        (tmp_path / f"{name}_64x64.json").unlink(missing_ok=True)
        assert len(prepared(tmp_path, name=name)) == i


# Kinds of images.


@pytest.mark.parametrize(
    "image, kind, colour",
    [
        (Image.new("L", (70, 70), 77), "PNG", (77, 77, 77)),
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


@pytest.mark.parametrize("kind, tag", [("JPEG", 3), ("JPEG", 6), ("PNG", 6)])
def test_photos_are_turned_as_the_camera_was_held(kind, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    upright = photo(1, size=(256, 192))
    held = upright.transpose(Image.Transpose[{3: "ROTATE_180", 6: "ROTATE_90"}[tag]])
    for crop in (0, 100):
        turned = decoded(encoded(held, kind, exif=exif), crop).astype(int)
        assert abs(turned - decoded(encoded(upright, "PNG"), crop)).mean() < 3


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_of_more_frames_the_first_is_used_and_a_line_says_so(tmp_path, kind, capsys):
    frames = [Image.new("RGB", (64, 64), (10 + 80 * i,) * 3) for i in range(3)]
    stack = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    source = WRITERS["folder"](tmp_path / "in", {f"a.{kind}": stack, "x.png": grey(9)})
    assert np.abs(prepared(tmp_path, source)[0].astype(int) - 10).max() <= 1
    assert f"1 with more frames: the first is used (first: 'a.{kind}')\n" in capsys.readouterr().out


# What is left out.

UNREADABLE = {
    "truncated JPEG": (encoded(photo())[:3000], "cannot be read (OSError)"),
    "truncated PNG": (encoded(photo(), "PNG")[:3000], "cannot be read (OSError)"),
    "empty": (b"", "cannot be read (UnidentifiedImageError)"),
    "EPS": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "cannot be read",
    ),  # would start Ghostscript
    "16 bits": (encoded(Image.fromarray(np.ones((9, 9), np.uint16)), "PNG"), "16-bit or float pixels"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_skipped_counted_and_named(tmp_path, kind, capsys):
    data, reason = UNREADABLE[kind]
    files = {"a.jpg": encoded(photo(1)), "b/bad.jpg": data, "c.jpg": encoded(photo(2)), "d.jpg": data}
    images = prepared(tmp_path, write_zip(tmp_path / "in", files))
    assert (images == [decoded(files[name]) for name in ("a.jpg", "c.jpg")]).all()
    output = capsys.readouterr().out
    assert f"2 skipped: {reason}" in output and "(first: 'b/bad.jpg')" in output


@pytest.mark.parametrize(
    "files, text",
    [
        ({}, "it is empty"),
        ({"a.heic": b"x"}, "1 left out: of a kind that is not read (first: 'a.heic')"),
        ({"a.jpg": b"x"}, "can be read: 1 skipped: cannot be read (UnidentifiedImageError) (first: 'a.jpg')"),
    ],
)
def test_a_source_without_an_image_is_refused_and_leaves_nothing(tmp_path, files, text, capsys):
    source = WRITERS["folder"](tmp_path / "in", files)
    line = refusal(capsys, "celeba", "--archive", source, "--dset_dir", tmp_path / "out")
    assert f"no image in {source}" in line and text in line
    assert list((tmp_path / "out").iterdir()) == []


def test_files_that_are_no_archives_are_refused_by_name(tmp_path, capsys):
    file = tmp_path / "file"
    for data in (
        b"\n<!DOCTYPE html><title>Quota exceeded",
        write_zip(file, FILES).read_bytes()[:-40],
        write_tar(file, FILES).read_bytes()[:9000],  # inside an image
        write_tar(file, FILES, "w:gz").read_bytes(),
    ):
        file.write_bytes(data)
        line = refusal(capsys, "celeba", "--archive", file, "--dset_dir", tmp_path)
        assert f"{file} is cut short, or neither a zip nor an uncompressed tar" in line
    missing = tmp_path / "missing.zip"
    assert str(missing) in refusal(capsys, "celeba", "--archive", missing, "--dset_dir", tmp_path)
