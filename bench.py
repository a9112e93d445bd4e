"""Measure training steps a second, beside the loop that people write.

    python bench.py --rounds 5 --burst 30
    python bench.py --model FC --optimizer adagrad --lr 1e-2 --warm 2000 --threads 1 --json bench.json

Takes the flags of main.py, which say what is trained. Bursts of two loops take turns in one process, so that a noisy machine
slows both alike:
    plain     float32 images in memory, DataLoader, torch's layers, NCHW, an optimiser that is not fused
    Solver    a step of main.py: batches, data.batch, training_step
Each runs at fresh and at trained weights: gradients of trained networks hold denormal numbers, which slow a CPU down unless
they are flushed to zero, as main.py has it. The learning rate is so small that the weights stay as they are. Both loops keep
freed memory (training/machine.py); a plain loop in a process of its own is slower still. Shares are of the rate of a
large matrix product in the same run; FLOPs are those of convolutions and linear layers.
"""

import contextlib
import copy
import ctypes
import json
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from main import make_parser, parse, positive, whole
from model import MODELS, ConvTranspose2d, load_model
from optimizers import Muon
from solver import Solver
from utils import atomic_file, file_name, progress, run_cli, versions

TRAINED = Path(__file__).resolve().parent / "misc/dsprites_B_smoothed.pt"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def bench_parser():
    parser = make_parser()
    parser.prog = "bench.py"
    parser.description = f"{__doc__.splitlines()[0]} Takes the flags of main.py, too."
    add = parser.add_argument_group("measuring").add_argument
    # fmt: off
    add("--rounds", type=positive, default=7, help="bursts of each loop at each of the weights")
    add("--burst", type=positive, default=100, help="steps of a burst")
    add("--warm", type=whole, default=0,
        help="iterations to train for the trained weights; 0: take those in misc, of model B on dSprites")
    add("--json", type=file_name, help="file to write the figures to")
    # fmt: on
    parser.set_defaults(model="B", objective="B", lr=5e-4, delta=1.0, viz_on=False, ckpt_name="none")
    return parser


class Plain:
    """The loop as people write it, on an eighteenth of dSprites: all of it is as fast, but takes 12 GB."""

    def __init__(self, solver, images=40_960):
        args, data, self.device = solver.args, solver.data, solver.device
        self.net = MODELS[args.model](args.z_dim, data.channels)
        for layer in self.net.modules():
            if isinstance(layer, ConvTranspose2d):
                layer.__class__ = torch.nn.ConvTranspose2d
        self.net.to(self.device)
        optimizer = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad, "muon": Muon}[args.optimizer]
        self.optim = optimizer(self.net.parameters(), lr=args.lr)
        self.objective, self.noise, self.iter = solver.objective, None, 0
        chosen = torch.randperm(len(data))[:images].split(64)
        images = torch.cat([data.batch(indices).cpu() for indices in chosen])  # N, C, 64, 64
        self.loader = DataLoader(images, args.batch_size, shuffle=True, drop_last=True)
        self.batches = iter(())

    def step(self):
        if (x := next(self.batches, None)) is None:
            self.batches = iter(self.loader)
            x = next(self.batches)
        self.iter += 1
        self.training_step(x.to(self.device))

    def training_step(self, x):
        x_recon, mu, logvar, z = self.net(x, self.noise)
        loss, _ = self.objective(x, x_recon, mu, logvar, z, self.iter)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()


def seconds(step, n, device):
    """Seconds that a step takes: the mean of n, after two that do not count."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for i in range(-2, n):
        if i == 0:
            wait()
            start = time.perf_counter()
        step()
    wait()
    return (time.perf_counter() - start) / n


def computing_threads():
    """{loop: a thread}. A thread, and those that torch starts from it, flush denormal numbers or keep them, for good."""
    M_ARENA_MAX = -8  # malloc.h; with one arena, these threads get memory in the way that main.py does
    with contextlib.suppress(AttributeError):  # no glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    flush = torch.set_flush_denormal
    return {
        "plain": ThreadPoolExecutor(1, initializer=flush, initargs=(False,)),
        "Solver": ThreadPoolExecutor(1, initializer=flush, initargs=(True,)),
    }


def matmul_gflop_s(dtype, device):
    """GFLOP/s of the product of two square matrices, of side 2048, or 512 where a CPU has no instructions for dtype."""
    for side in (512, 2048):
        a = torch.rand(side, side, device=device).to(dtype)
        took = seconds(lambda: a @ a, 5, device)
        if took > 0.1:
            break
    return 2e-9 * side**3 / took


def peak_gb(device):
    """Peak memory so far in GB, of the process or on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return name[1] if name else platform.machine()


def all_weights(solver, train):
    """State dicts of "fresh" and "trained" weights; without --warm, only model B on dSprites has the second. train(n): trains."""
    args, weights = solver.args, {"fresh": copy.deepcopy(solver.net.state_dict())}
    if args.warm:
        train(args.warm)
        weights["trained"] = copy.deepcopy(solver.net.state_dict())
    elif (args.model, args.dataset, args.z_dim) == ("B", "dsprites", 10):
        weights["trained"] = load_model(TRAINED).state_dict()
    return weights


def measure(args):
    """Run all bursts; returns what goes to --json."""
    threads = computing_threads()
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir, args.ckpt_dir = f"{folder}/outputs", f"{folder}/checkpoints"
        solver = Solver(args)

        def solver_step():  # of Solver.loop, without log and pictures
            solver.iter += 1
            solver.training_step(solver.data.batch(solver.batches[solver.iter]))

        def run(loop, step, n):
            return threads[loop].submit(seconds, step, n, solver.device).result()

        with solver.folder:
            weights = all_weights(solver, lambda n: run("Solver", solver_step, n))
            args.lr = 1e-9
            run("Solver", solver_step, 1)
            peak, plain = peak_gb(solver.device), Plain(solver)  # the peak before there is a plain loop
            with FlopCounterMode(display=False) as counter:
                plain.step()
            loops = {"plain": (plain, plain.step), "Solver": (solver, solver_step)}
            times = {(state, loop): [] for state in weights for loop in loops}
            products = {precision: [] for precision in {"float32", args.precision}}
            for _ in progress(range(args.rounds), delay=0, leave=True, unit="round"):
                for (state, loop), taken in times.items():
                    trainer, step = loops[loop]
                    trainer.net.load_state_dict(weights[state])
                    trainer.iter = 0 if state == "fresh" else args.C_stop_iter  # where C is C_max
                    taken.append(run(loop, step, args.burst))
                for precision, rates in products.items():
                    rates.append(matmul_gflop_s(DTYPES[precision], solver.device))
    results = figures(times, products, counter.get_total_flops() / 1e9, args.precision)
    machine = dict(device=device_name(solver.device), threads=torch.get_num_threads(), versions=versions())
    return dict(**results, **machine, peak_gb=peak, arguments=vars(args))


def figures(times, products, gflop, precision):
    """Medians over rounds. times: {(weights, loop): seconds a step}; products: {precision: GFLOP/s}; gflop: of a step."""
    products, rows = {name: statistics.median(rates) for name, rates in products.items()}, []
    for (state, loop), taken in times.items():
        it_s = 1 / statistics.median(taken)
        ratio = statistics.median(plain / each for plain, each in zip(times[state, "plain"], taken))
        limit = products["float32" if loop == "plain" else precision]
        row = dict(weights=state, loop=loop, it_s=it_s, slowest=1 / max(taken), fastest=1 / min(taken))
        row |= dict(ratio=ratio, gflop_s=it_s * gflop, limit=limit, share=it_s * gflop / limit)
        rows.append(row)
    return dict(rows=rows, gflop=gflop, matmul_gflop_s=products)


def report(args, results):
    """Print what measure() returns as a table."""
    print(
        f"{results['device']}, {results['threads']} threads, torch {torch.__version__}; model {args.model}, {args.dataset}, "
        f"batch {args.batch_size}, {args.precision}; {args.rounds} rounds of {args.burst} steps of {results['gflop']:.2f} GFLOP"
    )
    print("weights  loop     it/s (from .. to)      ratio  GFLOP/s  of a matrix product")
    for row in results["rows"]:
        print(
            f"{row['weights']:8} {row['loop']:7} {row['it_s']:6.1f} ({row['slowest']:5.1f} .. {row['fastest']:5.1f}) "
            f"{row['ratio']:8.2f} {row['gflop_s']:8.0f} {row['share']:8.0%} of {row['limit']:.0f}"
        )
    print(f"peak memory of the Solver alone: {results['peak_gb']:.2f} GB")


def main(argv=None):
    """Run the program; returns its exit status."""
    args = parse(argv, bench_parser())

    def run():
        # opened first: a folder that is missing shows before the measurement
        with atomic_file(args.json) if args.json else contextlib.nullcontext() as file:
            results = measure(args)
            report(args, results)
            if file:
                file.write(json.dumps(results, indent=2).encode())

    return run_cli("bench.py", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
