"""Measures training steps a second, beside the loop that people write.

    python bench.py --rounds 5 --burst 30
    python bench.py --model FC --optimizer adagrad --lr 1e-2 --warm 2000 --threads 1 --json bench.json

Flags of main.py say what is trained. Bursts of steps take turns in one process, so that a noisy machine hurts all rows alike:
    plain     float32 images in memory, DataLoader, torch's layers, NCHW, an optimiser that is not fused
    Solver    a step of main.py: next_indices, data.batch, training_step
Each at fresh and at trained weights: gradients of trained networks hold denormal numbers, over which CPUs stumble unless
they are flushed to zero, as main.py has it. The learning rate is so small that the weights stay as they are. All rows have
main.py's way with freed memory (training/machine.py); a plain loop in a process of its own is slower still. Shares are
of the rate of a large matrix product in the same run; FLOPs are those of convolutions and linear layers.
"""

import contextlib
import copy
import ctypes
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has none: no peak memory there
    resource = None

import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from main import make_parser, parse
from model import MODELS, ConvTranspose2d, load_model
from solver import Solver
from utils import UserError, atomic_file, count, progress, run_cli, versions

TRAINED = Path(__file__).resolve().parent / "misc/dsprites_B_smoothed.pt"
ROWS = (  # weights, loop, whether denormal numbers are flushed
    ("fresh", "plain", False),
    ("fresh", "Solver", True),
    ("trained", "plain", False),
    ("trained", "plain", True),
    ("trained", "Solver", False),
    ("trained", "Solver", True),
)
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def bench_parser():
    """The flags of main.py, and those of measuring."""
    parser = make_parser()
    parser.prog = "bench.py"
    parser.description = f"{__doc__.splitlines()[0]} Takes the flags of main.py, too."
    add = parser.add_argument_group("measuring").add_argument
    add("--rounds", type=count, default=7, help="turns of each row")
    add("--burst", type=count, default=100, help="steps of a turn")
    add(
        "--weights", default="", help="checkpoint of the trained weights; model B on dSprites has one in misc"
    )
    add("--warm", type=count, default=0, help="train so many iterations instead, for the trained weights")
    add("--json", default="", help="file to write the figures to")
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
        optimizer = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}[args.optimizer]
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


def solver_step(solver):
    """What Solver.loop does in an iteration without log and pictures."""
    solver.iter += 1
    solver.training_step(solver.data.batch(solver.next_indices()))


@contextlib.contextmanager
def computing_threads():
    """{flush: executor of one thread}: torch's threads take the mode for denormals from the one that first needs them."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        ctypes.CDLL(None).mallopt(
            -8, 1
        )  # M_ARENA_MAX: or each would get its memory in another way than main.py
    with ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,)) as flushing:
        with ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(False,)) as keeping:
            yield {True: flushing, False: keeping}


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


def matmul_gflop_s(dtype, device):
    """GFLOP/s of the product of two square matrices, of side 2048, or 512 where a CPU has no instructions for dtype."""
    for side in (512, 2048):
        a = torch.rand(side, side, device=device).to(dtype)
        took = seconds(lambda: a @ a, 5, device)
        if took > 0.1:
            break
    return 2e-9 * side**3 / took


def peak_gb(device):
    """Peak memory so far in GB: of the process, or on the device; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0  # KiB; bytes on macOS
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    name = re.search(r"^model name\s*: (.*)", info, re.MULTILINE)
    return name[1] if name else platform.processor()


def all_weights(solver, train):
    """{"fresh": state dict, "trained": state dict}, the second if there are such weights; train(): --warm iterations."""
    args, net = solver.args, solver.net
    weights = {"fresh": copy.deepcopy(net.state_dict())}
    if args.warm:
        train()
        weights["trained"] = copy.deepcopy(net.state_dict())
    elif args.weights or (args.model, args.dataset, args.z_dim) == ("B", "dsprites", 10):
        weights["trained"] = load_model(args.weights or TRAINED).state_dict()
        try:
            net.load_state_dict(weights["trained"])
        except RuntimeError:
            what = f"--model {args.model} --z_dim {args.z_dim} for {solver.data.channels} channels"
            raise UserError(f"--weights {args.weights} are of another network than {what}") from None
    return weights


def measure(args):
    """Runs the rows in turn; returns what goes to --json."""
    with tempfile.TemporaryDirectory() as folder, computing_threads() as threads:
        args.output_dir, args.ckpt_dir = f"{folder}/outputs", f"{folder}/checkpoints"
        solver = Solver(args)
        device, step = solver.device, partial(solver_step, solver)

        def run(flush, step, n):
            return threads[flush].submit(seconds, step, n, device).result()

        with solver.folder:
            weights = all_weights(solver, lambda: run(True, step, args.warm))
            args.lr = 1e-9
            run(True, step, 1)
            peak, plain = peak_gb(device), Plain(solver)  # the peak before there is a plain loop
            with FlopCounterMode(display=False) as counter:
                plain.step()
            loops = {"plain": (plain, plain.step), "Solver": (solver, step)}
            rows = {row: [] for row in ROWS if row[0] in weights}
            products = {precision: [] for precision in {"float32", args.precision}}
            for _ in progress(range(args.rounds), delay=0, leave=True, unit="round"):
                for (state, loop, flush), times in rows.items():
                    trainer, step = loops[loop]
                    trainer.net.load_state_dict(weights[state])
                    trainer.iter = 0 if state == "fresh" else args.C_stop_iter  # where C is C_max
                    times.append(run(flush, step, args.burst))
                for precision, rates in products.items():
                    rates.append(matmul_gflop_s(DTYPES[precision], device))
    return {
        **figures(rows, products, counter.get_total_flops() / 1e9, args.precision),
        **{"peak_gb": peak, "device": device_name(device), "threads": torch.get_num_threads()},
        **{"versions": versions(), "arguments": vars(args)},
    }


def figures(rows, products, gflop, precision):
    """Medians of the seconds of each row, and of the rates of the products in GFLOP/s."""
    products, table = {name: statistics.median(rates) for name, rates in products.items()}, []
    for (state, loop, flush), times in rows.items():
        it_s = 1 / statistics.median(times)
        row = {"weights": state, "loop": loop, "flush": flush, "it_s": it_s}
        row |= {"slowest": 1 / max(times), "fastest": 1 / min(times)}
        row["ratio"] = statistics.median(a / b for a, b in zip(rows[state, "plain", False], times))
        row |= {"gflop_s": it_s * gflop, "limit": products["float32" if loop == "plain" else precision]}
        table.append({**row, "share": row["gflop_s"] / row["limit"]})
    return {"rows": table, "gflop": gflop, "matmul_gflop_s": products}


def report(args, results):
    """Prints the table."""
    print(
        f"{results['device']}, {results['threads']} threads, torch {torch.__version__}; model {args.model}, {args.dataset}, "
        f"batch {args.batch_size}, {args.precision}; {args.rounds} rounds of {args.burst} steps of {results['gflop']:.2f} GFLOP"
    )
    print("weights  loop    denormals   it/s (from .. to)      ratio  GFLOP/s  of a matrix product")
    for row in results["rows"]:
        print(
            f"{row['weights']:8} {row['loop']:7} {'flushed' if row['flush'] else 'kept':8} {row['it_s']:7.1f} "
            f"({row['slowest']:5.1f} .. {row['fastest']:5.1f}) {row['ratio']:8.2f} {row['gflop_s']:8.0f} "
            f"{row['share']:8.0%} of {row['limit']:.0f}"
        )
    print(f"peak memory of the Solver alone: {results['peak_gb']:.2f} GB")


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = bench_parser()
    args = parse(argv, parser)
    least = {"rounds": 1, "burst": 1, "warm": 0}
    for name, minimum in least.items():
        if getattr(args, name) < minimum:
            parser.error(f"--{name} must be at least {minimum}, not {getattr(args, name)}")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        parser.error(f"--json {args.json}: there is no such folder")

    def run():
        results = measure(args)
        report(args, results)
        if args.json:
            with atomic_file(args.json) as file:
                file.write(json.dumps(results, indent=2).encode())

    return run_cli("bench.py", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
