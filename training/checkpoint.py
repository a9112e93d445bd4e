"""Checkpoints of a run: written so that one is always whole, and read as if a stranger had made them."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import torch

from utils import UserError, atomic_file


class Checkpoints:
    """A run's folder of checkpoints: last, previous, and one for each KEEP_EVERY iterations, kept for good.

    A checkpoint holds tensors and plain Python values only, so that loading one runs no code.
    """

    KEEP_EVERY = 50_000

    def __init__(self, folder):
        self.folder = Path(folder)

    def paths(self):
        """The checkpoints that are there: last, previous, then those kept, from the latest iteration on."""
        names = ["last", "previous"]
        if self.folder.is_dir():
            kept = [p.name for p in self.folder.iterdir() if p.name.isdecimal() and p.is_file()]
            names += sorted(kept, key=int, reverse=True)
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def forget_after(self, iteration):
        """Removes previous, and what is kept from later iterations; all of it after 0."""
        for path in self.paths():
            if (
                path.name == "previous"
                or iteration == 0
                or path.name != "last"
                and int(path.name) > iteration
            ):
                path.unlink()

    def save(self, state):
        """Writes state as last; what was last, if whole, becomes previous: one of them is always whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = ["last"] + [str(state["iter"])] * (state["iter"] % self.KEEP_EVERY == 0)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        for name in reversed(names):
            path = self.folder / name
            if path.is_dir():
                os.rename(path, path.with_name(f"{name}.folder"))
            keep = name == "last" and not damage(path)
            with atomic_file(path, backup=self.folder / "previous" if keep else None) as file:
                file.write(buffer.getbuffer())

    def path(self, name):
        """Of the checkpoint of that name in the folder; else the name is a path itself."""
        return self.folder / name if (self.folder / name).exists() else Path(name)

    def load(self, name="last"):
        """Reads a checkpoint onto the CPU.

        name: "last" (if it is damaged the newest readable one; None if there are none at all), another
        name in the folder, or a path. Raises UserError if there is nothing readable to give.
        """
        if name == "last":
            return self.load_newest()
        path = self.path(name)
        if not path.exists():
            there = ", ".join(p.name for p in self.paths()) or "none"
            raise UserError(
                f"no checkpoint {name} in {self.folder} (there: {there}), nor a file of that name"
            )
        try:
            return read_checkpoint(path)
        except ValueError as error:
            raise UserError(f"checkpoint {path} cannot be read: {error}") from None

    def load_newest(self):
        """The newest checkpoint that can be read; None if there is none of any kind."""
        paths, newest = self.paths(), None
        for path in paths:
            if newest and int(path.name) <= newest[1]["iter"]:  # one that is kept may be newer than previous
                break
            try:
                newest = path, read_checkpoint(path)
            except ValueError as error:
                print(f"checkpoint {path} cannot be read ({error}): taking the newest of the others")
                continue
            if path.name == "last":
                return newest[1]
        if newest:
            print(f"using checkpoint {newest[0]} of iteration {newest[1]['iter']}")
            return newest[1]
        if paths:
            raise UserError(
                f"no checkpoint in {self.folder} can be read; to start afresh and lose them: "
                "--ckpt_name none --overwrite True"
            )
        return None


# the first bytes of what torch.save wrote before 1.6
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


FOLDER = 0x10  # an attribute in zip files: of what is marked so, torch reads nothing, and says nothing


def damage(path):
    """What is wrong with the bytes of a checkpoint file, as text; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            if sum(info.file_size for info in archive.infolist()) > os.path.getsize(path):
                return "it would unpack to more than the file holds"
            if any(info.external_attr & FOLDER for info in archive.infolist()):
                return "a tensor in it is marked as a folder"
            member = archive.testzip()
        return f"checksum of {member} is wrong" if member else None
    except Exception as error:  # a dozen types, for as many kinds of damage
        return str(error) or type(error).__name__


def read_checkpoint(path):
    """Loads one checkpoint file; ValueError says what is wrong with it. Never runs code from it.

    Those of 1Konny/Beta-VAE, which hold iter, model_states and optim_states under the same names,
    may be in torch's format from before zip files; their "arguments" are None.
    """
    try:
        with open(path, "rb") as file:
            before_zip = file.read(len(OLD_FORMAT)) == OLD_FORMAT
    except OSError as error:
        raise ValueError(error.strerror) from None
    if not before_zip and (what := damage(path)):
        raise ValueError(what)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "it holds other things than tensors and plain values, which might run code"
            if "Weights only" in str(error)
            else str(error).split("\n")[0]
        ) from None
    except Exception as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not (isinstance(state, dict) and {"iter", "model_states", "optim_states"} <= state.keys()):
        raise ValueError("it was not written by this program")
    state = {"arguments": None, **state}
    check_fields(state)
    return state


# What a checkpoint may hold.


def whole(value):
    return type(value) is int and 0 <= value < 2**62


def number(value):
    return type(value) in (int, float)


def plain(value):
    return value is None or number(value) or type(value) in (bool, str)


def tensor(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def table(value, keys, holds):
    return isinstance(value, dict) and all(type(key) is keys and holds(each) for key, each in value.items())


FIELDS = {
    "iter": whole,
    "model_states.net": lambda v: table(v, str, tensor),
    "optim_states.optim.state": lambda v: table(
        v, int, lambda one: table(one, str, lambda x: tensor(x) or number(x))
    ),
    "optim_states.optim.param_groups": lambda v: (
        isinstance(v, list)
        and all(
            isinstance(group, dict)
            and isinstance(group.get("params"), list)
            and all(map(plain, group["params"]))
            for group in v
        )
    ),
    "arguments": lambda v: v is None or table(v, str, plain),
}
OWN_FIELDS = {  # in those that this program wrote
    "generators.noise": lambda v: tensor(v) and v.dtype == torch.uint8,
    "window.sums": lambda v: tensor(v) and v.dtype == torch.float64,
    "window.count": whole,
    "window.last_row": lambda v: v is None or isinstance(v, list) and all(x is None or number(x) for x in v),
    "device": lambda v: isinstance(v, str),
}


def check_fields(state):
    """ValueError names the first field that is missing, or not of its type."""
    for name, holds in {**FIELDS, **(OWN_FIELDS if state["arguments"] is not None else {})}.items():
        value = state
        for key in name.split("."):
            if not (isinstance(value, dict) and key in value):
                raise ValueError(f"it has no {name}")
            value = value[key]
        if not holds(value):
            raise ValueError(f"its {name} is not what it should be")
