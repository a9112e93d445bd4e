import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset
from prepare import dsprites


def wrong_frames(packed, imgs, latents):
    index = np.ravel_multi_index(latents.T, dsprites.FACTOR_SIZES)
    return (packed[index] != imgs).any(axis=(1, 2)).sum()


def test_some_official_frames_come_out_exactly(dset_dir):
    frames = np.load(Path(__file__).parent / "dsprites_frames.npz")
    assert len(frames["imgs"]) == 12
    assert wrong_frames(dataset.load_packed(dset_dir), frames["imgs"], frames["latents"]) == 0


def test_all_official_frames_come_out_exactly(dset_dir, shared):
    frames = np.load(shared / "data" / "dsprites_frames.npz")
    packed = np.packbits(frames["imgs"], axis=-1)
    assert len(packed) == 320
    assert wrong_frames(dataset.load_packed(dset_dir), packed, frames["latents"]) == 0


def test_orientation_0_and_39_are_one_picture_and_the_set_has_its_size(dset_dir):
    packed = dataset.load_packed(dset_dir)
    assert packed.shape == (737280, 64, 8) and packed.dtype == np.uint8
    grid = packed.reshape(*dsprites.FACTOR_SIZES, 64, 8)
    assert (grid[:, :, 0] == grid[:, :, 39]).all()


def test_the_whole_set_is_drawn_in_under_ten_seconds():
    start = time.process_time()
    dsprites.render()
    assert time.process_time() - start < 10


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "empty"])
def test_a_damaged_cache_is_drawn_again(dset_dir, tmp_path, damage, capsys):
    whole = (dset_dir / "dsprites_64x64_packed.npy").read_bytes()
    cache = tmp_path / "dsprites_64x64_packed.npy"
    middle = len(whole) // 2
    cache.write_bytes(
        {
            "flipped bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "cut short": whole[:middle],
            "empty": b"",
        }[damage]
    )
    dataset.load_packed(tmp_path)
    assert "damaged" in capsys.readouterr().out
    assert cache.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == [cache.name]


def test_a_batch_is_the_unpacked_images_in_the_order_asked_for(dset_dir):
    data = dataset.DSprites(dset_dir)
    indices = torch.tensor([0, 737279, 5, 300_000])
    expected = np.unpackbits(dataset.load_packed(dset_dir)[indices.numpy()], axis=-1)
    batch = data.batch(indices)
    assert batch.dtype == torch.float32 and batch.shape == (4, 1, 64, 64)
    assert (batch[:, 0].numpy() == expected).all()


def test_the_fixed_images_stand_in_the_middle(dset_dir):
    data = dataset.DSprites(dset_dir)
    indices = torch.tensor(list(data.fixed_images.values()))
    x, one_scale_smaller = data.batch(indices)[:, 0], data.batch(indices - 40 * 32 * 32)[:, 0]
    assert list(data.fixed_images) == ["square", "ellipse", "heart"]
    assert (x.sum(dim=(1, 2)) > 1.1 * one_scale_smaller.sum(dim=(1, 2))).all()
    for image in x:
        centre = image.nonzero().float().mean(dim=0)
        assert (centre - 32).abs().max() < 2.5  # a heart is heavier above
