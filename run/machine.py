"""What a run computes on: the device, and whatever else of the machine its numbers depend on."""

import ctypes
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "numpy", "scikit-learn")


def set_up_device(cuda, threads=0):
    """Set how torch computes in this process; return the CUDA device if cuda and there is one, else the CPU.

    threads: of the CPU; 0 is torch's choice. Numbers that are almost zero (denormal), of which trained networks make
    many, are flushed to zero: a CPU's convolutions stumble over them, and a step takes 1.3 times as long.
    """
    torch.set_flush_denormal(True)  # before there are other threads: each inherits it when it is made
    if threads:
        torch.set_num_threads(threads)
    if not (cuda and torch.cuda.is_available()):
        return torch.device("cpu")
    # TensorFloat-32: products of 10-bit mantissas, sums in float32
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    return torch.device("cuda")


def keep_freed_memory():
    """Let the process keep the memory that it frees, blocks of up to 256 MB, for its next allocations.

    glibc hands large blocks back to the system, which clears each page of the next one: in training, whose activations
    are blocks of 8 MB, that is a third of the time. Does nothing where there is no glibc.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        # 2**25 is the most that older ones take; with the first call alone they would give back even more
        libc.mallopt(M_MMAP_THRESHOLD, 2**28) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)


def has_bf16():
    """Tell whether the CPU itself computes in bf16; True where it does not say."""
    flags = Path("/proc/cpuinfo")
    return not flags.exists() or not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags.read_text().split())


def git_commit():
    """Return the commit of the code that runs, with "+changes" if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    options = dict(cwd=Path(__file__).parent, text=True, capture_output=True, check=True, timeout=10)
    try:
        return subprocess.run(command, **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def machine(device, precision):
    """Describe what the numbers of a run depend on besides its flags, as a dict for args.json, checkpoints and scores."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "commit": git_commit(),
    }
