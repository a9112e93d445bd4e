"""Pictures made of images (Pillow). Knows arrays, tensors and paths, no runs or flags.

Arguments of several functions:
    latents     a latents.Latents; only latents.shown() are drawn
    images      traversals of those, (S, L, 13, C, H, W) in [0, 1], H = W (see traverse)
    decode      z (B, z_dim) -> logits (B, C, H, W)
"""

from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils import atomic_file

VALUES = torch.linspace(-3, 3, 13)  # of a traversed latent, in sigma of the prior
TICKS = [f"{value:+.2g}" if value else "0" for value in VALUES]
TILE = 96  # pixels, width of an image


# Traversals.


@torch.no_grad()
def traverse(decode, z, latents):
    """Decode codes z (S, z_dim) with one of the L latents shown at a time set to VALUES, or to their negatives.

    The direction is latents.sign(j): x goes right, y down, size up. Returns mean images (S, L, 13, C, H, W) on the CPU.
    """
    order = latents.shown()
    codes = z[:, None, None].repeat(1, len(order), len(VALUES), 1)  # S, L, 13, z_dim
    for row, j in enumerate(order):
        codes[:, row, :, j] = VALUES.to(z) * latents.sign(j)
    images = torch.stack([torch.sigmoid(decode(row)).cpu() for row in codes.flatten(0, 1)])
    return images.unflatten(0, codes.shape[:2])


@torch.no_grad()
def plane(decode, z, pair):
    """Decode code z (z_dim,) with two latents set to VALUES each.

    Returns mean images (13, 13, C, H, W) on the CPU: a row is a value of the second latent, -3 first.
    """
    values = VALUES.to(z)
    codes = z.repeat(len(values), len(values), 1)  # 13, 13, z_dim
    codes[..., pair[0]], codes[..., pair[1]] = values, values[:, None]
    return torch.stack([torch.sigmoid(decode(row)).cpu() for row in codes])


def foot(latents, line):
    """What stands below rows of traversals."""
    if any(latents.sign(j) < 0 for j in latents.shown()):
        line += "\n-z: the negative of z, so that x goes right, y down and size up."
    return f"{line}\n{latents.notes()}"


def traversals(images, names, x, recon, latents, path):
    """Draw what each latent does to each seed: a row per latent, a block of columns per seed.

    names: of the S seeds; x, recon: their images and reconstructions, (S, C, H, W) in [0, 1]. One seed is shown from -3
    to 3 in thirteen steps, two in seven; more from -2 to 2 in five.
    """
    steps = {1: range(13), 2: range(0, 13, 2)}.get(len(names), range(2, 11, 2))
    margin = dark_margin(images[:, :, steps], x, recon)
    images, x, recon = (crop(part, margin) for part in (images, x, recon))
    words, head, rest = [""], [""], [None] * (len(steps) - 3)
    for i, name in enumerate(names):
        words += ["", "input", "recon", *rest]
        head += [name, x[i], recon[i], *rest]
    rows = [words, head, ["latent at", *[TICKS[step] for step in steps] * len(names)]]
    for row, j in enumerate(latents.shown()):
        rows.append([latents.label(j, signed=True), *images[:, row, steps].flatten(0, 1)])
    line = "Each row sets one latent to these values and keeps the others at the mean of q(z|input)."
    save(path, grid(rows, foot(latents, line), TILE, columns=len(steps)).save)


def factors(decode, z, latents, path, most=5):
    """Draw a block of rows for each of the latents with the highest KL, from -3 to 3 in several images.

    As Higgins et al. (2017), Fig. 1 and 2, and Burgess et al. (2018). z: codes (S, z_dim), a row of each block.
    """
    images = traverse(decode, z, latents)  # S, L, 13, C, H, W
    rows = [["latent at", *TICKS]]
    for i, j in enumerate(latents.shown()[:most]):
        names = [""] * len(z)
        names[len(z) // 2] = latents.label(j, signed=True)
        rows += [[name, *row] for name, row in zip(names, images[:, i])] + [[""]]
    line = f"A block changes one latent in {len(z)} images. If it codes one factor, it does the same in all."
    save(path, grid(rows, foot(latents, line), TILE).save)


def animation(images, names, latents, path, most=10):
    """Write a GIF: the latents with the highest KL go from -3 to 3 and back, a column per latent, a row per seed of names."""
    order = latents.shown()[:most]
    captions = [latents.label(j, signed=True).replace("  ", "\n") for j in order]
    images = crop(images, dark_margin(images))
    frames = []
    for step, tick in enumerate(TICKS):
        rows = [["", *captions], *([name, *row] for name, row in zip(names, images[:, :most, step]))]
        line = f"Each column changes one latent, now at {tick}."
        if len(order) < len(latents.shown()):
            line += f"\nOnly the {most} latents with the highest KL are shown."
        page = grid(rows, f"{line}\n{latents.notes()}", min(720 // len(order), 144), font=12)
        frames.append(page.quantize(64, Image.Quantize.FASTOCTREE))  # half the space of other palettes
    options = dict(save_all=True, append_images=frames[1:] + frames[-2:0:-1], loop=0, duration=120)
    save(path, partial(frames[0].save, **options))


def reconstruction(x, x_recon, path, pairs=4):
    """Draw images x (B, C, H, W) in [0, 1] beside their reconstructions, given as logits of the same shape.

    pairs: how many pairs a row has.
    """
    images = torch.stack([x, torch.sigmoid(x_recon)], dim=1).flatten(0, 1).cpu()  # x_0, x_recon_0, x_1, ..
    head = ["", *["true", "recon"] * min(pairs, len(x))]
    rows = [["", *part] for part in images.split(2 * pairs)]
    save(path, grid([head, *rows], "", tile=128, columns=2).save)


# Pages.


def dark_margin(*images):
    """Width of the border that is dark in all images, each (.., H, W), in pixels; at most a quarter of H."""
    lit = torch.cat([part.flatten(0, -3) for part in images]).amax(dim=0) > 0.1  # H, W
    most, pixels = len(lit) // 4, lit.nonzero()  # rows and columns, (N, 2)
    return min(most, int(pixels.min()), len(lit) - 1 - int(pixels.max())) if len(pixels) else most


def crop(images, margin):
    return images[..., margin : images.shape[-2] - margin, margin : images.shape[-1] - margin]


def grid(rows, foot, tile, font=30, columns=10**6):
    """A page of rows, each a label and its cells: a cell is a square image (C, H, H) in [0, 1], a text or None.

    foot: text below; tile: width of an image and font: size of the text, in pixels; columns: their number between two
    gaps. Returns an RGB image.
    """
    face, gap = ImageFont.load_default(font), font // 2

    def size(text):  # width and height
        return max(map(face.getlength, text.split("\n"))), (font + 4) * (text.count("\n") + 1)

    left = 2 * gap + round(max(size(label)[0] for label, *_ in rows))
    x = [left + (tile + 1) * i + gap * (i // columns) for i in range(max(map(len, rows)) - 1)]
    width = round(max(x[-1] + tile, left + size(foot)[0])) + gap
    strips = [Image.new("RGB", (width, gap), "white")]
    for label, *cells in rows:
        images = any(isinstance(cell, torch.Tensor) for cell in cells)
        height = tile if images else max(size(text)[1] for text in (label, *cells) if text is not None)
        strips.append(Image.new("RGB", (width, height + 1), "white"))
        write = partial(ImageDraw.Draw(strips[-1]).multiline_text, font=face, spacing=4)
        write((left - gap, height / 2), label, "black", anchor="rm", align="right")
        for at, cell in zip(x, cells):
            if isinstance(cell, str):
                write((at + tile / 2, height / 2), cell, "black", anchor="mm", align="center")
            elif cell is not None:
                strips[-1].paste(picture(cell).resize((tile, tile), Image.Resampling.LANCZOS), (at, 0))
    strips.append(Image.new("RGB", (width, size(foot)[1] + 2 * gap), "white"))
    ImageDraw.Draw(strips[-1]).multiline_text((left, gap), foot, "dimgrey", face, spacing=4)
    return Image.fromarray(np.concatenate(strips))


def picture(image):
    """An image (C, H, W) in [0, 1], 1 or 3 channels, as an RGB image."""
    pixels = image.clamp(0, 1).mul(255).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy())


def save(path, draw):
    """Write a picture with draw(file, format=); the file is replaced whole, and several processes may write it."""
    with atomic_file(path) as file:
        draw(file, format=path.suffix[1:])
