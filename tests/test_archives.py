"""What is read of folders and archives, and what is left out, counted and named."""

import io
import json
import os
import stat
import tarfile
import zipfile
import zlib

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
from prepare import archives
from prepare.images import make_array

# What is read.


@pytest.mark.parametrize("form", ["folder", "zip", "stored zip", "tar", "tar.gz", "tar.xz"])
def test_folders_and_archives_of_all_kinds_give_the_same_rows_in_the_order_of_names(tmp_path, form):
    source = {
        "folder": lambda: write_folder(tmp_path / "in", FILES),
        "zip": lambda: write_zip(tmp_path / "in", FILES),
        "stored zip": lambda: write_zip(tmp_path / "in", FILES, zipfile.ZIP_STORED),
    }.get(form, lambda: write_tar(tmp_path / "in", FILES, "w:" + form[4:]))()
    run("celeba", "--archive", source, "--dset_dir", tmp_path / "out")  # in threads
    expected = [decoded(FILES[name]) for name in sorted(FILES)]
    assert (np.load(tmp_path / "out" / "celeba_64x64.npy") == expected).all()
    images, manifest = prepared(tmp_path / "alone", source)  # without
    assert (images == expected).all() and (manifest["count"], manifest["skipped"]) == (4, {})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"celeba_64x64.npy", "celeba_64x64.json"}


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
    small = np.stack([decoded(data, crop).transpose(1, 2, 0) for data in jpegs])
    difference = np.abs(small - np.stack(full).astype(int)).mean()
    assert difference > 0  # else nothing was decoded small
    return difference


@pytest.mark.parametrize(
    "name, place",
    [
        ("celeba", "CelebA/img_align_celeba/000001.jpg"),
        ("celeba", "celeba/img_align_celeba/000001.jpg"),  # torchvision's
        ("3dchairs", "3DChairs/images/1.png"),
        ("3dchairs", "rendered_chairs/1a6f/renders/image_000.png"),
    ],
)
def test_the_usual_layouts_are_found_in_the_data_folder(tmp_path, name, place):
    image = photo(size=(600, 600))
    write_folder(tmp_path, {place: encoded(image, "JPEG" if name == "celeba" else "PNG")})
    assert prepared(tmp_path, name=name)[1]["count"] == 1
    write_zip(tmp_path / "img_align_celeba.zip", FILES)  # archives come first
    assert name != "celeba" or prepared(tmp_path / ".", name=name, size=32)[1]["count"] == 4


def test_the_real_sample_and_the_stand_in_are_read(tmp_path, shared):
    for file, count, skipped, crop, channels in (
        ("celeba_sample.zip", 20_000, 0, 0, 3),
        ("rendered_chairs_standin.tar", 7_440, 1, 400, 1),
    ):
        with archives.Source(shared / "data" / file) as source:
            assert (len(source.images), len(source.skipped)) == (count, skipped)
            source.images = dict(list(source.images.items())[:: count // 40])
            assert make_array(tmp_path / "a.npy", source, 64, crop, channels, 2)[0] == 40
        images = np.load(tmp_path / "a.npy")
        assert 20 < images.std() and 60 < images.mean() < 252


# Kinds of images.


def animation():
    return encoded(photo(1), "GIF", save_all=True, append_images=[photo(2), photo(3)])


@pytest.mark.parametrize(
    "data, pixel",
    [
        (
            encoded(photo(1, mode="L")),
            lambda: decoded(encoded(photo(1, mode="L")), 0, 1),
        ),  # all channels alike
        (encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0))), lambda: [[[254]], [[0]], [[0]]]),
        (encoded(Image.fromarray(np.full((64, 64), 0x8040, np.uint16)), "PNG"), lambda: 0x80),
        (encoded(Image.new("RGBA", (64, 64), (10, 20, 30, 0)), "PNG"), lambda: 255),
        (animation(), lambda: decoded(encoded(Image.open(io.BytesIO(animation())).convert("RGB"), "PNG"))),
        (
            encoded(photo(1, mode="P"), "PNG"),
            lambda: decoded(encoded(photo(1, mode="P").convert("RGB"), "PNG")),
        ),
        (
            encoded(photo(1, mode="1"), "PNG"),
            lambda: decoded(encoded(photo(1, mode="1").convert("L"), "PNG")),
        ),
    ],
    ids=["grey", "CMYK", "16-bit", "transparent", "animated", "palette", "1-bit"],
)
def test_images_of_other_modes_are_read(data, pixel):
    images = decoded(data)
    assert images.shape == (3, 64, 64) and images.dtype == np.uint8
    assert np.abs(images.astype(int) - pixel()).max() <= 1
    assert decoded(data, 0, 1).shape == (1, 64, 64)


def deep(values, kind="PNG"):
    return encoded(Image.fromarray(np.asarray(values, np.uint16)), kind)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_images_that_use_some_of_16_bits_keep_their_upper_8_as_a_set(tmp_path, bits, kind, capsys):
    ramp = np.tile(np.arange(64) * (2**bits // 64), (64, 1))
    files = {f"a.{kind}": deep(ramp, kind), f"dark.{kind}": deep(ramp // 16, kind), "z.png": grey(77)}
    images, _ = prepared(tmp_path, write_zip(tmp_path / "in.zip", files), channels=1)
    expected = np.tile(np.arange(64) * 4, (64, 1))
    assert (images[0, 0] == expected).all()
    assert (images[1, 0] == expected // 16).all()  # it was darker, and is
    assert (images[2, 0] == 77).all()
    top = int(ramp.max()).bit_length()
    assert f"of the {top} bits in use the upper 8" in capsys.readouterr().out


def oriented(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    "kind, tag", [*(("JPEG", tag) for tag in range(1, 9)), ("PNG", 6), ("TIFF", 6), ("WEBP", 6)]
)
def test_photos_are_turned_as_the_camera_says(kind, tag):
    square = photo(1, size=(128, 128))
    there = [
        "",
        "FLIP_LEFT_RIGHT",
        "ROTATE_180",
        "FLIP_TOP_BOTTOM",
        "TRANSPOSE",
        "ROTATE_90",
        "TRANSVERSE",
        "ROTATE_270",
    ]
    held = square.transpose(Image.Transpose[there[tag - 1]]) if tag > 1 else square
    turned = decoded(encoded(held, kind, exif=oriented(tag))).astype(int)
    assert abs(turned - decoded(encoded(square, "PNG"))).mean() < 3


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage" * 9,
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09",
        b"Exif\0\0" + oriented(6).tobytes()[6:-9],
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\x08\0\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x0c\0\x01\0\0\0\x08\0\0\0\0\0\0\0",
    ],
    ids=["garbage", "cut", "half", "long text", "wrong type"],
)
def test_malformed_exif_costs_no_image_and_no_word(tmp_path, exif, form, capfd, recwarn):
    name = f"a.{form}"
    source = write_folder(tmp_path / "in", {name: encoded(photo(1), form, exif=exif)})
    images, manifest = prepared(tmp_path, source)
    assert (images[0] == decoded(encoded(photo(1), form))).all() and manifest["skipped"] == {}
    assert not recwarn.list and "arn" not in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".pnm", ".tga", ".jp2", ".dib"])
def test_every_suffix_of_a_kind_that_is_read_counts(tmp_path, suffix):
    kind = {".pnm": "PPM", ".tga": "TGA", ".jp2": "JPEG2000", ".dib": "DIB"}.get(suffix, "JPEG")
    source = write_folder(tmp_path / "in", {f"a{suffix}": encoded(photo(), kind)})
    assert prepared(tmp_path, source)[1]["count"] == 1


def test_a_photo_of_200_megapixels_is_read(tmp_path):
    jpeg = encoded(Image.new("L", (16_320, 12_240), 200))
    assert (prepared(tmp_path, write_folder(tmp_path / "in", {"a.jpg": jpeg}))[0] == 200).all()
    png = encoded(Image.new("L", (6_000, 4_000), 100), "PNG")
    assert (prepared(tmp_path, write_folder(tmp_path / "in2", {"a.png": png}))[0] == 100).all()


# What is left out.


def bomb():
    """A PNG of 2,800 bytes that says it has 9 GB of pixels."""
    data = bytearray(encoded(Image.new("L", (64, 64)), "PNG"))
    data[16:24] = (97_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "data, reason",
    [
        (encoded(photo())[:3000], "cut short"),
        (encoded(photo(), "PNG")[:3000], "cut short"),
        (b"", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # would start Ghostscript
        (bomb(), "more than 134,217,728 pixels to decode"),
        (encoded(Image.new("F", (178, 218)), "TIFF"), "floating-point"),
        (encoded(Image.new("L", (100, 300))), "smaller than the crop of 148"),
    ],
    ids=["truncated JPEG", "truncated PNG", "empty", "EPS", "bomb", "float", "small"],
)
@pytest.mark.parametrize("form", WRITERS)
def test_what_cannot_be_read_is_skipped_counted_and_named(tmp_path, data, reason, form, capsys):
    files = {"a.jpg": encoded(photo(1)), "b/bad.jpg": data, "c.jpg": encoded(photo(2))}
    source, out = WRITERS[form](tmp_path / "in", files), tmp_path / "out"
    run("celeba", "--archive", source, "--dset_dir", out, "--crop", 148)
    output = capsys.readouterr().out
    assert f"skipped 1 {reason}" in output and "(first: 'b/bad.jpg')" in output
    assert (
        np.load(out / "celeba_64x64.npy") == [decoded(files[name], 148) for name in ("a.jpg", "c.jpg")]
    ).all()
    [(why, found)] = json.loads((out / "celeba_64x64.json").read_text())["skipped"].items()
    assert reason in why and found == [1, "b/bad.jpg"]


@pytest.mark.parametrize("form", WRITERS)
def test_a_source_without_an_image_is_refused_and_leaves_nothing(tmp_path, form, capsys):
    for i, (files, text) in enumerate(
        (
            ({}, "no image in"),
            ({"a.txt": b"x", "a.heic": b"x"}, "no image in"),
            ({"a.jpg": b"x"}, "no image remains"),
            ({".a.jpg": FILES["img_align_celeba/000001.jpg"]}, "1 hidden"),
        )
    ):
        source = WRITERS[form](tmp_path / f"{i}", files)
        line = refusal(capsys, "celeba", "--archive", source, "--dset_dir", tmp_path / "out")
        assert text in line and str(source) in line
        assert list((tmp_path / "out").glob("*")) == list((tmp_path / "out").glob(".*")) == []


@pytest.mark.parametrize("form", WRITERS)
def test_hidden_files_and_folders_and_kinds_that_are_not_read_are_left_out_and_named(tmp_path, form):
    jpeg = encoded(photo())
    hidden = [
        ".ipynb_checkpoints/a.jpg",
        "x/.thumbnails/a.jpg",
        "@eaDir/a.jpg",
        "__MACOSX/._a.jpg",
        ".a.jpg",
        "x/@eaDir/b/c.png",
    ]
    files = {"ok.jpg": jpeg, "a.heic": b"x", "list.mat": b"x", **dict.fromkeys(hidden, jpeg)}
    home = tmp_path / ".cache"  # parts above the given folder do not count
    home.mkdir()
    images, manifest = prepared(tmp_path / "out", WRITERS[form](home / "in", files))
    assert len(images) == 1
    assert {reason: count for reason, (count, _) in manifest["skipped"].items()} == {
        "hidden": len(hidden),
        "of a kind that is not read": 2,
    }


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    folder = write_folder(tmp_path / "in", {"ok.jpg": encoded(photo()), "sub/a.jpg": encoded(photo(1))})
    other = write_folder(tmp_path / "other", {"b.jpg": encoded(photo(2))})
    for name, target in (
        ("linked", other),
        ("zlinked", other),  # the same again
        ("sub/loop", folder),
        ("sub/up", tmp_path),
        ("sub/itself", folder / "sub"),
    ):
        (folder / name).symlink_to(target)
    (folder / "file.jpg").symlink_to(other / "b.jpg")
    (folder / "nothing.jpg").symlink_to("gone.jpg")
    os.mkfifo(folder / "pipe.jpg")  # opening it would wait for ever
    with archives.Source(folder) as source:
        assert list(source.images) == ["file.jpg", "linked/b.jpg", "ok.jpg", "sub/a.jpg"]
        assert sum(count for count, _ in source.skipped.values()) == 2


def test_files_that_are_no_archives_are_refused_by_name(tmp_path, capsys):
    whole_zip = write_zip(tmp_path / "a.zip", FILES).read_bytes()
    whole_tar = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    packed = write_tar(tmp_path / "a.tgz", FILES, "w:gz").read_bytes()
    header = whole_tar.index(b"img_align_celeba/000040")
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 2**50  # an extended header, which tarfile reads into memory
    for data, text in (
        (b"hello", "is no folder, zip or tar"),
        (b"", "is no folder, zip or tar"),
        (b"\n<!DOCTYPE html><title>Quota exceeded", "is no folder, zip or tar"),
        (b"\x1f\x8bxx", "cut short"),
        (whole_zip[:-40], "is no folder, zip or tar"),
        (whole_tar[:9000], "cut short"),  # inside an image
        (whole_tar[: header + 100], "cut short"),
        (whole_tar[:header], "cut short"),  # before the end mark
        (packed[:-900], "cut short"),
        (pax.tobuf(tarfile.GNU_FORMAT) + bytes(10_240), "cannot be read"),
    ):
        (tmp_path / "file").write_bytes(data)
        line = refusal(capsys, "celeba", "--archive", tmp_path / "file", "--dset_dir", tmp_path)
        assert text in line and str(tmp_path / "file") in line and "\n" not in line
    for name in ("missing.zip", "/dev/null"):
        assert name in refusal(capsys, "celeba", "--archive", tmp_path / name, "--dset_dir", tmp_path)


def test_only_regular_members_with_names_inside_the_archive_count(tmp_path):
    jpeg = FILES["img_align_celeba/000001.jpg"]
    kinds = {
        "sym": tarfile.SYMTYPE,
        "hard": tarfile.LNKTYPE,
        "dev": tarfile.CHRTYPE,
        "fifo": tarfile.FIFOTYPE,
    }
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name in ("./ok.jpg", "../up.jpg", "/abs.jpg", *kinds):
            info = tarfile.TarInfo(name if name not in kinds else f"{name}.jpg")
            info.type, info.linkname = kinds.get(name, tarfile.REGTYPE), "/etc/passwd"
            info.size = 0 if name in kinds else len(jpeg)
            archive.addfile(info, io.BytesIO(jpeg))
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, kind in (
            ("ok.jpg", stat.S_IFREG),
            ("a/../../up.jpg", 0),
            ("/abs.jpg", 0),
            ("sym.jpg", stat.S_IFLNK),
            ("..\\up.jpg", 0),
        ):
            info = zipfile.ZipInfo(name)
            info.external_attr = kind << 16
            archive.writestr(info, jpeg)
    for file, links, outside in (("in.tar", 4, 2), ("in.zip", 1, 3)):
        images, manifest = prepared(tmp_path, tmp_path / file)
        assert (images == [decoded(jpeg)]).all()
        counts = {reason: found[0] for reason, found in manifest["skipped"].items()}
        assert counts == {"not regular files": links, "with a name that leads out of the archive": outside}


def test_large_damaged_and_encrypted_members_are_skipped(tmp_path, monkeypatch):
    small, huge = encoded(photo()), bytes(20_000)
    files = {"a.jpg": huge, "b.jpg": small}

    def skipped(source):
        return prepared(tmp_path, source)[1]["skipped"]

    whole = write_zip(tmp_path / "lie", files).read_bytes()
    (tmp_path / "lie").write_bytes(whole.replace((20_000).to_bytes(4, "little"), (5).to_bytes(4, "little")))
    assert skipped(tmp_path / "lie") == {"damaged in the zip": [1, "a.jpg"]}
    bmp = {"a.bmp": encoded(photo(), "BMP"), "b.jpg": small}
    whole = write_zip(tmp_path / "flipped", bmp, zipfile.ZIP_STORED).read_bytes()
    (tmp_path / "flipped").write_bytes(whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:])
    assert skipped(tmp_path / "flipped") == {"damaged in the zip": [1, "a.bmp"]}
    whole = write_zip(tmp_path / "locked", files).read_bytes()
    entry = whole.index(b"PK\1\2")
    (tmp_path / "locked").write_bytes(whole[: entry + 8] + b"\1" + whole[entry + 9 :])
    assert skipped(tmp_path / "locked") == {"encrypted": [1, "a.jpg"]}
    assert skipped(write_zip(tmp_path / "bz2", {"a.jpg": small, "b.jpg": small}, zipfile.ZIP_STORED)) == {}
    monkeypatch.setattr(archives, "MOST_BYTES", 19_999)
    assert len(small) < 19_999
    for form, write in WRITERS.items():
        assert skipped(write(tmp_path / form, files)) == {"larger than 19,999 bytes": [1, "a.jpg"]}
