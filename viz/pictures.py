"""Pictures made of images (Pillow), and what all pictures share. Knows arrays, tensors and paths, no runs or flags.

Arguments of several functions:
    kld         KL of each latent in nats, z_dim floats; only active latents are shown, the highest KL first
    top_factor  (factor, share) for each latent, or None for some or all (see evaluation.metrics.top_factor)
    images      traversals of the latents active(kld), (S, L, 19, C, H, W) in [0, 1], H = W (see traverse)
"""

import io
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils import ACTIVE, atomic_file

VALUES = torch.arange(-9, 10) / 3  # of a traversed latent: -3 to 3 prior sigma
TICKS = [f"{value:+.2g}" if value else "0" for value in VALUES]
MAX_GIF = 1_000_000  # bytes


# Names of latents.


def active(kld):
    """Latents with KL > ACTIVE, the highest first; the highest alone if there are none."""
    order = sorted(range(len(kld)), key=lambda j: -kld[j])
    return [j for j in order if kld[j] > ACTIVE] or order[:1]


def not_shown(kld):
    """How many latents active() leaves out: "7 inactive latents not shown"; "" for none."""
    count = len(kld) - len(active(kld))
    return f"{count} inactive latent{'s' * (count > 1)} not shown" if count else ""


def label(j, kld, top_factor=None, separator="\n"):
    """Name of latent j: its top factor if it is active, and its KL, as in "posX  93 %", "z_3  4.12 nats"."""
    nats = f"z_{j}  {kld[j]:.2f} nats"
    if not (top_factor and top_factor[j] and kld[j] > ACTIVE):
        return nats
    factor, share = top_factor[j]
    return f"{factor}  {100 * share:.0f} %{separator}{nats}"


# Traversals.


@torch.no_grad()
def traverse(decode, z, latents):
    """Decode codes z (S, z_dim) with one of L latents at a time set to VALUES.

    decode: z (B, z_dim) -> logits (B, C, H, W). Returns mean images (S, L, 19, C, H, W) on the CPU.
    """
    codes = z[:, None, None].repeat(1, len(latents), len(VALUES), 1)  # S, L, 19, z_dim
    for row, j in enumerate(latents):
        codes[:, row, :, j] = VALUES.to(z)
    images = torch.stack([torch.sigmoid(decode(row)).cpu() for row in codes.flatten(0, 1)])
    return images.unflatten(0, codes.shape[:2])


def traversals(images, seeds, kld, top_factor, path):
    """Draw what each active latent does to each seed: a row per latent, a block of columns per seed.

    seeds: {name: image (C, H, W), or None for a random code}, in the order of images. One seed is shown from -3 to 3 in ten
    steps, two in seven; more from -2 to 2 in five.
    """
    steps = {1: range(0, 19, 2), 2: range(0, 19, 3)}.get(len(seeds), range(3, 16, 3))
    inputs = {name: x.cpu() for name, x in seeds.items() if x is not None}
    margin, middle = dark_margin([images[:, :, steps], *inputs.values()]), len(steps) // 2
    head = ["input" if inputs else ""]
    for name in seeds:
        block = [None] * len(steps)
        block[middle - 1] = name
        if name in inputs:
            block[middle] = crop(inputs[name], margin)
        head += block
    rows = [head, ["latent at", *[TICKS[step] for step in steps] * len(seeds)]]
    for row, j in enumerate(active(kld)):
        rows.append([label(j, kld, top_factor), *crop(images[:, row, steps], margin).flatten(0, 1)])
    foot = ["A row changes one latent and keeps the others.", not_shown(kld)]
    if top_factor:
        foot.insert(
            1, "Its name: the factor it is most informative about,\nwith its share of the mutual information."
        )
    tile = min(1600 // (len(steps) * len(seeds)), 102)
    save(path, grid(rows, "\n".join(filter(None, foot)), tile, columns=len(steps)).save)


def factors(decode, z, kld, top_factor, path, most=5):
    """Draw a block of rows for each of the latents with the highest KL, from -3 to 3 in several images.

    As Higgins et al. (2017), Fig. 1 and 2, and Burgess et al. (2018). z: codes (S, z_dim), a row of each block. A latent
    that does the same in all of its rows codes one factor.
    """
    order = active(kld)[:most]
    images = traverse(decode, z, order)[:, :, ::2]  # S, L, 10, C, H, W
    rows = [["latent at", *TICKS[::2]]]
    for i, j in enumerate(order):
        for s in range(len(z)):
            rows.append([label(j, kld, top_factor) if s == len(z) // 2 else "", *images[s, i]])
    save(path, grid(rows, "", tile=96, together=len(z)).save)


def animation(images, names, kld, top_factor, path, most=10):
    """Write a GIF of less than 1 MB: the latents with the highest KL go from -3 to 3 and back.

    A column per latent, a row per seed of names.
    """
    order, grey = active(kld)[:most], images.shape[3] == 1
    tile = min(720 // len(order), 144)
    captions = [label(j, kld, top_factor).replace("  ", "\n") for j in order]
    images = crop(images[:, :most], dark_margin([images]))
    others = (
        not_shown(kld)
        if len(active(kld)) <= most
        else f"Only the {most} latents with the highest KL are shown."
    )
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
