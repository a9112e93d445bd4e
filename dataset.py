"""Data sets as one object: len(), channels, distribution, factor sizes and batch(indices)."""
import os
import zlib
from pathlib import Path

import numpy as np
import torch

import dsprites
from utils import UserError, atomic_file

DATASETS = ("dsprites", "celeba", "3dchairs")


def return_data(args, device="cpu"):
    """The data set of args.dataset, from or into the folder args.dset_dir.

    Returns an object with
        len()          number of images
        channels       1 or 3
        distribution   of p(x|z): "bernoulli" or "gaussian"
        factor_names   of the known factors
        factor_sizes   sizes of the grid of known factors, last one fastest; None if unknown
        fixed_images   {name: index} of images whose traversals tell something
        batch(indices) int64 (B,) -> float32 (B, C, 64, 64) in [0, 1] on device
    """
    if args.dataset != "dsprites":
        raise UserError(f"--dataset {args.dataset} cannot be prepared yet: use --dataset dsprites")
    return DSprites(args.dset_dir, device)


class DSprites:
    """dSprites, a bit a pixel: 377 MB, and 32 KB of it are read for a batch of 64.

    On the CPU the cache file is memory-mapped; on another device the packed set lives there.
    """
    channels = 1
    distribution = "bernoulli"
    factor_names = dsprites.FACTOR_NAMES
    factor_sizes = dsprites.FACTOR_SIZES
    # The largest of each shape, upright, in the middle.
    fixed_images = {shape: int(np.ravel_multi_index((i, 5, 0, 16, 16), dsprites.FACTOR_SIZES))
                    for i, shape in enumerate(dsprites.SHAPES)}

    def __init__(self, dset_dir, device="cpu"):
        self.packed = torch.from_numpy(load_packed(dset_dir)).to(device)  # N, 64, 8 uint8
        self.shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)

    def __len__(self):
        return len(self.packed)

    def batch(self, indices):
        rows = self.packed[indices.to(self.packed.device)]   # B, 64, 8 uint8
        pixels = (rows[..., None] >> self.shifts) & 1        # B, 64, 8, 8
        return pixels.float().view(len(indices), 1, 64, 64)


def load_packed(dset_dir):
    """The drawn set, uint8 (737280, 64, 8), memory-mapped from its cache, which is made if need be."""
    path = Path(dset_dir) / "dsprites_64x64_packed.npy"
    try:
        if not path.exists():
            print(f"drawing dSprites into {path} (377 MB, a few seconds)", flush=True)
        elif (packed := map_cache(path)) is not None:
            return packed
        else:
            print(f"{path} is damaged: drawing dSprites again", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, writer=os.getpid()) as file:
            np.save(file, dsprites.render())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    packed = map_cache(path)
    if packed is None:
        raise UserError(f"{path} differs from the reference drawing: please report machine and numpy version")
    return packed


def map_cache(path):
    """Maps the cached set into memory, or returns None if its checksum is not that of the set."""
    try:
        packed = np.load(path, mmap_mode="c")  # "c": torch wants it writable; the file stays as it is
    except (ValueError, EOFError):
        return None
    whole = packed.dtype == np.uint8 and packed.shape == (dsprites.COUNT, 64, 8)
    return packed if whole and zlib.crc32(packed) == dsprites.CRC32 else None
