"""Pictures made of images (Pillow). Knows arrays, tensors and paths, no runs or flags.

Arguments of several functions:
    latents     a latents.Latents; only latents.shown() are drawn
    images      traversals of those, (S, L, 19, C, H, W) in [0, 1], H = W (see traverse)
    decode      z (B, z_dim) -> logits (B, C, H, W)
"""

import io
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils import atomic_file

VALUES = torch.arange(-9, 10) / 3  # of a traversed latent: -3 to 3 prior sigma
TICKS = [f"{value:+.2g}" if value else "0" for value in VALUES]
MAX_GIF = 1_000_000  # bytes
NAMES = "A latent's name: the factor it is most informative about, and its share of the mutual information."
MINUS = "-z: from high to low, so that x goes right, y down, size up."


# Traversals.


@torch.no_grad()
def traverse(decode, z, latents):
    """Decode codes z (S, z_dim) with one of the L latents shown at a time set to VALUES, or to their negatives.

    The direction is latents.sign(j): x goes right, y down, size up. Returns mean images (S, L, 19, C, H, W) on the CPU.
    """
    order = latents.shown()
    codes = z[:, None, None].repeat(1, len(order), len(VALUES), 1)  # S, L, 19, z_dim
    for row, j in enumerate(order):
        codes[:, row, :, j] = VALUES.to(z) * latents.sign(j)
    images = torch.stack([torch.sigmoid(decode(row)).cpu() for row in codes.flatten(0, 1)])
    return images.unflatten(0, codes.shape[:2])


@torch.no_grad()
def plane(decode, z, pair, side=13):
    """Decode code z (z_dim,) with two latents set to side values each, from -3 to 3.

    Returns mean images (side, side, C, H, W) on the CPU: a row is a value of the second latent, -3 first.
    """
    values = torch.linspace(-3, 3, side).to(z)
    codes = z.repeat(side, side, 1)  # side, side, z_dim
    codes[..., pair[0]], codes[..., pair[1]] = values, values[:, None]
    return torch.stack([torch.sigmoid(decode(row)).cpu() for row in codes])


def foot_of(latents, *lines):
    """Lines below a page: these, what names and signs mean where there are any, and how many latents are left out."""
    lines += (NAMES,) * any(map(latents.factor, latents.shown()))
    lines += (MINUS,) * any(latents.sign(j) < 0 for j in latents.shown())
    return "\n".join(filter(None, [*lines, latents.not_shown()]))


def traversals(images, seeds, recon, latents, path):
    """Draw what each latent does to each seed: a row per latent, a block of columns per seed.

    seeds: {name: image (C, H, W), or None for a random code}, and recon: what is decoded from their codes, (S, C, H, W), both
    in the order of images. One seed is shown from -3 to 3 in ten steps, two in seven; more from -2 to 2 in five.
    """
    steps = {1: range(0, 19, 2), 2: range(0, 19, 3)}.get(len(seeds), range(3, 16, 3))
    inputs = [x.cpu() for x in seeds.values() if x is not None]
    margin, before = dark_margin([images[:, :, steps], recon, *inputs]), len(steps) // 2 - 1
    head, above = [""], [""]
    for (name, x), decoded in zip(seeds.items(), recon):
        cells = [name, None if x is None else crop(x.cpu(), margin), crop(decoded, margin)]
        words = ["", "", "decoded"] if x is None else ["", "input", "recon"]
        for row, middle in ((head, cells), (above, words)):
            row += [None] * before + middle + [None] * (len(steps) - before - 3)
    rows = [above, head, ["latent at", *[TICKS[step] for step in steps] * len(seeds)]]
    for row, j in enumerate(latents.shown()):
        name = latents.label(j, sign=latents.sign(j))
        rows.append([name, *crop(images[:, row, steps], margin).flatten(0, 1)])
    foot = ["Each row sets one latent to these values and keeps the others at the mean of q(z|input)."]
    if len(inputs) < len(seeds):
        foot.append("random: instead of an input's code, one drawn from the prior N(0, 1).")
    tile = max(64, min(1600 // (len(steps) * len(seeds)), 102))
    font = min(tile * 3 // 8, 30)  # a word is as wide as a tile
    save(path, grid(rows, foot_of(latents, *foot), tile, font=font, columns=len(steps)).save)


def factors(decode, z, latents, path, most=5):
    """Draw a block of rows for each of the latents with the highest KL, from -3 to 3 in several images.

    As Higgins et al. (2017), Fig. 1 and 2, and Burgess et al. (2018). z: codes (S, z_dim), a row of each block.
    """
    order = latents.shown()[:most]
    images = traverse(decode, z, latents)[:, :most, ::2]  # S, L, 10, C, H, W
    rows = [["latent at", *TICKS[::2]]]
    for i, j in enumerate(order):
        for s in range(len(z)):
            name = latents.label(j, sign=latents.sign(j)) if s == len(z) // 2 else ""
            rows.append([name, *images[s, i]])
    foot = (
        f"Each block changes one latent in {len(z)} images. If it codes one factor, it does the same in all."
    )
    save(path, grid(rows, foot_of(latents, foot), tile=96, together=len(z)).save)


def animation(images, names, latents, path, most=10):
    """Write a GIF of less than 1 MB: the latents with the highest KL go from -3 to 3 and back.

    A column per latent, a row per seed of names.
    """
    order, grey = latents.shown()[:most], images.shape[3] == 1
    tile = min(720 // len(order), 144)
    captions = [latents.label(j, sign=latents.sign(j)).replace("  ", "\n") for j in order]
    images = crop(images[:, :most], dark_margin([images]))
    cut = f"Only the {most} latents with the highest KL are shown."
    others = cut if len(latents.shown()) > most else latents.not_shown()
    frames = []
    for value, step in zip(VALUES, images.unbind(dim=2)):  # S, L, C, H, W
        rows = [["", *captions], *([name, *row] for name, row in zip(names, step))]
        page = grid(rows, f"Each column changes one latent, now at {value:+.1f}. {others}", tile, font=12)
        # 64 greys or colours take half the space of all.
        frames.append(page.convert("L").point(lambda v: v // 4 * 255 // 63) if grey else page.quantize(64))
    for stride in (1, 2, 3, 6):  # fewer frames until the file is small enough
        gif, rest = io.BytesIO(), frames[stride::stride] + frames[-1 - stride : 0 : -stride]
        frames[0].save(gif, "gif", save_all=True, append_images=rest, duration=80 * stride, loop=0)
        if gif.tell() < MAX_GIF:
            break
    save(path, lambda file, format: file.write(gif.getbuffer()))


def reconstruction(x, x_recon, path, pairs=4):
    """Draw images x (B, C, H, W) in [0, 1] beside their reconstructions, given as logits of the same shape.

    pairs: how many pairs a row has.
    """
    images = torch.stack([x, torch.sigmoid(x_recon)], dim=1).flatten(0, 1).cpu()  # x_0, x_recon_0, x_1, ..
    head = ["", *["true", "recon"] * min(pairs, len(x))]
    rows = [["", *part] for part in images.split(2 * pairs)]
    save(path, grid([head, *rows], "", tile=128, columns=2).save)


# Pages.


def dark_margin(images):
    """Width of the border that is dark in all images, a list of (.., H, W), in pixels; at most a quarter of H."""
    lit = torch.stack([part.flatten(0, -3).amax(dim=0) for part in images]).amax(dim=0) > 0.1  # H, W
    most, pixels = len(lit) // 4, lit.nonzero()  # rows and columns, (N, 2)
    return min(most, int(pixels.min()), len(lit) - 1 - int(pixels.max())) if len(pixels) else most


def crop(images, margin):
    return images[..., margin : images.shape[-2] - margin, margin : images.shape[-1] - margin]


def grid(rows, foot, tile, font=30, columns=10**6, together=10**6):
    """A page of rows, each a label and its cells: a cell is a square image (C, H, H) in [0, 1], a text or None.

    foot: text below; tile: width of an image and font: size of the text, in pixels; columns, together: number of columns
    and of rows of images between two gaps. Returns an RGB image.
    """
    face, gap = ImageFont.load_default(font), font // 2
    left = 2 * gap + text_width(face, *(row[0] for row in rows))
    x = [left + (tile + 1) * i + gap * (i // columns) for i in range(max(map(len, rows)) - 1)]
    width = max(x[-1] + tile, left + text_width(face, foot) + gap)
    page = Image.new("RGB", (width, (len(rows) + 1) * (tile + 6 * font)), "white")  # higher than needed
    write = partial(ImageDraw.Draw(page).multiline_text, font=face, spacing=4)
    y, count = gap, 0  # count: rows of images so far
    for name, *cells in rows:
        has_images = any(isinstance(cell, torch.Tensor) for cell in cells)
        lines = max(cell.count("\n") + 1 for cell in (name, *cells) if isinstance(cell, str))
        height = tile if has_images else (font + 4) * lines
        y += gap * (has_images and count > 0 and count % together == 0)
        write((left - gap, y + height / 2), name, "black", anchor="rm", align="right")
        for at, cell in zip(x, cells):
            if isinstance(cell, str):
                write((at + tile / 2, y + height / 2), cell, "black", anchor="mm", align="center")
            elif cell is not None:
                page.paste(picture(cell).resize((tile, tile), Image.Resampling.LANCZOS), (at, y))
        y, count = y + height + 1, count + has_images
    if foot:
        write((left, y + gap), foot, "dimgrey")
        y += 2 * gap + (font + 4) * (foot.count("\n") + 1)
    return page.crop((0, 0, width, y))


def text_width(face, *texts):
    return round(max(face.getlength(line) for text in texts for line in text.split("\n")))


def picture(image):
    """An image (C, H, W) in [0, 1], 1 or 3 channels, as an RGB image."""
    pixels = image.clamp(0, 1).mul(255).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.numpy()))


def save(path, draw):
    """Write a picture with draw(file, format=); the file is replaced whole, and several processes may write it."""
    buffer = io.BytesIO()
    draw(buffer, format=path.suffix[1:])
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())
