"""Data sets as training sees them: number of images, channels, known factors and batch(indices).

prepare/ makes them; prepare/sets.py has the table of data sets.
"""

import numpy as np
import torch

from prepare import dsprites
from prepare.sets import find_dsprites, find_images
from utils import UserError


def return_data(args, device="cpu"):
    """Return the data set args.dataset, prepared in the folder args.dset_dir if need be: an object with

    len()           number of images
    channels        1 or 3
    fingerprint     a text that changes when a pixel of the set does
    factor_names    of the known factors; None if unknown
    factor_sizes    sizes of the grid of known factors, last one fastest; None if unknown
    factor_roles    what each factor is, for pictures: "shape", "scale", "rotation", "x", "y", or None; None if unknown
    seed_images     {name: index} of images worth a traversal
    batch(indices)  int64 (B,) -> float32 (B, C, size, size) in [0, 1] on device
    """
    size = args.image_size
    if args.dataset == "dsprites":
        if size != 64:
            raise UserError(f"dSprites is 64x64: a network for {size}x{size} pixels needs another data set")
        return DSprites(*find_dsprites(args.dset_dir), device)
    return Images(*find_images(args.dataset, args.dset_dir, size, args.num_workers), device)


class DSprites:
    """dSprites, a bit a pixel: 377 MB, of which a batch of 64 reads 32 KB.

    On the CPU the file is memory-mapped; on another device the packed set lives there.
    """

    channels = 1
    factor_names = dsprites.FACTOR_NAMES
    factor_sizes = dsprites.FACTOR_SIZES
    factor_roles = ("shape", "scale", "rotation", "x", "y")
    # The largest of each shape, upright, in the middle.
    seed_images = {
        shape: int(np.ravel_multi_index((i, 5, 0, 16, 16), dsprites.FACTOR_SIZES))
        for i, shape in enumerate(dsprites.SHAPES)
    }

    def __init__(self, packed, fingerprint, device="cpu"):
        self.packed = torch.from_numpy(packed).to(device)  # N, 64, 8 uint8
        self.shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
        self.fingerprint = fingerprint

    def __len__(self):
        return len(self.packed)

    def batch(self, indices):
        rows = self.packed[indices.to(self.packed.device)]  # B, 64, 8 uint8
        pixels = (rows[..., None] >> self.shifts) & 1  # B, 64, 8, 8
        return pixels.float().view(len(indices), 1, 64, 64)


class Images:
    """A prepared set of images, 12 KB each in colour: on the CPU memory-mapped, and read as batches need it.

    On another device the set lives there if it leaves half of the memory free, else batches go there.
    """

    factor_names = factor_sizes = factor_roles = None
    seed_images = {}

    def __init__(self, images, fingerprint, device="cpu"):
        self.images = torch.from_numpy(images)  # N, C, size, size uint8
        self.channels, self.fingerprint, self.device = images.shape[1], fingerprint, torch.device(device)
        if self.device.type == "cuda" and self.images.nbytes < torch.cuda.mem_get_info(self.device)[0] / 2:
            self.images = self.images.to(self.device)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        rows = self.images.index_select(0, indices.to(self.images.device))  # faster than [indices]
        return rows.to(self.device).float().div_(255)  # B, C, size, size


def epoch_order(seed, epoch, n):
    """The order of n images in an epoch: int64 (n,), a function of its arguments alone."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


class Batches:
    """batches[i]: indices, int64 (size,) on device, of the images of iteration i = 1, 2, ..

    An epoch is a new permutation of the n images, less its last partial batch.
    """

    def __init__(self, n, size, seed, device="cpu"):
        if n < size:
            raise UserError(f"{n} images are fewer than one batch of {size}")
        self.n, self.size, self.seed, self.device = n, size, seed, device
        self.epoch = None  # that of self.order

    def __getitem__(self, iteration):
        epoch, batch = divmod(iteration - 1, self.n // self.size)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, epoch_order(self.seed, epoch, self.n).to(self.device)
        return self.order[batch * self.size :][: self.size]
