"""Which flags make a run what it is: with others, it is another run."""

import argparse

from dataset import DATASETS, default_distribution
from model import MODELS
from objectives import OBJECTIVES, flags_of

CHOICES = {
    "objective": list(OBJECTIVES),
    "optimizer": ["adam", "adagrad"],
    "dist": ["bernoulli", "gaussian"],
    "model": list(MODELS),
    "dataset": DATASETS,
}
FLAGS_OF = {  # flags that count with one optimiser, or one objective, only
    "adam": ["beta1", "beta2"],
    "adagrad": [],
    **{name: flags_of(objective) for name, objective in OBJECTIVES.items()},
}
ADDED = {"C_start": 0.0, "lr_start_iter": 0, "lr_stop_iter": 0}  # flags that older checkpoints lack


def defining_flags(args):
    """The flags that make a run what it is, as a dict."""
    names = ["dataset", "dist", "model", "objective", "z_dim", "optimizer", "batch_size", "seed"]
    names += ["lr", "lr_start_iter", "lr_stop_iter", *FLAGS_OF[args.optimizer], *FLAGS_OF[args.objective]]
    flags = {name: getattr(args, name) for name in names}
    return {**flags, "dist": args.dist or default_distribution(args.dataset)}


def saved_flags(arguments):
    """The flags in a checkpoint, a dict, as a namespace; AttributeError or ValueError if main.py writes no such."""
    saved = argparse.Namespace(**{**ADDED, **arguments})
    for name, allowed in CHOICES.items():
        if getattr(saved, name) not in [*allowed, None]:
            raise ValueError(f"its {name} is {getattr(saved, name)!r}")
    for name, value in defining_flags(saved).items():
        if name not in CHOICES and type(value) not in (int, float):
            raise ValueError(f"its {name} is {value!r}")
    return saved


def other_settings(saved, args):
    """["lr 0.0001 (now 0.001)", ..]: where the flags in a checkpoint make another run than args; both namespaces."""
    before = {**vars(saved), **defining_flags(saved)}
    return [
        f"{name} {before.get(name)} (now {value})"
        for name, value in defining_flags(args).items()
        if before.get(name) != value
    ]
