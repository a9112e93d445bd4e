"""Measure training steps per second beside the loop that people write.

    python bench.py --threads 1 --precision bf16 --rounds 5 --burst 30
    python bench.py --threads 1 --model FC --objective H --optimizer adagrad --lr 1e-2

Takes the flags of main.py. Two loops take turns in one process, so that a busy machine slows both alike:
    plain     float32 images in memory, DataLoader, torch's own layers, NCHW, an optimiser that is not fused
    main.py   its own step: batches, data.batch, training_step
Both flush denormal numbers and keep freed memory (run/machine.py); a plain loop in a process of its own is slower still.
"""

import copy
import statistics
import sys
import tempfile
import time

import torch
from torch.utils.data import DataLoader

from layers import ConvTranspose2d
from main import make_parser, parse, positive
from objectives import scheduled
from optimizers import OPTIMIZERS
from solver import Solver
from utils import bind, progress, run_cli


def solver_steps(solver):
    """Yield after each step of main.py, without its log and pictures."""
    while True:
        solver.iter += 1
        solver.training_step(solver.data.batch(solver.batches[solver.iter]))
        yield


def plain_steps(solver, images):
    """Yield after each step of the loop that people write. images: float32 (N, C, H, W), in memory."""
    args, net = solver.args, copy.deepcopy(solver.net).to(memory_format=torch.contiguous_format)
    for layer in net.modules():
        if isinstance(layer, ConvTranspose2d):
            layer.__class__ = torch.nn.ConvTranspose2d
    optims = bind(OPTIMIZERS[args.optimizer], args)(net).values()
    for group in (group for optim in optims for group in optim.param_groups):
        group["lr"] = scheduled(args.lr, 1)
        group["fused"] = None  # torch's default; Muon has no such option
    while True:
        for x in DataLoader(images, args.batch_size, shuffle=True, drop_last=True):
            x = x.to(solver.device)
            x_recon, mu, logvar, z = net(x)
            loss, _ = solver.objective(x, x_recon, mu, logvar, z, solver.iter)
            net.zero_grad()
            loss.backward()
            for optim in optims:
                optim.step()
            yield net


def seconds_per_step(steps, n, device):
    """Take n steps after two that do not count, and return how long one takes on average."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for i in range(-2, n):
        if i == 0:
            wait()
            start = time.perf_counter()
        next(steps)
    wait()
    return (time.perf_counter() - start) / n


def measure(args):
    """Print steps per second of both loops: the median over bursts, the range, and the ratio to the plain burst beside."""
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir, args.ckpt_dir = f"{folder}/outputs", f"{folder}/checkpoints"
        solver = Solver(args)
        indices = torch.randperm(len(solver.data))[:10_000]  # all of dSprites take 12 GB
        images = solver.data.batch(indices).cpu()
        loops = {"plain": plain_steps(solver, images), "main.py": solver_steps(solver)}
        taken = {loop: [] for loop in loops}
        for _ in progress(range(args.rounds), delay=0, leave=True, unit="round"):
            for loop, steps in loops.items():
                taken[loop].append(seconds_per_step(steps, args.burst, solver.device))
    machine = solver.machine
    print(f"{machine['device']}, {machine['threads']} threads, {args.rounds} x {args.burst} steps")
    print("loop     it/s (slowest .. fastest)   ratio")
    for loop, times in taken.items():
        ratio = statistics.median(plain / time for plain, time in zip(taken["plain"], times))
        median, slowest, fastest = 1 / statistics.median(times), 1 / max(times), 1 / min(times)
        print(f"{loop:8} {median:6.1f} ({slowest:5.1f} .. {fastest:5.1f}) {ratio:12.2f}")


def main(argv=None):
    """Run the program; return its exit status."""
    parser = make_parser()
    parser.prog, parser.description = "bench.py", __doc__.splitlines()[0]
    parser.add_argument("--rounds", type=positive, default=7, help="bursts of each loop")
    parser.add_argument("--burst", type=positive, default=100, help="steps per burst")
    parser.set_defaults(model="B", objective="B", lr=5e-4, delta=1.0, viz_on=False)
    args = parse(argv, parser)
    return run_cli("bench.py", "interrupted", lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
