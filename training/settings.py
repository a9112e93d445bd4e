"""What the flags of a run may be, and which of them make it what it is: for the command line and for checkpoints."""

import argparse
import math

from dataset import DATASETS, MOST_WORKERS, default_distribution
from model import MODELS

# from 1 on
WHOLE = [
    "max_iter",
    "batch_size",
    "z_dim",
    "C_stop_iter",
    "weak_iters",
    "rise_iters",
    "gather_step",
    "display_step",
    "save_step",
]
RULES = (  # for numbers among the flags: which, what must hold, and that in words
    (WHOLE, lambda v: v >= 1, "at least 1"),
    (
        ["seed", "threads", "num_workers", "restart_iter", "lr_start_iter", "lr_stop_iter"],
        lambda v: v >= 0,
        "at least 0",
    ),
    (
        ["beta", "gamma", "C_start", "C_max", "delta", "restart_beta"],
        lambda v: 0 <= v < math.inf,
        "a number of at least 0",
    ),
    (["lr"], lambda v: 0 < v < math.inf, "a number above 0"),
    (["beta1", "beta2"], lambda v: 0 <= v < 1, "at least 0 and below 1"),
    (["viz_port"], lambda v: 1 <= v <= 65535, "a port, 1 to 65535"),
    (["image_size"], lambda v: v == 64, "64: the networks of both papers are made for 64x64 images"),
    ([*WHOLE, "seed"], lambda v: v < 2**63, "below 2^63"),
    (["z_dim"], lambda v: v <= 1024, "at most 1024"),
    (["threads"], lambda v: v <= 4096, "at most 4096"),
    (["num_workers"], lambda v: v <= MOST_WORKERS, f"at most {MOST_WORKERS}"),
)


def broken_rule(flags, rules=RULES):
    """(name, what it must be) of the first of flags, a dict, that breaks a rule; None if none does."""
    for names, holds, rule in rules:
        for name in names:
            if name in flags and not holds(flags[name]):
                return name, rule
    return None


CHOICES = {
    "objective": ["H", "B", "TC", "restart"],
    "optimizer": ["adam", "adagrad"],
    "dist": ["bernoulli", "gaussian"],
}
SETTINGS = {  # flags that count with one optimiser, or one objective, only
    "adam": ["beta1", "beta2"],
    "adagrad": [],
    "H": ["beta"],
    "B": ["gamma", "C_start", "C_max", "C_stop_iter", "delta"],
    "TC": ["beta"],
    "restart": [
        "beta",
        "gamma",
        "C_start",
        "C_max",
        "C_stop_iter",
        "delta",
        "restart_iter",
        "restart_beta",
        "weak_iters",
        "rise_iters",
    ],
}


def defining_flags(args):
    """The flags that make a run what it is, as a dict: with others, it is another run."""
    names = [
        "dataset",
        "dist",
        "model",
        "objective",
        "z_dim",
        "optimizer",
        "lr",
        "lr_start_iter",
        "lr_stop_iter",
        "batch_size",
        "seed",
    ]
    names += SETTINGS[args.optimizer] + SETTINGS[args.objective]
    return {
        **{name: getattr(args, name) for name in names},
        "dist": args.dist or default_distribution(args.dataset),
    }


def saved_flags(arguments):
    """The flags in a checkpoint, a dict, as a namespace; those that came later have the values it was made with."""
    return argparse.Namespace(
        **{
            "optimizer": "adam",
            "dist": None,
            "C_start": 0.0,
            "delta": 0.0,
            "lr_start_iter": 0,
            "lr_stop_iter": 0,
            **arguments,
        }
    )


def fault_of_flags(saved):
    """What is wrong with the flags in a checkpoint, as text; None if they are such as main.py lets through."""
    choices = {**CHOICES, "dist": [None, *CHOICES["dist"]], "dataset": DATASETS, "model": list(MODELS)}
    for name, allowed in choices.items():
        if getattr(saved, name, None) not in allowed:
            return f"its {name} is {getattr(saved, name, None)!r}"
    try:
        flags = defining_flags(saved)
    except AttributeError as error:
        return str(error)
    for name, value in flags.items():
        if name not in choices and not (
            type(value) is int or type(value) is float and name not in (*WHOLE, "seed")
        ):
            return f"its {name} is {value!r}"
    if broken := broken_rule(flags):
        return f"its {broken[0]} is {flags[broken[0]]!r}"
    return None
