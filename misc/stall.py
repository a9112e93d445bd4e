"""What stalls objective B, seen at the weights of a checkpoint (misc/capacity.md).

    python -m misc.stall checkpoints/dsprites_B/last
    python -m misc.stall --batches 200 misc/dsprites_B_smoothed.pt
    python -m misc.stall --told 3000 misc/dsprites_B_smoothed.pt

Over some batches: mean and standard deviation of KL - C; of the slope of gamma |KL - C|; and the root mean square of
that term's gradient over that of the reconstruction loss, on the encoder's weights, for the paper's bars and for those
rounded off by --delta 1. Then, layer by layer, how many channels or units no image of a thousand switches on.

--told asks whether the decoder would follow, if only the encoder told it of shape and rotation: the encoder is left as it
is, the three latents of lowest KL are replaced by these factors themselves, and the decoder trains on for that many
iterations; then a new decoder on the same.
"""

import copy
import sys

import numpy as np
import torch
from tqdm import tqdm

from main import parse
from model import kaiming_init, reparameterise
from objectives import capacity, capacity_penalty, kl_divergence, reconstruction_loss
from prepare.dsprites import FACTOR_SIZES
from solver import Solver
from utils import Parser, UserError, count, epoch_order, progress, run_cli


def measure(path, batches, told_iterations, dset_dir):
    """Prints what is known of the weights in a checkpoint of a run with objective B on dSprites."""
    flags = ["--train=False", "--viz_on=False", "--cuda=False"]
    solver = Solver(parse([*flags, f"--ckpt_name={path}", f"--dset_dir={dset_dir}"]))
    if solver.args.objective != "B" or solver.args.dataset != "dsprites":
        raise UserError(f"checkpoint {path} is not of a run with --objective B on dSprites")
    if told_iterations and solver.args.z_dim < 3:
        raise UserError(f"--told replaces 3 latents, and checkpoint {path} has {solver.args.z_dim}")
    noise_of_bars(path, solver, min(batches, solver.batches))
    data, net = solver.data, solver.net
    with torch.no_grad():
        images = data.batch(torch.linspace(0, len(data) - 1, 1000).long())
        for name, layers, x in (
            ("encoder", net.encoder, images),
            ("decoder", net.decoder, net.encode(images)[0]),
        ):
            print(f"{name}, never on:", ", ".join(f"{off} of {all_}" for off, all_ in silent(layers, x)))
    if told_iterations:
        told(net, data, told_iterations, new=False)
        told(net, data, told_iterations, new=True)


def noise_of_bars(path, solver, batches):
    """Prints how KL - C and the slope of the bars vary over batches, and how loud that is in the encoder."""
    args, data, net = solver.args, solver.data, solver.net
    weights = list(net.encoder.parameters())
    C = capacity(solver.iter, args.C_max, args.C_stop_iter, args.C_start)
    order = epoch_order(0, 0, len(data))
    torch.manual_seed(0)

    distances, slopes, squares, recon_square = [], {0: [], 1: []}, {0: 0.0, 1: 0.0}, 0.0
    for batch in progress(range(batches), unit="batch"):
        x = data.batch(order[batch * args.batch_size :][: args.batch_size])
        x_recon, mu, logvar, _ = net(x)
        total_kld = kl_divergence(mu, logvar)[0]
        recon_loss = reconstruction_loss(x, x_recon, solver.distribution)
        recon_square += square(torch.autograd.grad(recon_loss, weights, retain_graph=True))
        kld_square = square(torch.autograd.grad(total_kld, weights))
        distance = (total_kld.detach() - C).requires_grad_()
        distances.append(distance.item())
        for delta in slopes:
            (slope,) = torch.autograd.grad(args.gamma * capacity_penalty(distance, 0, delta), distance)
            slopes[delta].append(slope.item())
            squares[delta] += slope.item() ** 2 * kld_square
    distances = torch.tensor(distances)
    print(
        f"{path}: iteration {solver.iter:,}, C {C:.3f}, {batches} batches of {args.batch_size}; "
        f"KL - C {distances.mean():.4f} ± {distances.std():.4f} nats"
    )
    for delta, values in slopes.items():
        values = torch.tensor(values)
        print(
            f"--delta {delta}: slope {values.mean():.1f} ± {values.std():.1f}, "
            f"gradient of the KL term {(squares[delta] / recon_square) ** 0.5:.2f} times that of the reconstruction loss"
        )


def square(gradients):
    return sum(g.square().sum().item() for g in gradients)


def silent(layers, x):
    """[(channels or units that are 0 everywhere for all of x, of how many)] behind each ReLU of the layers."""
    found = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            on = (x > 0).transpose(0, 1).flatten(1).any(dim=1)
            found.append((int((~on).sum()), len(on)))
    return found


def told(net, data, iterations, new):
    """Trains a copy of the decoder, or a new one, told of shape and rotation; prints its reconstruction loss.

    Told is the shape as -1, 0, 1 and the rotation as cosine and sine of the angle within the shape's own period (a
    square looks the same after a quarter turn, an ellipse after half of one), scaled to a variance of 1, with noise of
    standard deviation 0.2: the code that an encoder which knew these factors might give.
    """
    decoder = copy.deepcopy(net.decoder)
    torch.manual_seed(0)
    if new:
        decoder.apply(kaiming_init)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        mu, logvar = net.encode(data.batch(torch.as_tensor(rng.choice(len(data), 1000))))
        dead = kl_divergence(mu, logvar)[1].argsort()[:3]
    optim, losses, every = torch.optim.Adam(decoder.parameters(), lr=5e-4), [], max(iterations // 6, 1)
    for iteration in progress(range(1, iterations + 1), unit="it"):
        index = rng.choice(len(data), 64)
        shape, _, orientation, _, _ = np.unravel_index(index, FACTOR_SIZES)
        angle = 2 * np.pi * orientation / 39 * np.array([4, 2, 1])[shape]
        code = np.stack([(shape - 1) * 1.5**0.5, np.cos(angle) * 2**0.5, np.sin(angle) * 2**0.5], axis=1)
        x = data.batch(torch.as_tensor(index))
        with torch.no_grad():
            mu, logvar = net.encode(x)
            mu[:, dead], logvar[:, dead] = torch.as_tensor(code, dtype=torch.float32), 2 * np.log(0.2)
            z = reparameterise(mu, logvar)
        loss = reconstruction_loss(x, decoder(z), "bernoulli")
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.item())
        if iteration % every == 0:
            tqdm.write(
                f"{'a new' if new else 'its'} decoder, told, after {iteration:,}: {np.mean(losses[-every:]):.1f} nats"
            )


def main():
    parser = Parser(prog="stall.py", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="file of a run with --objective B")
    parser.add_argument("--batches", type=count, default=100, help="how many to look at")
    parser.add_argument(
        "--told", type=count, default=0, help="iterations of a decoder that is told shape and rotation"
    )
    parser.add_argument("--dset_dir", default="data", help="folder of the data sets")
    args = parser.parse_args()
    if args.batches < 1 or args.told < 0:
        parser.error("--batches must be at least 1, --told at least 0")
    return run_cli(
        "stall.py", "interrupted", lambda: measure(args.checkpoint, args.batches, args.told, args.dset_dir)
    )


if __name__ == "__main__":
    sys.exit(main())
