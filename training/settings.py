"""Which flags make a run what it is: with others, it is another run."""

import argparse

from dataset import DATASETS, default_distribution
from model import MODELS
from objectives import OBJECTIVES, flags_of

CHOICES = {
    "objective": list(OBJECTIVES),
    "optimizer": ["adam", "adagrad", "muon"],
    "dist": ["bernoulli", "gaussian"],
    "model": list(MODELS),
    "dataset": DATASETS,
}
FLAGS_OF = {  # flags that count with one optimiser, or one objective, only
    "adam": ["beta1", "beta2"],
    "adagrad": [],
    "muon": ["beta1", "beta2"],
    **{name: flags_of(objective) for name, objective in OBJECTIVES.items()},
}
# The numbers among them: the least of each whole number (of the others 0), and what is too large
WHOLE = {"z_dim": 1, "batch_size": 1, "C_stop_iter": 1, "weak_iters": 1, "rise_iters": 1}
WHOLE |= {"seed": 0, "lr_start_iter": 0, "lr_stop_iter": 0}
BELOW = {"z_dim": 1025, "beta1": 1, "beta2": 1}
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
        if getattr(saved, name) not in (allowed if name != "dist" else [*allowed, None]):
            raise ValueError(f"its {name} is {getattr(saved, name)!r}")
    try:
        flags = defining_flags(saved)
    except AttributeError as error:
        raise ValueError(
            f"it has no flag {error.name}: a new one needs a value for old runs in ADDED, training/settings.py"
        )
    for name, value in flags.items():
        kinds = (int,) if name in WHOLE else (bool, int, float)
        fits = type(value) in kinds and WHOLE.get(name, 0) <= value < BELOW.get(name, 1e38)
        if name not in CHOICES and not fits:
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
