"""What the flags of a run may be, and which of them make it what it is: for the command line and for checkpoints."""

import argparse

from dataset import DATASETS, MOST_WORKERS, default_distribution
from model import MODELS
from objectives import OBJECTIVES, flags_of

WHOLE = "max_iter batch_size z_dim C_stop_iter restart_iter weak_iters rise_iters".split()
WHOLE += ["gather_step", "display_step", "save_step"]  # whole numbers, at least 1
MOST = 1e38  # about as far as float32 goes
RULES = (  # for numbers among the flags: which, what must hold, and that in words
    (WHOLE, lambda v: v >= 1, "at least 1"),
    (["seed", "threads", "num_workers", "lr_start_iter", "lr_stop_iter"], lambda v: v >= 0, "at least 0"),
    (["beta", "gamma", "C_start", "C_max", "delta"], lambda v: 0 <= v <= MOST, "a number from 0 to 1e38"),
    (["lr"], lambda v: 0 < v <= MOST, "a number above 0, at most 1e38"),
    (["restart_beta"], lambda v: 0 < v <= MOST, "a number above 0, at most 1e38"),
    (["beta1", "beta2"], lambda v: 0 <= v < 1, "at least 0 and below 1"),
    (["viz_port"], lambda v: 1 <= v <= 65535, "a port, 1 to 65535"),
    ([*WHOLE, "seed"], lambda v: v < 2**62, "below 2^62"),
    (["z_dim"], lambda v: v <= 1024, "at most 1024"),
    (["threads"], lambda v: v <= 4096, "at most 4096"),
    (["num_workers"], lambda v: v <= MOST_WORKERS, f"at most {MOST_WORKERS}"),
)
FLAGS_OF = {  # flags that count with one optimiser, or one objective, only
    "adam": ["beta1", "beta2"],
    "adagrad": [],
    **{name: flags_of(objective) for name, objective in OBJECTIVES.items()},
}
CHOICES = {
    "objective": list(OBJECTIVES),
    "optimizer": ["adam", "adagrad"],
    "dist": ["bernoulli", "gaussian"],
    "model": list(MODELS),
    "dataset": DATASETS,
}
ADDED = {  # flags that older checkpoints lack
    "optimizer": "adam",
    "dist": None,
    "C_start": 0.0,
    "delta": 0.0,
    "lr_start_iter": 0,
    "lr_stop_iter": 0,
}


def broken_rule(flags, rules=RULES):
    """(name, what it must be) of the first of flags, a dict, that breaks a rule; None if none does."""
    for names, holds, rule in rules:
        for name in names:
            if name in flags and not holds(flags[name]):
                return name, rule
    return None


def defining_flags(args):
    """The flags that make a run what it is, as a dict: with others, it is another run."""
    names = ["dataset", "dist", "model", "objective", "z_dim", "optimizer", "batch_size", "seed"]
    names += ["lr", "lr_start_iter", "lr_stop_iter"]
    names += FLAGS_OF[args.optimizer] + FLAGS_OF[args.objective]
    return {
        **{name: getattr(args, name) for name in names},
        "dist": args.dist or default_distribution(args.dataset),
    }


def saved_flags(arguments):
    """The flags in a checkpoint, a dict, as a namespace; those that came later have the values it was made with."""
    saved = argparse.Namespace(**ADDED)
    vars(saved).update(arguments)
    return saved


def fault_of_flags(saved):
    """What is wrong with the flags in a checkpoint, as text; None if they are such as main.py lets through."""
    try:
        for name, allowed in CHOICES.items():
            if getattr(saved, name) not in (*allowed, *[None] * (name == "dist")):
                return f"its {name} is {getattr(saved, name)!r}"
        flags = defining_flags(saved)
        whole = {name for name in flags if name in (*WHOLE, "seed")}
        for name in flags.keys() - CHOICES.keys():
            if type(flags[name]) not in ((int,) if name in whole else (int, float)):
                return f"its {name} is {flags[name]!r}"
        if broken := broken_rule(flags):
            return f"its {broken[0]} is {flags[broken[0]]!r}"
    except (AttributeError, TypeError) as error:
        return str(error)
    return None


def other_settings(saved, args):
    """["lr 0.0001 (now 0.001)", ..]: where the flags in a checkpoint make another run than args; both namespaces."""
    before = {**vars(saved), **defining_flags(saved)}
    return [
        f"{name} {before.get(name)} (now {value})"
        for name, value in defining_flags(args).items()
        if before.get(name) != value
    ]
