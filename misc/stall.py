"""What stalls objective B, seen at the weights of a checkpoint (README, "Capacity").

    python misc/stall.py checkpoints/dsprites_B/last
    python misc/stall.py --batches 200 misc/dsprites_B.pt

Over some batches: mean and standard deviation of KL - C; of the slope of gamma |KL - C|; and the root mean square of
that term's gradient over that of the reconstruction loss, on the encoder's weights, for the paper's bars and for those
rounded off by --delta 1. Then, layer by layer, how many channels or units no image of a thousand switches on.
"""
import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from main import parse  # noqa: E402
from solver import Solver, capacity, epoch_order, kl_divergence, objective_B, reconstruction_loss  # noqa: E402
from utils import UserError, count, exit_status, progress  # noqa: E402


def measure(path, batches, dset_dir):
    """Prints the table for a checkpoint of a run with objective B."""
    solver = Solver(parse(["--train=False", f"--ckpt_name={path}", f"--dset_dir={dset_dir}", "--viz_on=False", "--cuda=False"]))
    args, data, net = solver.args, solver.data, solver.net
    if args.objective != "B":
        raise UserError(f"checkpoint {path} does not say that it is of a run with --objective B")
    weights = list(net.encoder.parameters())
    C = capacity(solver.iter, args.C_max, args.C_stop_iter)
    order = epoch_order(0, 0, len(data))
    torch.manual_seed(0)

    distances, slopes, squares, recon_square = [], {0: [], 1: []}, {0: 0.0, 1: 0.0}, 0.0
    for batch in progress(range(batches), unit="batch"):
        x = data.batch(order[batch * args.batch_size:][:args.batch_size])
        x_recon, mu, logvar = net(x)
        total_kld = kl_divergence(mu, logvar)[0]
        recon_loss = reconstruction_loss(x, x_recon, solver.distribution)
        recon_square += square(torch.autograd.grad(recon_loss, weights, retain_graph=True))
        kld_square = square(torch.autograd.grad(total_kld, weights))
        distance = (total_kld.detach() - C).requires_grad_()
        distances.append(distance.item())
        for delta in slopes:
            slope, = torch.autograd.grad(objective_B(0, distance, args.gamma, 0, delta), distance)
            slopes[delta].append(slope.item())
            squares[delta] += slope.item()**2 * kld_square
    distances = torch.tensor(distances)
    print(f"{path}: iteration {solver.iter:,}, C {C:.3f}, {batches} batches of {args.batch_size}; "
          f"KL - C {distances.mean():.4f} ± {distances.std():.4f} nats")
    for delta, values in slopes.items():
        values = torch.tensor(values)
        print(f"--delta {delta}: slope {values.mean():.1f} ± {values.std():.1f}, "
              f"gradient of the KL term {(squares[delta] / recon_square)**0.5:.2f} times that of the reconstruction loss")
    print("encoder, never on:", ", ".join(f"{off} of {all_}" for off, all_ in silent(net.encoder, data)))


def square(gradients):
    return sum(g.square().sum().item() for g in gradients)


@torch.no_grad()
def silent(layers, data, images=1000):
    """[(channels or units that are 0 everywhere in all of some images, of how many)] behind each ReLU of an encoder."""
    found, x = [], data.batch(torch.linspace(0, len(data) - 1, images).long())
    for layer in layers:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            on = (x > 0).transpose(0, 1).flatten(1).any(dim=1)
            found.append((int((~on).sum()), len(on)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="file of a run with --objective B")
    parser.add_argument("--batches", type=count, default=100, help="how many to look at")
    parser.add_argument("--dset_dir", default="data", help="folder of the data sets")
    args = parser.parse_args()
    return exit_status("stall.py", "interrupted", lambda: measure(args.checkpoint, args.batches, args.dset_dir))


if __name__ == "__main__":
    sys.exit(main())
