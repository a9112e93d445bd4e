"""A page to play with: one HTML file that runs a decoder in the browser, with a slider for each latent.

    python -m viz.explore --ckpt misc/dsprites_B.pt --out explore.html
"""

import argparse
import base64
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.io import encode_png

from utils import ACTIVE, Parser, UserError, atomic_file, exit_status


def to_layers(decoder):
    """The decoder's layers as the page runs them, on pixels of (row, column, channel)."""
    layers, flat = [], True
    for module in decoder if isinstance(decoder, nn.Sequential) else [decoder]:
        match module:
            case nn.Linear(bias=torch.Tensor()) if flat:  # a transposed convolution of one pixel to one pixel
                layer = {"k": 1, "stride": 1, "padding": 0, "weight": module.weight.T, "bias": module.bias}
                layers.append(layer)
            case nn.Unflatten(unflattened_size=size) if flat and layers:  # a Linear's C, H, W to H, W, C
                for name in ("weight", "bias"):
                    layer[name] = layer[name].unflatten(-1, size).movedim(-3, -1)
                flat = False
            case nn.ConvTranspose2d(bias=torch.Tensor(), groups=1, dilation=(1, 1)) if not flat:
                sizes = {"k": module.kernel_size[0], "stride": module.stride[0], "padding": module.padding[0]}
                layers.append({**sizes, "weight": module.weight.permute(0, 2, 3, 1), "bias": module.bias})
            case nn.ReLU() | nn.Tanh():
                layers.append({"activation": type(module).__name__})
            case _:
                raise UserError(f"no page: explore.html cannot run this layer of the decoder: {module}")
    return layers


def write_page(path, net, images, mu, kld, names=None, title="beta-VAE"):
    """Writes the page of net's decoder to path: a file of 0.7 MB for BetaVAE_B, weights in float16.

    images (S, C, H, W) in [0, 1] and their posterior means mu (S, z_dim), to start from; kld: KL of each latent, z_dim
    nats; names: the factor each is most informative about, z_dim texts, or None. UserError if there can be no page.
    """
    layers, numbers, end, kld = to_layers(net.decoder), [], 0, [float(nats) for nats in kld]
    for layer in layers:
        for name in [name for name in ("weight", "bias") if name in layer]:
            numbers.append(layer[name].detach().cpu().numpy().ravel())
            layer[name] = (end, end := end + numbers[-1].size)
    numbers = np.concatenate(numbers).astype("<f2")
    if not (np.isfinite(numbers).all() and np.isfinite(kld).all() and mu.isfinite().all()):
        raise UserError("no page: weights, means or KL are not finite, or weights too large for float16")
    names = [name if nats > ACTIVE else "" for name, nats in zip(names or [""] * len(kld), kld)]
    pngs = [encode_png(image).numpy() for image in (255 * images).round().byte().cpu()]
    seeds = [{"png": base64.b64encode(png).decode(), "mu": mean} for png, mean in zip(pngs, mu.tolist())]
    model = dict(title=title, channels=images.shape[1], layers=layers, kld=kld, names=names, active=ACTIVE, seeds=seeds)
    model["numbers"] = base64.b64encode(numbers).decode()
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    with atomic_file(path, shared=True) as file:
        file.write(page.replace("MODEL", json.dumps(model).replace("<", "\\u003c")).encode())


def load_model(path):
    """The network of a checkpoint, in eval mode, and the flags of its run."""
    from model import MODELS

    state = torch.load(path, map_location="cpu", weights_only=True)
    flags, weights = argparse.Namespace(**state["arguments"]), state["model_states"]["net"]
    net = MODELS[flags.model](flags.z_dim, nc=weights["encoder.0.weight"].shape[1])
    net.load_state_dict(weights)
    return net.eval(), flags


@torch.no_grad()
def explore(ckpt, out, dset_dir):
    """Writes the page of a checkpoint; its KL is that of a thousand images."""
    from dataset import return_data
    from evaluation import metrics
    from viz.pictures import tells

    net, flags = load_model(ckpt)
    data, names = return_data(argparse.Namespace(**{**vars(flags), "dset_dir": dset_dir})), None
    mu, logvar = metrics.encode_all(net, data, torch.linspace(0, len(data) - 1, 1000).long())
    if data.factor_sizes:
        indices, factors = metrics.subgrid(data.factor_sizes, "glance")
        information = metrics.mutual_information(metrics.encode_all(net, data, indices)[0], factors, bins=10)
        names = tells(information, data.factor_names)
    random = torch.randint(len(data), (8,), generator=torch.Generator().manual_seed(1))
    x = data.batch(torch.tensor([*data.fixed_images.values(), *random]))
    write_page(Path(out), net, x, net.encode(x)[0], metrics.mean_kl(mu, logvar), names, Path(ckpt).stem)
    print(f"{out}: open it in a browser")


def main(argv=None):
    parser = Parser(prog="explore.py", description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", required=True, help="checkpoint of a run")
    parser.add_argument("--out", default="explore.html", help="file of the page")
    parser.add_argument("--dset_dir", default="data", help="folder of the data set that the run was trained on")
    args = parser.parse_args(argv)
    return exit_status(parser.prog, "interrupted", lambda: explore(**vars(args)))


if __name__ == "__main__":
    raise SystemExit(main())
