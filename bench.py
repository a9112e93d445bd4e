"""Measure training steps per second beside the loop that people write.

    python bench.py --threads 1 --precision bf16 --rounds 5 --burst 30
    python bench.py --model FC --optimizer adagrad --lr 1e-2 --warm 2000 --threads 1 --json bench.json

Takes the flags of main.py. Two loops take turns in one process, so that a busy machine slows both alike:
    plain     float32 images in memory, DataLoader, torch's own layers, NCHW, an optimiser that is not fused
    main.py   its own step: batches, data.batch, training_step
Both start from trained weights, whose gradients hold denormal numbers. These slow a CPU down, and main.py flushes them
to zero. At a learning rate of 1e-9 the weights stay as they are. Both loops keep freed memory (keep_freed_memory); a
plain loop in a process of its own is slower still.
"""

import contextlib
import copy
import ctypes
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from layers import ConvTranspose2d
from main import make_parser, parse, positive, whole
from optimizers import OPTIMIZERS
from run.checkpoint import load_model
from solver import Solver
from utils import atomic_file, bind, file_name, progress, run_cli

TRAINED = Path(__file__).resolve().parent / "misc/dsprites_B_smoothed.pt"
# flags that name files and folders
PATHS = "ckpt_dir ckpt_name dset_dir encode image json output_dir".split()


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
    add("--json", type=file_name, help="file for the results")
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


def loop_threads():
    """Return one thread per loop. It, and the threads that torch starts from it, flush denormal numbers or keep them."""
    M_ARENA_MAX = -8  # malloc.h; with one arena, keep_freed_memory() holds in these threads too
    with contextlib.suppress(AttributeError):  # no glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    flush = {"plain": False, "main.py": True}
    return {loop: ThreadPoolExecutor(1, "", torch.set_flush_denormal, (on,)) for loop, on in flush.items()}


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
    threads = loop_threads()
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir, args.ckpt_dir = f"{folder}/outputs", f"{folder}/checkpoints"
        solver = Solver(args)

        def run(loop, steps, n):
            return threads[loop].submit(seconds_per_step, steps, n, solver.device).result()

        if args.warm:
            run("main.py", solver_steps(solver), args.warm)
        elif (args.model, args.dataset, args.z_dim) == ("B", "dsprites", 10):
            solver.net.load_state_dict(load_model(TRAINED).state_dict())
        args.lr, solver.iter = 1e-9, args.C_stop_iter  # from there on, C is C_max
        chosen = torch.randperm(len(solver.data))[:40_960].split(64)  # all of dSprites would take 12 GB
        images = torch.cat([solver.data.batch(indices).cpu() for indices in chosen])  # N, C, 64, 64
        loops = {"plain": plain_steps(solver, images), "main.py": solver_steps(solver)}
        taken = {loop: [] for loop in loops}
        for _ in progress(range(args.rounds), delay=0, leave=True, unit="round"):
            for loop, steps in loops.items():
                taken[loop].append(run(loop, steps, args.burst))
    return taken, solver.machine


def table(taken):
    """Return a row per loop. taken: {loop: seconds per step of each burst}; ratio: to the plain loop's burst beside it."""
    rows = []
    for loop, times in taken.items():
        ratio = statistics.median(plain / time for plain, time in zip(taken["plain"], times))
        row = {"loop": loop, "it_s": 1 / statistics.median(times), "ratio": ratio}
        rows.append(row | {"slowest": 1 / max(times), "fastest": 1 / min(times)})
    return rows


def main(argv=None):
    """Run the program; return its exit status."""
    args = parse(argv, bench_parser())
    flags = {name: value for name, value in vars(args).items() if name not in PATHS}

    def run():
        # opened first, so that a missing folder shows before the measurement
        with atomic_file(args.json) if args.json else contextlib.nullcontext() as file:
            taken, machine = measure(args)
            print(f"{machine['device']}, {machine['threads']} threads, {args.rounds} x {args.burst} steps")
            print("loop     it/s (slowest .. fastest)   ratio")
            for row in table(taken):
                print("{loop:8} {it_s:6.1f} ({slowest:5.1f} .. {fastest:5.1f}) {ratio:12.2f}".format(**row))
            if file:
                file.write(json.dumps({"rows": table(taken), **machine, "flags": flags}, indent=2).encode())

    return run_cli("bench.py", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
