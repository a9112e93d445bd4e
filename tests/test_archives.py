"""What is read of folders and archives, and what is left out, counted and named."""

import io
import os
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


@pytest.mark.parametrize("form", WRITERS)
def test_folders_and_archives_give_the_same_rows_in_the_order_of_names(tmp_path, form):
    images, manifest = prepared(tmp_path, WRITERS[form](tmp_path / "in", FILES), workers=3)
    assert (images == [decoded(FILES[name]) for name in sorted(FILES)]).all()
    assert (manifest["count"], manifest["skipped"]) == (4, {})


def test_celeba_is_the_whole_frame_and_crop_148_the_centre_square(tmp_path):
    image = photo()
    source = write_zip(tmp_path / "in.zip", {"a.png": encoded(image, "PNG")})
    for crop, box in ((None, None), (148, (15, 35, 163, 183))):
        images, _ = prepared(tmp_path, source, crop=crop)
        expected = image.crop(box).resize((64, 64), Image.Resampling.BILINEAR)
        assert np.abs(images[0].transpose(1, 2, 0) - np.asarray(expected).astype(int)).max() <= 1


def test_chairs_are_the_centre_in_grey(tmp_path):
    pixels = np.full((600, 600, 3), 255, np.uint8)
    pixels[100:500, 100:500] = (40, 90, 200)
    source = write_tar(tmp_path / "in.tar", {"a/renders/b.png": encoded(Image.fromarray(pixels), "PNG")})
    images, _ = prepared(tmp_path, source, "3dchairs")
    assert images.shape == (1, 1, 64, 64)
    assert (images == round(0.299 * 40 + 0.587 * 90 + 0.114 * 200)).all()


@pytest.mark.parametrize("crop, box", [(0, None), (148, (15, 35, 163, 183))])
def test_jpegs_decoded_small_stay_within_two_grey_levels(crop, box):
    jpegs = [encoded(photo(i)) for i in range(20)]
    full = [
        Image.open(io.BytesIO(jpeg)).crop(box).resize((64, 64), Image.Resampling.BILINEAR) for jpeg in jpegs
    ]
    small = np.stack([decoded(jpeg, crop).transpose(1, 2, 0) for jpeg in jpegs])
    assert 0 < np.abs(small - np.stack(full).astype(int)).mean() < 2  # at 0 nothing was decoded small


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
    write_folder(tmp_path, {place: grey(9, (600, 600))})
    assert prepared(tmp_path, name=name)[1]["count"] == 1
    write_zip(tmp_path / "img_align_celeba.zip", FILES)  # archives come first
    assert name != "celeba" or prepared(tmp_path, name=name, size=32)[1]["count"] == 4


def test_the_real_sample_and_the_stand_in_are_read(tmp_path, shared):
    for file, count, left_out, crop, channels in (
        ("celeba_sample.zip", 20_000, 0, 0, 3),
        ("rendered_chairs_standin.tar", 7_440, 1, 400, 1),
    ):
        with archives.open_images(shared / "data" / file) as (images, skipped):
            assert (len(images), len(skipped)) == (count, left_out)
            some = dict(list(images.items())[:: count // 40])
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
        (Image.fromarray(np.full((70, 70), 0x8040, np.uint16)), "PNG", (0x80, 0x80, 0x80)),
        (Image.fromarray(np.full((70, 70), 0x8040, np.uint16)), "TIFF", (0x80, 0x80, 0x80)),
    ],
)
def test_images_of_other_modes_are_read(image, kind, colour):
    pixels = decoded(encoded(image, kind))
    assert pixels.shape == (3, 64, 64) and pixels.dtype == np.uint8
    assert np.abs(pixels - np.array(colour)[:, None, None]).max() <= 1
    assert decoded(encoded(image, kind), channels=1).shape == (1, 64, 64)


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("L", (64, 64), level) for level in (10, 20, 30)]
    assert (decoded(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == 10).all()


@pytest.mark.parametrize("bits, kind", [(8, "PNG"), (12, "PNG"), (12, "TIFF"), (16, "PNG")])
def test_images_that_use_some_of_16_bits_keep_their_upper_8_as_a_set(tmp_path, bits, kind, capsys):
    ramp = np.tile(np.arange(64) * (2**bits // 64), (64, 1)).astype(np.uint16)
    deep, dark = (encoded(Image.fromarray(values), kind) for values in (ramp, ramp // 16))
    source = write_zip(
        tmp_path / "in.zip", {f"a.{kind}": deep, "b.png": b"x", f"d.{kind}": dark, "z.png": grey(77)}
    )
    images, manifest = prepared(tmp_path, source, channels=1)
    expected = np.tile(np.arange(64) * 4, (64, 1))
    assert (images[0, 0] == expected).all()
    assert (images[1, 0] == expected // 16).all()  # it was darker, and is
    assert (images[2, 0] == 77).all() and len(images) == 3
    assert manifest["skipped"] == {"not an image of a known kind": [1, "b.png"]}  # once
    assert f"of the {int(ramp.max()).bit_length()} bits in use the upper 8" in capsys.readouterr().out


@pytest.mark.parametrize("bits, count", [(10, 0), (12, 0), (16, 2)])
def test_colours_that_use_few_of_16_bits_are_left_out_and_named_not_taken_for_black(tmp_path, bits, count):
    def png(channels, kind):
        """Pillow writes no such PNG."""
        row = np.repeat(np.arange(64) * 2**bits // 64, channels).astype(">u2").tobytes()
        head = (64).to_bytes(4, "big") * 2 + bytes([16, kind, 0, 0, 0])
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress((b"\0" + row) * 64)), (b"IEND", b"")]
        data = [[len(c).to_bytes(4, "big"), t, c, zlib.crc32(t + c).to_bytes(4, "big")] for t, c in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(sum(data, []))

    files = {"a.png": png(3, 2), "b.png": grey(3), "c.png": png(3, 2)}
    images, manifest = prepared(tmp_path, write_zip(tmp_path / "in", files))
    assert len(images) == 1 + count and (images[count // 2] == 3).all()
    skipped = {"dark colours that use 12 of 16 bits at most: save it with 8": [2, "a.png"]}
    assert manifest["skipped"] == ({} if count else skipped)


def oriented(tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


@pytest.mark.parametrize(
    "kind, tag", [*(("JPEG", tag) for tag in range(1, 9)), ("PNG", 6), ("TIFF", 6), ("WEBP", 6)]
)
def test_photos_are_turned_as_the_camera_says(kind, tag):
    undo = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270".split()
    square = photo(1, size=(128, 128))
    held = square.transpose(Image.Transpose[undo[tag - 2]]) if tag > 1 else square
    turned = decoded(encoded(held, kind, exif=oriented(tag))).astype(int)
    assert abs(turned - decoded(encoded(square, "PNG"))).mean() < 3


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
def test_malformed_exif_costs_no_image_and_no_word(tmp_path, exif, capfd, recwarn):
    files = {f"a.{kind}": encoded(photo(1), kind, exif=exif) for kind in ("JPEG", "PNG")}
    images, manifest = prepared(tmp_path, write_folder(tmp_path / "in", files))
    assert (images == [decoded(encoded(photo(1), kind)) for kind in ("JPEG", "PNG")]).all()
    assert manifest["skipped"] == {} and not recwarn.list and "arn" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "suffix, kind", [(".jfif", "JPEG"), (".JPG", "JPEG"), (".pnm", "PPM"), (".jp2", "JPEG2000")]
)
def test_every_suffix_of_a_kind_that_is_read_counts(tmp_path, suffix, kind):
    source = write_folder(tmp_path / "in", {f"a{suffix}": encoded(photo(), kind)})
    assert prepared(tmp_path, source)[1]["count"] == 1


def test_a_photo_of_200_megapixels_is_read(tmp_path):
    files = {
        "a.jpg": encoded(Image.new("L", (16_320, 12_240), 200)),
        "b.png": encoded(Image.new("L", (6_000, 4_000), 100), "PNG"),
    }
    images, _ = prepared(tmp_path, write_folder(tmp_path / "in", files))
    assert (images[0] == 200).all() and (images[1] == 100).all()


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
        (bomb(), "exceeds limit"),
        (encoded(Image.new("F", (178, 218)), "TIFF"), "floating-point"),
        (encoded(Image.new("L", (100, 300))), "smaller than the crop of 148"),
    ],
    ids=["truncated JPEG", "truncated PNG", "empty", "EPS", "bomb", "float", "small"],
)
def test_what_cannot_be_read_is_skipped_counted_and_named(tmp_path, data, reason, capsys):
    files = {"a.jpg": encoded(photo(1)), "b/bad.jpg": data, "c.jpg": encoded(photo(2))}
    run("celeba", "--archive", write_zip(tmp_path / "in", files), "--dset_dir", tmp_path, "--crop", 148)
    skipped = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped 1 "))
    assert reason in skipped and "(first: 'b/bad.jpg')" in skipped
    images, manifest = prepared(tmp_path)
    assert (images == [decoded(files[name], 148) for name in ("a.jpg", "c.jpg")]).all()
    assert list(manifest["skipped"].values()) == [[1, "b/bad.jpg"]]


@pytest.mark.parametrize(
    "files, text",
    [
        ({}, "no image in"),
        ({"a.heic": b"x"}, "1 of a kind that is not read (first: 'a.heic')"),
        ({"a.jpg": b"x"}, "none of 1 images can be read"),
        ({".a.jpg": FILES["img_align_celeba/000001.jpg"]}, "1 hidden"),
    ],
)
def test_a_source_without_an_image_is_refused_and_leaves_nothing(tmp_path, files, text, capsys):
    assert text in refusal(
        capsys, "celeba", "--archive", write_folder(tmp_path / "in", files), "--dset_dir", tmp_path / "out"
    )
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("form", WRITERS)
def test_hidden_files_and_folders_and_kinds_that_are_not_read_are_left_out_and_named(tmp_path, form):
    hidden = [".ipynb_checkpoints/a.jpg", "x/.thumbnails/a.jpg", "@eaDir/a.jpg", "__MACOSX/._a.jpg", ".a.jpg"]
    hidden += ["x/@eaDir/b/c.png"] if form == "folder" else ["x\\.thumbnails\\c.png", "./@eaDir/c.png"]
    files = {"ok.jpg": grey(1), "a.heic": b"x", "list.mat": b"x", **dict.fromkeys(hidden, grey(2))}
    (tmp_path / ".cache").mkdir()  # parts above the given folder do not count
    images, manifest = prepared(tmp_path / "out", WRITERS[form](tmp_path / ".cache" / "in", files))
    assert len(images) == 1
    counts = {reason: count for reason, (count, _) in manifest["skipped"].items()}
    assert counts == {"hidden": len(hidden), "of a kind that is not read": 2}


@pytest.mark.parametrize("form", [zipfile.ZipFile, tarfile.TarFile])
def test_a_name_that_an_archive_holds_twice_counts_once_and_is_named(tmp_path, form):
    write = write_zip if form is zipfile.ZipFile else write_tar
    names = {"b.png": 1, "a.png": 2, "./a.png": 3, ".//a.png": 4}
    source = write(tmp_path / "in", {name: grey(level) for name, level in names.items()})
    images, manifest = prepared(tmp_path, source)
    assert images[:, 0, 0, 0].tolist() == [4, 1]
    assert manifest["skipped"] == {"there twice: the last counts": [2, "a.png"]}


def test_links_are_followed_but_not_in_circles(tmp_path):
    folder = write_folder(tmp_path / "in", {"ok.jpg": grey(1), "sub/a.jpg": grey(2)})
    other = write_folder(tmp_path / "other", {"b.jpg": grey(3)})
    links = {"linked": other, "zlinked": other, "sub/loop": folder, "sub/up": tmp_path}
    links |= {"sub/itself": folder / "sub", "file.jpg": other / "b.jpg", "nothing.jpg": tmp_path / "gone.jpg"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.jpg")  # opening it would wait for ever
    with archives.open_images(folder) as (images, skipped):
        assert list(images) == ["file.jpg", "linked/b.jpg", "ok.jpg", "sub/a.jpg"]
        assert skipped["not regular files"] == [2, "nothing.jpg"]


def test_files_that_are_no_archives_are_refused_by_name(tmp_path, capsys):
    whole_zip = write_zip(tmp_path / "a.zip", FILES).read_bytes()
    whole_tar = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    header = whole_tar.index(b"img_align_celeba/000040")
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 2**50  # an extended header, which tarfile reads into memory
    for data in (
        b"",
        b"\n<!DOCTYPE html><title>Quota exceeded",
        whole_zip[:-40],
        whole_tar[:9000],  # inside an image
        whole_tar[: header + 100],
        whole_tar[:header],  # before the end mark
        write_tar(tmp_path / "a.tgz", FILES, "w:gz").read_bytes(),
        pax.tobuf(tarfile.GNU_FORMAT) + bytes(10_240),
    ):
        (tmp_path / "file").write_bytes(data)
        line = refusal(capsys, "celeba", "--archive", tmp_path / "file", "--dset_dir", tmp_path)
        assert f"{tmp_path / 'file'} is cut short, or neither a zip nor an uncompressed tar" in line
        assert "\n" not in line
    for name in ("missing.zip", "/dev/null"):
        assert name in refusal(capsys, "celeba", "--archive", tmp_path / name, "--dset_dir", tmp_path)


def test_links_devices_and_names_that_lead_out_of_an_archive_are_left_out(tmp_path):
    types = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    kinds = dict(zip(("sym", "hard", "dev", "fifo"), types))
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name in ("./ok.jpg", "../up.jpg", *kinds):
            info = tarfile.TarInfo(f"{name}.jpg" if name in kinds else name)
            info.type, info.linkname = kinds.get(name, tarfile.REGTYPE), "/etc/passwd"
            info.size = 0 if name in kinds else len(grey(1))
            archive.addfile(info, io.BytesIO(grey(1)))
    source = write_zip(
        tmp_path / "in.zip", dict.fromkeys(("ok.jpg", "a/../../up.jpg", "..\\up.jpg"), grey(1))
    )
    link = zipfile.ZipInfo("sym.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    for file, others in (
        ("in.tar", {"not regular files": [4, "sym.jpg"], "hidden": [1, "../up.jpg"]}),
        ("in.zip", {"not an image of a known kind": [1, "sym.jpg"], "hidden": [2, "a/../../up.jpg"]}),
    ):
        images, manifest = prepared(tmp_path, tmp_path / file)
        assert (images == [decoded(grey(1))]).all() and manifest["skipped"] == others


def test_large_damaged_and_encrypted_members_are_skipped(tmp_path, monkeypatch):
    bmp = {"a.bmp": encoded(photo(), "BMP"), "b.jpg": encoded(photo())}
    whole = write_zip(tmp_path / "whole", bmp, zipfile.ZIP_STORED).read_bytes()
    entry = whole.index(b"PK\1\2")
    for data in (
        whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:],
        whole.replace(len(bmp["a.bmp"]).to_bytes(4, "little"), (5).to_bytes(4, "little")),  # a size that lies
        whole[: entry + 8] + b"\1" + whole[entry + 9 :],  # encrypted
    ):
        (tmp_path / "in").write_bytes(data)
        [(reason, first)] = prepared(tmp_path, tmp_path / "in")[1]["skipped"].items()
        assert first == [1, "a.bmp"] and reason.startswith("not ")
    monkeypatch.setattr(archives, "MAX_BYTES", 20_000)
    for form, write in WRITERS.items():
        skipped = prepared(tmp_path, write(tmp_path / form, bmp))[1]["skipped"]
        assert skipped == {"larger than 20,000 bytes": [1, "a.bmp"]}
