"""Why objective B stops at two or three latents, measured at the weights of a checkpoint (misc/capacity.md).

    python -m misc.diagnose_collapse checkpoints/dsprites_B/last
    python -m misc.diagnose_collapse --batches 200 misc/dsprites_B_smoothed.pt

Prints, over some batches: mean and standard deviation of KL - C; of the slope of gamma |KL - C|; and the root mean square
of the penalty's gradient over that of the reconstruction loss, on the encoder's weights, both for the paper's penalty and
smoothed by --delta 1. Then, for each layer, how many channels or units are dead: 0 for each of a thousand images.
"""

import sys

import torch

from dataset import epoch_order
from main import parse, positive
from objectives import capacity, capacity_penalty, kl_divergence, reconstruction_loss
from solver import Solver
from utils import Parser, UserError, progress, run_cli


def square(gradients):
    """Sum of squares over all gradients."""
    return sum(g.square().sum().item() for g in gradients)


def penalty_noise(solver, batches):
    """How far KL - C and the slope of the penalty scatter over batches, and how large its gradient is in the encoder.

    Returns KL - C of each batch (batches,), in nats; {delta: slopes (batches,)}; and {delta: ratio of the root mean squares
    of the gradients of penalty and reconstruction loss}.
    """
    args, data, net = solver.args, solver.data, solver.net
    weights = list(net.encoder.parameters())
    C = capacity(solver.iter, args.C_max, args.C_stop_iter, args.C_start)
    order = epoch_order(0, 0, len(data))
    torch.manual_seed(0)

    distances, slopes, squares, recon_square = [], {0: [], 1: []}, {0: 0.0, 1: 0.0}, 0.0
    for indices in progress(order.split(args.batch_size)[:batches], unit="batch"):
        x = data.batch(indices)
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
    ratios = {delta: (total / recon_square) ** 0.5 for delta, total in squares.items()}
    return torch.tensor(distances), {delta: torch.tensor(each) for delta, each in slopes.items()}, ratios


def dead_units(layers, x):
    """Dead units behind each ReLU of the layers, of how many, as texts; dead: 0 everywhere and for all of x (B, ...)."""
    found = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            active = (x > 0).transpose(0, 1).flatten(1).any(dim=1)  # channels or units
            found.append(f"{int((~active).sum())} of {len(active)}")
    return found


def diagnose(checkpoint, batches, dset_dir):
    """Prints all figures of a checkpoint."""
    flags = ["--train=False", "--viz_on=False", "--cuda=False"]
    solver = Solver(parse([*flags, f"--ckpt_name={checkpoint}", f"--dset_dir={dset_dir}"]))
    if solver.args.objective != "B" or solver.args.dataset != "dsprites":
        raise UserError(f"checkpoint {checkpoint} is not of a run with --objective B on dSprites")
    distances, slopes, ratios = penalty_noise(solver, batches)
    print(
        f"{checkpoint}: iteration {solver.iter:,}, {len(distances)} batches of {solver.args.batch_size}; "
        f"KL - C {distances.mean():.4f} ± {distances.std():.4f} nats"
    )
    for delta, values in slopes.items():
        slope, ratio = f"{values.mean():.1f} ± {values.std():.1f}", f"{ratios[delta]:.2f}"
        print(f"--delta {delta}: slope {slope}; gradient {ratio} times that of the reconstruction")
    with torch.no_grad():
        images = solver.data.batch(torch.linspace(0, len(solver.data) - 1, 1000).long())
        mu, _ = solver.net.encode(images)
        print("dead units of the encoder:", ", ".join(dead_units(solver.net.encoder, images)))
        print("dead units of the decoder:", ", ".join(dead_units(solver.net.decoder, mu)))


def main(argv=None):
    parser = Parser(prog="diagnose_collapse.py", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="file of a run with --objective B on dSprites")
    parser.add_argument("--batches", type=positive, default=100, help="number of batches to average over")
    parser.add_argument("--dset_dir", default="data", help="folder of the data sets")
    args = parser.parse_args(argv)
    return run_cli("diagnose_collapse.py", "interrupted", lambda: diagnose(**vars(args)))


if __name__ == "__main__":
    sys.exit(main())
