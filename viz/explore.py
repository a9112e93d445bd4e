"""Write one HTML file that runs a decoder in the browser, with a slider for each latent and a pad for two.

The page opens from disk and loads nothing from a network.
"""

import base64
import io
import json
from pathlib import Path

import torch
from torch import nn

from utils import UserError, atomic_file
from viz.latents import SHOWN
from viz.pictures import picture


def to_layers(decoder, z):
    """The decoder's layers for the page, which keeps images as (row, column, channel); UserError for an unknown layer.

    z: a code, (1, z_dim). A vector is an image of one pixel there, and all that has weights a transposed convolution.
    """
    layers = []

    def convolution(weight, bias, k=1, stride=1, padding=0):  # weight: in, k, k, out
        layers.append(dict(k=k, stride=stride, padding=padding, weight=weight, bias=bias))

    for module in decoder:
        match module:
            case nn.ReLU() | nn.Tanh():
                layers.append({"activation": type(module).__name__})
            case nn.Linear(bias=torch.Tensor()):
                convolution(module.weight.T, module.bias)
            case nn.Unflatten(unflattened_size=size) if layers:
                linear = next(layer for layer in reversed(layers) if "weight" in layer)
                for name in ("weight", "bias"):  # from C, H, W to H, W, C
                    linear[name] = linear[name].unflatten(-1, size).movedim(-3, -1)
            case nn.Module() if type(module).__name__ == "Broadcast":
                layers.append(dict(places=module(z)[0, z.shape[1] :].movedim(0, -1)))  # 8, 8, 2 coordinates
            case nn.Conv2d(bias=torch.Tensor(), groups=1, kernel_size=(1, 1), stride=(1, 1), padding=(0, 0)):
                convolution(module.weight.permute(1, 2, 3, 0), module.bias)
            case nn.ConvTranspose2d(bias=torch.Tensor(), groups=1, dilation=(1, 1), output_padding=(0, 0)):
                sizes = module.kernel_size[0], module.stride[0], module.padding[0]
                convolution(module.weight.permute(0, 2, 3, 1), module.bias, *sizes)
            case _:
                raise UserError(f"no page: explore.html cannot run this layer of the decoder: {module}")
    return layers


def encode(weights):
    """A tensor as JSON: its values as float16, row by row, in base64."""
    return base64.b64encode(weights.detach().cpu().half().contiguous().numpy()).decode()


def write_page(path, net, images, mu, latents, title="beta-VAE"):
    """Write the page of net's decoder to path: 0.7 MB for BetaVAE_B, with weights in float16.

    images: (S, C, H, W) in [0, 1] to start from; mu: their posterior means, (S, z_dim); latents: a latents.Latents; title:
    of which run, and at which iteration. UserError if the page cannot run net.
    """
    seeds = []
    for image, mean in zip(images.cpu(), mu.tolist()):
        picture(image).save(png := io.BytesIO(), format="PNG")
        seeds.append({"png": base64.b64encode(png.getvalue()).decode(), "mu": mean})
    kld, names = list(map(float, latents.kld)), [latents.factor(j) for j in range(len(latents.kld))]
    model = dict(title=title, channels=images.shape[1], kld=kld, names=names, seeds=seeds)
    model |= dict(order=latents.shown(), shown=SHOWN, pair=latents.plane())
    model["layers"] = to_layers(net.decoder, mu[:1])
    text = json.dumps(model, default=encode, allow_nan=False).replace("<", "\\u003c")
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    with atomic_file(path) as file:
        file.write(page.replace("MODEL", text).encode())
