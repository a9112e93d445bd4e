"""Measure training steps per second beside the loop that people write.

    python bench.py --threads 1 --precision bf16 --rounds 5 --burst 30
    python bench.py --model FC --optimizer adagrad --lr 1e-2 --warm 2000 --threads 1

Takes the flags of main.py. Two loops take turns in one process, so that a busy machine slows both alike:
    plain     float32 images in memory, DataLoader, torch's own layers, NCHW, an optimiser that is not fused
    main.py   its own step: batches, data.batch, training_step
Both start from trained weights, whose gradients hold denormal numbers. These slow a CPU down, and main.py flushes them
to zero; in this process only the plain loop's main thread keeps them. At a learning rate of 1e-9 the weights stay as
they are. Both loops keep freed memory (keep_freed_memory); a plain loop in a process of its own is slower still.
"""

import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from layers import ConvTranspose2d
from main import make_parser, parse, positive, whole
from optimizers import OPTIMIZERS
from run.checkpoint import load_model
from solver import Solver
from utils import bind, progress, run_cli

TRAINED = Path(__file__).resolve().parent / "misc/dsprites_B_smoothed.pt"


def bench_parser():
    """Return main.py's parser with more flags, and with model B on dSprites as the default."""
    parser = make_parser()
    parser.prog = "bench.py"
    parser.description = f"{__doc__.splitlines()[0]} Takes the flags of main.py, too."
    add = parser.add_argument_group("measurement").add_argument
    # fmt: off
    add("--rounds", type=positive, default=7, help="bursts of each loop")
    add("--burst", type=positive, default=100, help="steps per burst")
    add("--warm", type=whole, default=0, help="iterations to train first; 0: take the weights in misc/, of model B on dSprites")
    # fmt: on
    parser.set_defaults(model="B", objective="B", lr=5e-4, delta=1.0, viz_on=False)
    return parser


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
    """Run all bursts; return {loop: seconds per step of each burst} and a description of the machine."""
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir, args.ckpt_dir = f"{folder}/outputs", f"{folder}/checkpoints"
        solver = Solver(args)
        if args.warm:
            seconds_per_step(solver_steps(solver), args.warm, solver.device)
        elif (args.model, args.dataset, args.z_dim) == ("B", "dsprites", 10):
            solver.net.load_state_dict(load_model(TRAINED).state_dict())
        args.lr, solver.iter = 1e-9, args.C_stop_iter  # from there on, C is C_max
        images = solver.data.batch(
            torch.randperm(len(solver.data))[:10_000]
        ).cpu()  # all of dSprites take 12 GB
        loops = {"plain": plain_steps(solver, images), "main.py": solver_steps(solver)}
        taken = {loop: [] for loop in loops}
        for _ in progress(range(args.rounds), delay=0, leave=True, unit="round"):
            for loop, steps in loops.items():
                torch.set_flush_denormal(loop == "main.py")
                taken[loop].append(seconds_per_step(steps, args.burst, solver.device))
    return taken, solver.machine


def table(taken):
    """Return a line per loop. taken: {loop: seconds per step of each burst}; ratio: to the plain loop's burst beside it."""
    lines = ["loop     it/s (slowest .. fastest)   ratio"]
    for loop, times in taken.items():
        ratio = statistics.median(plain / time for plain, time in zip(taken["plain"], times))
        median, slowest, fastest = 1 / statistics.median(times), 1 / max(times), 1 / min(times)
        lines.append(f"{loop:8} {median:6.1f} ({slowest:5.1f} .. {fastest:5.1f}) {ratio:12.2f}")
    return lines


def main(argv=None):
    """Run the program; return its exit status."""
    args = parse(argv, bench_parser())

    def run():
        taken, machine = measure(args)
        print(f"{machine['device']}, {machine['threads']} threads, {args.rounds} x {args.burst} steps")
        print(*table(taken), sep="\n")

    return run_cli("bench.py", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
