"""Checkpoints of a run: one of them is always whole, and reading one runs no code."""

import io
import zipfile
from pathlib import Path

import torch

from optimizers import state_shapes
from utils import UserError, atomic_file, first_line

MARKED_AS_FOLDER = 0x10  # an attribute of members of zip files: torch reads nothing of them, and says nothing


class Checkpoints:
    """A run's folder of checkpoints: last, previous, and one for each KEEP_EVERY iterations, kept for good."""

    KEEP_EVERY = 50_000

    def __init__(self, folder):
        self.folder = Path(folder)

    def paths(self):
        """The checkpoints that are there: last, previous, then those kept, from the latest iteration on."""
        kept = [path.name for path in self.folder.glob("[0-9]*") if path.name.isdecimal() and path.is_file()]
        names = ["last", "previous", *sorted(kept, key=int, reverse=True)]
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def forget(self, last_own, current):
        """Removes what is of a replaced run: all but last and iterations up to last_own; last too if none is current."""
        for path in self.paths():
            kept = path.name.isdecimal() and int(path.name) in range(1, last_own + 1)
            if not (kept or current and path.name in ("last", str(current))):
                path.unlink()

    def save(self, state):
        """Writes state as last; what was last, if whole, becomes previous: one of them is always whole."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        last, names = self.folder / "last", ["last"]
        if state["iter"] % self.KEEP_EVERY == 0:
            names.insert(0, str(state["iter"]))
        for name in names:
            keep = name == "last" and is_whole(last)
            with atomic_file(self.folder / name, backup=self.folder / "previous" if keep else None) as file:
                file.write(buffer.getbuffer())

    def path(self, name):
        """Of the checkpoint of that name in the folder; else the name is a path itself."""
        return self.folder / name if (self.folder / name).exists() else Path(name)

    def load(self, name="last"):
        """Reads a checkpoint onto the CPU: last, another name in the folder, or a path. UserError if it cannot be read.

        A damaged last gives way to the newest that can be read. None if last is asked for and there are none at all.
        """
        if name != "last":
            return read_checkpoint(self.path(name))
        newest = None
        for path in self.paths():
            try:
                state = read_checkpoint(path)
            except UserError as error:
                print(f"{error}: taking the newest of the others")
                continue
            if path.name == "last":
                return state
            # one that is kept may be newer than previous
            if newest is None or state["iter"] > newest["iter"]:
                newest, used = state, path
        if newest:
            print(f"using checkpoint {used} of iteration {newest['iter']}")
        elif self.paths():
            lose = "to start afresh and lose them: --ckpt_name none --overwrite True"
            raise UserError(f"no checkpoint in {self.folder} can be read; {lose}")
        return newest


def check_members(path):
    """ValueError if a zip file is not as torch.save writes it, or a checksum is wrong: torch itself does not look."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.external_attr & MARKED_AS_FOLDER:
                raise ValueError("it is not as torch.save writes it")
        if member := archive.testzip():
            raise ValueError(f"checksum of {member} is wrong")


def is_whole(path):
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        check_members(path)
    except Exception:  # zipfile has a dozen types, for as many kinds of damage
        return False
    return True


def read_checkpoint(path):
    """Reads a checkpoint onto the CPU: a dict of iter, model_states, optim_states and, in this project's own, more.

    Runs no code from the file. Files of 1Konny/Beta-VAE hold no "arguments": None here. UserError, in one line, if it
    cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is not a file" if path.exists() else "there is none of that name")
        with open(path, "rb") as file:
            before_zip = file.read(2) == b"\x80\x02"  # torch's format before 1.6, which has no checksums
        if not before_zip:
            check_members(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if type(state["iter"]) is not int or state["iter"] < 0 or not state["model_states"]["net"]:
            raise ValueError("its iteration or its network is missing")
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
    for p in (p for group in optim.param_groups for p in group["params"] if p.requires_grad):
        if any(optim.state[p][name].shape != shape for name, shape in state_shapes(optim, p).items()):
            raise ValueError("the optimiser's averages are of other shapes")


def load_noise(noise, saved, seed):
    """Sets the generator of the noise as in a checkpoint; anew, from seed, where that was of another kind of device."""
    if (saved["device"] == "cpu") == (noise.device.type == "cpu"):
        noise.set_state(saved["generators"]["noise"])
    else:
        noise.manual_seed(seed)
