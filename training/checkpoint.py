"""Checkpoints of a run: one of them is always whole, and reading one runs no code."""

import io
import os
import zipfile
from pathlib import Path

import torch

from utils import UserError, atomic_file, first_line

MARKED_AS_FOLDER = 0x10  # an attribute of members of zip files: torch reads nothing of them, and says nothing


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

    def forget(self, last_own, current):
        """Removes what is of a replaced run: all but last and iterations up to last_own; last too if none is current."""
        for path in self.paths():
            kept = path.name.isdecimal() and int(path.name) in range(1, last_own + 1)
            if not (kept or current and path.name in ("last", str(current))):
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
            keep = name == "last" and is_whole(path)
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
            raise UserError(f"no checkpoint {name} in {self.folder} (there: {there}), nor a file {name}")
        return read_checkpoint(path)

    def load_newest(self):
        """The newest checkpoint that can be read; None if there is none of any kind."""
        paths, newest = self.paths(), None
        for path in paths:
            if newest and int(path.name) <= newest["iter"]:  # one that is kept may be newer than previous
                break
            try:
                newest = read_checkpoint(path)
            except UserError as error:
                print(f"{error}: taking the newest of the others")
                continue
            if path.name == "last":
                return newest
            used = path
        if newest:
            print(f"using checkpoint {used} of iteration {newest['iter']}")
        elif paths:
            lose = "to start afresh and lose them: --ckpt_name none --overwrite True"
            raise UserError(f"no checkpoint in {self.folder} can be read; {lose}")
        return newest


def check_members(path):
    """ValueError if a zip file is not as torch.save writes it, or a checksum is wrong: torch itself does not look."""
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("it is not a file")
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.external_attr & MARKED_AS_FOLDER:
                raise ValueError("it is not as torch.save writes it")
        if member := archive.testzip():
            raise ValueError(f"checksum of {member} is wrong")


def is_whole(path):
    try:
        check_members(path)
    except Exception:  # zipfile has a dozen types, for as many kinds of damage
        return False
    return True


def read_checkpoint(path):
    """Reads a checkpoint onto the CPU: a dict of iter, model_states, optim_states and, in this project's own, more.

    Runs no code from the file. Files of 1Konny/Beta-VAE, which may be in torch's format from before zip files, hold no
    "arguments": None here. UserError, in one line, if it cannot be read.
    """
    path = Path(path)
    try:
        before_zip = path.is_file() and path.read_bytes().startswith(b"\x80\x02")  # as torch wrote before 1.6
        if not before_zip:
            check_members(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if type(state["iter"]) is not int or state["iter"] < 0 or not state["model_states"]["net"]:
            raise ValueError("its iteration or its network is missing")
        if not isinstance(state.get("arguments"), (dict, type(None))):
            raise ValueError("its flags are no table")
        return {"arguments": None, **state}
    except Exception as error:  # of zipfile, pickle and torch, for as many kinds of damage
        what = first_line(error)
        if "Weights only" in what:
            what = "it holds other things than tensors and plain values, which might run code"
        raise UserError(f"checkpoint {path} cannot be read: {what}") from error


def load_optimizer(optim, saved):
    """Takes the averages of a saved optimiser; its settings stay those of the flags and of the device here.

    UserError if there are none, ValueError or KeyError if they are of another network or optimiser.
    """
    if not saved["param_groups"]:
        raise UserError("the checkpoint holds weights without an optimiser: only --train False can use it")
    pairs = zip(optim.state_dict()["param_groups"], saved["param_groups"], strict=True)
    groups = [{**group, "params": before["params"]} for group, before in pairs]
    optim.load_state_dict({"state": saved["state"], "param_groups": groups})
    averages = ["sum"] if isinstance(optim, torch.optim.Adagrad) else ["exp_avg", "exp_avg_sq"]
    for p in (p for group in optim.param_groups for p in group["params"]):
        state = optim.state[p]
        if any(state[name].shape != p.shape for name in averages) or state["step"].numel() != 1:
            raise ValueError("the optimiser's averages are of other shapes")


def load_noise(noise, saved, seed):
    """Sets the generator of the noise as in a checkpoint; anew, from seed, where that was of another kind of device."""
    if (saved["device"] == "cpu") == (noise.device.type == "cpu"):
        noise.set_state(saved["generators"]["noise"])
    else:
        noise.manual_seed(seed)
