"""Checkpoints of a run: one of them is always whole, and reading one runs no code."""

import io
import zipfile
from pathlib import Path

import torch

from model import MODELS
from utils import UserError, atomic_file, first_line


class Checkpoints:
    """A run's folder of checkpoints: last, previous, and one for each KEEP_EVERY iterations, kept for good."""

    KEEP_EVERY = 50_000

    def __init__(self, folder):
        self.folder = Path(folder)

    def paths(self):
        """List the checkpoints that are there: last, previous, then those kept, from the latest iteration on."""
        kept = sorted((int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdecimal()), reverse=True)
        return [p for name in ("last", "previous", *map(str, kept)) if (p := self.folder / name).exists()]

    def save(self, state):
        """Write state as last. What was last, if it can be read, becomes previous: one of them is always whole."""
        buffer = io.BytesIO()
        torch.save(state, buffer)  # not to the file: torch's own message for a full disk is long
        last, kept = self.folder / "last", self.folder / str(state["iter"])
        for path in [kept, last] if state["iter"] % self.KEEP_EVERY == 0 else [last]:
            with atomic_file(path) as file:
                file.write(buffer.getbuffer())
                if path == last and is_whole(last):
                    last.replace(self.folder / "previous")

    def load(self, name="last"):
        """Read a checkpoint onto the CPU: last, another name in the folder, or a path. UserError if it cannot be read.

        A damaged last gives way to previous, and that to those kept. None if last is asked for and there are none at all.
        """
        if name != "last":
            return read_checkpoint(self.folder / name if (self.folder / name).exists() else name)
        for path in self.paths():
            try:
                return read_checkpoint(path)
            except UserError as error:
                print(error)
        if self.paths():
            raise UserError(f"no checkpoint in {self.folder} can be read: --overwrite True starts anew")
        return None


def read_checkpoint(path):
    """Read a checkpoint onto the CPU: a dict of iter, model_states, optim_states and, in this project's own, more.

    Runs no code from the file. Files of 1Konny/Beta-VAE hold no "arguments": None here. UserError, in one line, if it
    cannot be read.
    """
    try:
        # torch compares no checksums; before version 1.6 it wrote files without any
        if zipfile.is_zipfile(path) and (member := zipfile.ZipFile(path).testzip()):
            raise ValueError(f"checksum of {member} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {"arguments": None, "iter": state["iter"], "model_states": state["model_states"], **state}
    except Exception as error:  # of zipfile, pickle and torch, for as many kinds of damage
        what = first_line(error)
        if "Weights only" in what:
            what = "it is damaged, or holds more than tensors and plain values, which might run code"
        raise UserError(f"checkpoint {path} cannot be read: {what}") from error


def is_whole(path):
    try:
        return bool(read_checkpoint(path))
    except UserError:
        return False


def load_model(path):
    """Load the network of a checkpoint, of this project or of 1Konny/Beta-VAE, on the CPU and in eval mode.

    z_dim and channels are inferred from the weights, and so is the model where no --model stands in the checkpoint.
    Raises a one-line UserError if they are of no such network.
    """
    state = read_checkpoint(path)
    weights, model = state["model_states"]["net"], (state["arguments"] or {}).get("model")
    encoder = [len(value) for name, value in weights.items() if name.startswith("encoder.")]
    z_dim = encoder[-1] // 2 if encoder else 1  # the last layer gives mu and logvar
    # The last bias has a value per channel, that of a linear layer one per pixel.
    outputs = list(weights.values())[-1].numel()
    for build in [MODELS[model]] if model in MODELS else MODELS.values():
        for channels in (1, 3, outputs // build.image_size**2 or outputs):
            net = build(z_dim, channels)
            if shapes(net.state_dict()) == shapes(weights):
                net.load_state_dict(weights)
                return net.eval()
    raise UserError(f"checkpoint {path} holds none of the networks {', '.join(MODELS)}")


def shapes(weights):
    return {name: value.shape for name, value in weights.items()}


def load_optimizers(optims, saved):
    """Take the averages of saved optimisers, {name: state}; settings stay those of the flags and of the device here."""
    if not all(name in saved and saved[name]["param_groups"] for name in optims):
        what = "the checkpoint lacks the optimiser's averages"
        raise UserError(f"{what}: --init FILE starts a new run from its weights")
    for name, optim in optims.items():
        # Up to torch 1.5, parameters are named by addresses, as in the keys of the saved state.
        groups = zip(optim.state_dict()["param_groups"], saved[name]["param_groups"])
        groups = [{**group, "params": before["params"]} for group, before in groups]
        optim.load_state_dict({"state": saved[name]["state"], "param_groups": groups})


def load_noise(noise, saved, seed):
    """Set the generator of the noise as in a checkpoint; anew, from seed, where that was of another kind of device."""
    if (saved["device"] == "cpu") == (noise.device.type == "cpu"):
        noise.set_state(saved["generators"]["noise"])
    else:
        noise.manual_seed(seed)
