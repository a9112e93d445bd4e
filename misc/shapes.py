"""Measure what no score sees in a model of dSprites: whether position turns a shape, and how well each shape is drawn.

    python -m misc.shapes misc/dsprites_S.pt checkpoints/dsprites_S/last

Prints by how many degrees large squares and ellipses turn while the latent of x or y goes from -1.5 to 1.5 (median of 60
images); the share of each other latent's variance that is due to position, x and y drawn anew together (their total
effect); and the reconstruction loss of each shape decoded from the mean of q(z|x), nats per image.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from dataset import DSprites
from objectives import kl_divergence, reconstruction_loss
from prepare.dsprites import FACTOR_SIZES, SHAPES
from prepare.sets import find_dsprites
from run.checkpoint import load_model
from run.machine import set_up_device
from utils import Parser, UserError, file_name, run_cli

FOLDS = {"square": 4, "ellipse": 2}  # orientations of the shape that look alike


def draw(seed, n, **fixed):
    """Draw the factors of n images, a list of arrays (n,) or, for those that are fixed by name, numbers."""
    names, rng = ("shape", "scale", "orientation", "x", "y"), np.random.default_rng(seed)
    pairs = zip(names, FACTOR_SIZES)
    return [fixed[name] if name in fixed else rng.integers(size, size=n) for name, size in pairs]


def images(data, factors):
    return data.batch(torch.tensor(np.ravel_multi_index(np.broadcast_arrays(*factors), FACTOR_SIZES)))


def orientation(x, fold):
    """Find the orientation (B,) of images x (B, 1, H, W), degrees modulo 360 / fold: the angle of the fold-th moment."""
    weight = x[:, 0].double()  # B, H, W
    row, column = torch.meshgrid(*(torch.arange(float(n)) for n in weight.shape[1:]), indexing="ij")
    mass = weight.sum(dim=(1, 2))
    centre_x, centre_y = ((weight * at).sum(dim=(1, 2)) / mass for at in (column, row))  # B
    place = torch.complex(column - centre_x[:, None, None], row - centre_y[:, None, None])
    return torch.angle((weight * place**fold).sum(dim=(1, 2))).rad2deg() / fold


def turn(net, data, latent, shape):
    """Find by how many degrees a latent from -1.5 to 1.5 turns a shape, large and in the middle; the median of 60."""
    factors = draw(5, 60, shape=SHAPES.index(shape), scale=5, x=16, y=16)
    z, fold = net.encode(images(data, factors))[0], FOLDS[shape]
    angles = []
    for value in (-1.5, 1.5):
        z[:, latent] = value
        angles.append(orientation(torch.sigmoid(net.decode(z)), fold))
    period = 360 / fold
    return float(((angles[1] - angles[0] + period / 2) % period - period / 2).abs().median())


def position(net, data, n=3000):
    """Find the latents of x and y, and the total effect of both together on each latent, (z_dim,); 0 if its KL is below 0.3."""
    factors = draw(3, n)
    mu, logvar = net.encode(images(data, factors))
    again, _ = net.encode(images(data, factors[:3] + draw(4, n)[3:]))
    effect = (mu - again).square().mean(dim=0) / (2 * mu.var(dim=0))
    correlation = np.corrcoef(mu.T, factors[3:])[:-2, -2:]  # z_dim, 2
    return np.abs(correlation).argmax(axis=0), effect * (kl_divergence(mu, logvar)[1] > 0.3)


@torch.no_grad()
def measure(net, data):
    """Print all of it for a network and dSprites."""
    own, effect = position(net, data)
    for name, latent in zip("xy", own):
        turns = (
            f"{shape}s by {turn(net, data, latent, shape):.1f} of {180 / FOLDS[shape]:.0f}" for shape in FOLDS
        )
        print(f"{name} (z_{latent}) turns {', '.join(turns)} degrees")
    others = " ".join(
        f"z_{j} {float(effect[j]):.2f}" for j in effect.argsort(descending=True) if j not in own and effect[j]
    )
    print(f"total effect of position on other latents: {others}")
    for shape, name in enumerate(SHAPES):
        x = images(data, draw(6, 1500, shape=shape))
        loss = reconstruction_loss(x, net.decode(net.encode(x)[0]), "bernoulli")
        print(f"{name}s decoded from the mean: {loss:.1f} nats")


def main(argv=None):
    parser = Parser(prog="misc.shapes", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, help="of models of dSprites")
    parser.add_argument("--dset_dir", type=file_name, default="data", help="folder of the data sets")
    args = parser.parse_args(argv)

    def run():
        set_up_device(cuda=False)
        data = DSprites(*find_dsprites(args.dset_dir))
        for path in args.checkpoints:
            net = load_model(path)
            if net.decode(torch.zeros(1, net.encoder[-1].out_features // 2)).shape[1] != data.channels:
                raise UserError(f"{path} is a model of colour images, not of dSprites")
            print(path)
            measure(net, data)

    return run_cli("misc.shapes", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
