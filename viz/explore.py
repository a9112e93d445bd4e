"""A page to play with: one HTML file that runs a decoder in the browser, with a slider for each latent.

    python -m viz.explore --ckpt misc/dsprites_B.pt --out explore.html

It loads nothing from a network; a browser opens it from disk.
"""

import argparse
import base64
import io
import json
from pathlib import Path

import torch
from torch import nn

from utils import ACTIVE, Parser, UserError, atomic_file, run_cli
from viz.pictures import picture


def to_layers(decoder):
    """The decoder's layers as the page runs them, on pixels of (row, column, channel)."""
    layers, flat = [], True
    for module in decoder if isinstance(decoder, nn.Sequential) else [decoder]:
        match module:
            case nn.Linear(bias=torch.Tensor()) if flat:  # a transposed convolution of one pixel to one pixel
                last = dict(k=1, stride=1, padding=0, weight=module.weight.T, bias=module.bias)
                layers.append(last)
            case nn.Unflatten(unflattened_size=size) if flat and layers:  # a Linear's C, H, W to H, W, C
                last |= {name: last[name].unflatten(-1, size).movedim(-3, -1) for name in ("weight", "bias")}
                flat = False
            case nn.ConvTranspose2d(bias=torch.Tensor(), groups=1, dilation=(1, 1)) if not flat:
                sizes = dict(k=module.kernel_size[0], stride=module.stride[0], padding=module.padding[0])
                layers.append(dict(**sizes, weight=module.weight.permute(0, 2, 3, 1), bias=module.bias))
            case nn.ReLU() | nn.Tanh():
                layers.append({"activation": type(module).__name__})
            case _:
                raise UserError(f"no page: explore.html cannot run this layer of the decoder: {module}")
    return layers


def encode(weights):
    """JSON of a tensor: its values, row by row, as base64 of float16."""
    half = weights.detach().cpu().half().contiguous()
    if not half.isfinite().all():
        raise UserError("no page: weights are not finite, or too large for float16")
    return base64.b64encode(half.numpy()).decode()


def write_page(path, net, images, mu, kld, names=None, title="beta-VAE"):
    """Writes the page of net's decoder to path: a file of 0.7 MB for BetaVAE_B, weights in float16.

    images (S, C, H, W) in [0, 1] and their posterior means mu (S, z_dim), to start from; kld: KL of each latent, z_dim
    nats; names: the factor each is most informative about, z_dim texts, or None. UserError if there can be no page.
    """
    kld, names = [float(nats) for nats in kld], names or [""] * len(kld)
    model = dict(
        title=title, channels=images.shape[1], layers=to_layers(net.decoder), seeds=[], active=ACTIVE, kld=kld
    )
    model["names"] = [name if nats > ACTIVE else "" for name, nats in zip(names, kld)]
    for image, mean in zip(images.cpu(), mu.tolist()):
        picture(image).save(png := io.BytesIO(), format="PNG")
        model["seeds"].append({"png": base64.b64encode(png.getvalue()).decode(), "mu": mean})
    text = json.dumps(model, default=encode, allow_nan=False).replace("<", "\\u003c")
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    with atomic_file(path) as file:
        file.write(page.replace("MODEL", text).encode())


def explore(ckpt, out, dset_dir):
    """Writes the page of a checkpoint."""
    from dataset import return_data
    from evaluation.evaluator import Evaluator
    from model import load_model
    from training.checkpoint import read_checkpoint

    flags = argparse.Namespace(**read_checkpoint(ckpt)["arguments"])
    flags.dset_dir = dset_dir
    Evaluator(load_model(ckpt), return_data(flags), flags.seed).write_page(out, flags.viz_name)
    print(f"{out}: open it in a browser")


def main(argv=None):
    parser = Parser(prog="explore.py", description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", required=True, help="checkpoint of a run")
    parser.add_argument("--out", default="explore.html", help="file of the page")
    parser.add_argument("--dset_dir", default="data", help="folder of the run's data set")
    args = parser.parse_args(argv)
    return run_cli(parser.prog, "interrupted", lambda: explore(**vars(args)))


if __name__ == "__main__":
    raise SystemExit(main())
