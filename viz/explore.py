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
from torchvision.transforms.functional import to_pil_image

from utils import ACTIVE, Parser, UserError, atomic_file, exit_status


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
    for image, mean in zip((255 * images).round().byte().cpu(), mu.tolist()):
        to_pil_image(image).save(png := io.BytesIO(), format="PNG")
        model["seeds"].append({"png": base64.b64encode(png.getvalue()).decode(), "mu": mean})
    text = json.dumps(model, default=encode, allow_nan=False).replace("<", "\\u003c")
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    with atomic_file(path, shared=True) as file:
        file.write(page.replace("MODEL", text).encode())


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
    write_page(Path(out), net, x, net.encode(x)[0], metrics.mean_kl(mu, logvar), names, flags.viz_name)
    print(f"{out}: open it in a browser")


def main(argv=None):
    parser = Parser(prog="explore.py", description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", required=True, help="checkpoint of a run")
    parser.add_argument("--out", default="explore.html", help="file of the page")
    parser.add_argument("--dset_dir", default="data", help="folder of the run's data set")
    args = parser.parse_args(argv)
    return exit_status(parser.prog, "interrupted", lambda: explore(**vars(args)))


if __name__ == "__main__":
    raise SystemExit(main())
