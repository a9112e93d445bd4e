"""Measures how fast this project trains, beside the loop that people write.

    python bench.py
    python bench.py --model H --batch_size 128 --json bench.json
    python bench.py --profile True          # in which operations an iteration spends its time

Arms, each a process of its own, run a few iterations in turn, so that a noisy machine hurts all alike:
    plain       float32 tensor in memory, DataLoader with two workers, torch's own layers, eager, Adam
    float32     main.py --precision float32
    bf16        main.py --precision bf16
In each round a large matrix product in either precision measures what the machine could do at most.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

try:
    import resource
except ImportError:  # Windows has none: no peak memory there
    resource = None

import model
from dataset import DATASETS, return_data
from main import parse
from objectives import capacity_penalty, kl_divergence, reconstruction_loss
from solver import Solver
from utils import Parser, UserError, atomic_file, boolean, count, find_device, progress, run_cli, versions

WARM_UP = 20  # iterations
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def make_parser():
    parser = Parser(
        prog="bench.py",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=["H", "B"], default="B", help="network of Higgins et al. or of Burgess et al.")
    add("--dataset", type=str.lower, choices=DATASETS, default="dsprites", help="data set, in any case")
    add("--dset_dir", default="", help="folder of the data sets; without: a new, empty one")
    add("--batch_size", type=count, default=64, help="images a batch")
    add("--cuda", type=boolean, default=True, help="use a CUDA device when there is one")
    add("--rounds", type=count, default=7, help="turns of each arm")
    add("--burst", type=count, default=100, help="iterations of a turn")
    add("--json", default="", help="file to write the figures to")
    add("--profile", type=boolean, default=False, help="only print where the time of an iteration goes")
    return parser


# What runs in the processes of the arms.


class Turns(tqdm):
    """The progress bar of a training which goes on, some iterations at a time, when told to through pipe."""

    def __init__(self, pipe, device):
        super().__init__(file=open(os.devnull, "w"))
        self.pipe, self.device, self.left = pipe, device, 1

    def update(self):
        super().update()
        self.left -= 1
        if not self.left:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.pipe.send("done")
            self.left = self.pipe.recv()
            if not self.left:
                raise EndOfBench


class EndOfBench(Exception):
    pass


def run_arm(name, args, pipe):
    """Trains; after the first iteration, and whenever told, some more; at the end sends its peak memory in GB."""
    try:
        with (
            open(os.devnull, "w") as null,
            contextlib.redirect_stdout(null),
            tempfile.TemporaryDirectory() as folder,
        ):
            if name == "plain":
                train_plain(args, pipe)
            else:
                solver = project_solver(args, name, folder)
                solver.progress_bar = lambda: Turns(pipe, solver.device)
                solver.train()
    except EndOfBench:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0  # KiB; bytes on macOS
        pipe.send(peak * (1 if sys.platform == "darwin" else 1024) / 1e9)
    except UserError as error:
        print(f"bench.py: {error}", file=sys.stderr)


def project_solver(args, precision, folder):
    """The Solver that main.py would make; what it writes goes to folder."""
    flags = dict(model=args.model, objective="B", lr=5e-4, precision=precision, cuda=args.cuda)
    flags |= dict(dataset=args.dataset, dset_dir=args.dset_dir, batch_size=args.batch_size, gather_step=100)
    flags |= dict(output_dir=f"{folder}/outputs", ckpt_dir=f"{folder}/checkpoints", viz_on=False)
    return Solver(parse([f"--{name}={value}" for name, value in flags.items()]))


def train_plain(args, pipe):
    """The loop as people write it, on an eighth of the set: the whole is as fast, but takes 12 GB."""
    device = find_device(args.cuda)
    data = return_data(args)
    images = torch.empty(len(data) // 8, data.channels, 64, 64)
    # small parts: what is freed before training changes malloc's ways
    for part in torch.arange(len(images)).split(64):
        images[part] = data.batch(part)
    loader = DataLoader(
        images,
        args.batch_size,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if sys.platform == "linux" else None,  # its default
    )
    model.ConvTranspose2d = torch.nn.ConvTranspose2d  # torch's own
    net = model.MODELS[args.model](10, data.channels).to(device)
    optim = torch.optim.Adam(net.parameters(), lr=5e-4)
    bar = Turns(pipe, device)
    while True:
        for x in loader:
            x = x.to(device)
            x_recon, mu, logvar, _ = net(x)
            recon_loss = reconstruction_loss(x, x_recon, data.distribution)
            total_kld, _, _ = kl_divergence(mu, logvar)
            loss = recon_loss + 1000 * capacity_penalty(total_kld, C=1)
            optim.zero_grad()
            loss.backward()
            optim.step()
            bar.update()


# What runs in the process that measures.


class Arm:
    """A training in a process of its own, past its first iteration."""

    def __init__(self, name, args):
        context = multiprocessing.get_context("spawn")
        self.name, (self.pipe, end) = name, context.Pipe()
        self.process = context.Process(target=run_arm, args=(name, args, end))
        start = time.perf_counter()
        self.process.start()
        end.close()
        self.answer()
        self.start_s = time.perf_counter() - start
        self.speeds = []

    def answer(self):
        try:
            return self.pipe.recv()
        except EOFError:
            raise UserError(f"the arm {self.name} ended early") from None

    def run(self, iterations):
        """Returns iterations a second."""
        start = time.perf_counter()
        self.pipe.send(iterations)
        self.answer()
        return iterations / (time.perf_counter() - start)

    def end(self):
        """Returns the peak memory of the process in GB."""
        self.pipe.send(0)
        peak = self.answer()
        self.process.join()
        return peak


def matmul_gflop_s(dtype, device, repeats=3):
    """GFLOP/s of the product of two square matrices: of side 2048, or smaller where a product would take seconds."""

    def seconds(n):
        start = time.perf_counter()
        for _ in range(n):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for size in (512, 1024, 2048):
        a = torch.ones(size, size, dtype=dtype, device=device)
        if seconds(1) > 0.1:  # bfloat16 where the CPU has no instructions for it: some 1 GFLOP/s
            break
    return 2e-9 * size**3 * repeats / seconds(repeats)


def iteration_gflop(args):
    """10^9 floating-point operations of the matrix products and convs in one iteration."""
    x = torch.zeros(1, return_data(args).channels, 64, 64)
    with FlopCounterMode(display=False) as counter:
        x_recon, mu, logvar, _ = model.MODELS[args.model](10, x.shape[1])(x)
        (x_recon.sum() + mu.sum() + logvar.sum()).backward()
    return args.batch_size * counter.get_total_flops() / 1e9


def measure(args):
    """Runs the arms in turn; returns the figures of each arm, by name, and of the products, by precision."""
    device, products, arms = find_device(args.cuda), {name: [] for name in DTYPES}, []
    try:
        for name in ("float32", "bf16", "plain"):  # the first makes the data
            arms.append(Arm(name, args))
        for arm in arms:
            arm.run(WARM_UP)
        for _ in progress(range(args.rounds), delay=0, leave=True, unit="round"):
            for arm in arms:
                arm.speeds.append(arm.run(args.burst))
            for name, dtype in DTYPES.items():
                products[name].append(matmul_gflop_s(dtype, device))
        figures = {
            arm.name: {
                "it_s": statistics.median(arm.speeds),
                "slowest": min(arm.speeds),
                "fastest": max(arm.speeds),
                "ratio": statistics.median(a / b for a, b in zip(arm.speeds, arms[-1].speeds)),
                "start_s": arm.start_s,
                "peak_gb": arm.end(),
            }
            for arm in arms
        }
        return figures, {name: statistics.median(values) for name, values in products.items()}
    finally:
        for arm in arms:
            arm.process.terminate()


def profile(args):
    """Prints in which operations an iteration of the project spends its time."""
    for precision in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            solver = project_solver(args, precision, folder)

        def iterate(n):
            for _ in range(n):
                solver.iter += 1
                solver.training_step(solver.data.batch(solver.next_indices()))

        iterate(WARM_UP)
        start = time.perf_counter()
        with torch.profiler.profile() as record:
            iterate(args.burst)
        print(
            f"\n{precision}: {(time.perf_counter() - start) / args.burst * 1e3:.1f} ms an iteration while profiled, of it"
        )
        for event in sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)[:16]:
            print(
                f"{event.self_cpu_time_total / args.burst / 1e3:8.2f} ms in {event.count // args.burst:3} {event.key}"
            )


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def report(args, figures, products):
    """Prints the table; returns what goes to --json."""
    gflop, name = iteration_gflop(args), device_name(find_device(args.cuda))
    print(
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; model {args.model}, {args.dataset}, "
        f"batch {args.batch_size}, {gflop:.2f} GFLOP an iteration; {args.rounds} rounds of {args.burst} iterations"
    )
    print(
        "           it/s (from .. to)      ratio  GFLOP/s  of a matrix product  first iteration  peak memory"
    )
    for arm in ("plain", "float32", "bf16"):
        row, limit = figures[arm], products["bf16" if arm == "bf16" else "float32"]
        print(
            f"{arm:8} {row['it_s']:6.1f} ({row['slowest']:5.1f} .. {row['fastest']:5.1f}) {row['ratio']:8.2f} {row['it_s'] * gflop:8.0f}"
            f"{row['it_s'] * gflop / limit:9.0%} of {limit:5.0f} {row['start_s']:14.1f} s {row['peak_gb']:9.2f} GB"
        )
    return {
        "plain_it_s": figures["plain"]["it_s"],
        "float32_it_s": figures["float32"]["it_s"],
        "bf16_it_s": figures["bf16"]["it_s"],
        "float32_ratio": figures["float32"]["ratio"],
        "bf16_ratio": figures["bf16"]["ratio"],
        "start_s": figures["float32"]["start_s"],
        "peak_gb": figures["float32"]["peak_gb"],
        "arms": figures,
        "matmul_gflop_s": products,
        "gflop": gflop,
        "device": name,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "arguments": vars(args),
    }


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in ("rounds", "burst", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(args, name)}")

    def run():
        with tempfile.TemporaryDirectory() as folder:
            args.dset_dir = args.dset_dir or folder
            if args.profile:
                return profile(args)
            results = report(args, *measure(args))
        if args.json:
            with atomic_file(args.json) as file:
                file.write(json.dumps(results, indent=2).encode())

    return run_cli("bench.py", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
