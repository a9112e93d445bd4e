"""Pictures made of images, and what all pictures share. Knows arrays, tensors and paths, nothing of runs or flags.

Arguments that several functions take:
    kld         KL of each latent in nats, z_dim floats: the active latents are shown, the highest KL first
    top_factor  (name, share) for each latent, or None (from evaluation.metrics); None where factors are unknown
    images      decoded traversals of active(kld), (S, L, 19, C, H, W) in [0, 1] (from traverse)
"""

import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils import ACTIVE, atomic_file

VALUES = torch.linspace(-3, 3, 19)  # of a traversed latent: +-3 prior sigma, 3 steps a sigma
MAX_GIF = 1_000_000  # bytes
GREYS = [round(round(v / 255 * 63) / 63 * 255) for v in range(256)]  # 64 of them: half the size of a GIF


# Names of latents.


def active(kld):
    """Latents with more than ACTIVE nats, the highest KL first; the highest alone if there are none."""
    order = sorted(range(len(kld)), key=lambda j: -kld[j])
    return [j for j in order if kld[j] > ACTIVE] or order[:1]


def not_shown(kld):
    """Words for the latents that active() leaves out: "7 inactive latents not shown", or "" for none."""
    count = len(kld) - len(active(kld))
    return f"{count} inactive latent{'s' * (count > 1)} not shown" if count else ""


def label(j, kld, top_factor=None, end="\n"):
    """Latent j in words: its factor if it is active, its KL. "posX  93 %", "z_3  4.12 nats"."""
    known = top_factor and kld[j] > ACTIVE and top_factor[j]
    factor = [f"{known[0]}  {100 * known[1]:.0f} %"] if known else []
    return end.join([*factor, f"z_{j}  {kld[j]:.2f} nats"])


# Traversals.


@torch.no_grad()
def traverse(decode, z, latents):
    """Decodes z (S, z_dim) with one of L latents after the other set to VALUES, the others as they are.

    decode: z (B, z_dim) -> logits (B, C, H, W). Returns mean images (S, L, 19, C, H, W) on the CPU.
    """
    codes = z[:, None, None].repeat(1, len(latents), len(VALUES), 1)  # S, L, 19, z_dim
    for row, j in enumerate(latents):
        codes[:, row, :, j] = VALUES.to(z)
    images = torch.stack([torch.sigmoid(decode(row)).cpu() for row in codes.flatten(0, 1)])
    return images.unflatten(0, codes.shape[:2])


def traversals(images, seeds, kld, top_factor, path):
    """Draws what each active latent does to each seed: a row a latent, a block of columns a seed.

    seeds: {name: image (C, H, W), or None for a code of no image}, in the order of images. A single seed is shown from
    -3 to 3 in ten steps, two in seven, more from -2 to 2 in five.
    """
    steps = {1: range(0, 19, 2), 2: range(0, 19, 3)}.get(len(seeds), range(3, 16, 3))
    inputs = {name: x.cpu() for name, x in seeds.items() if x is not None}
    margin, middle = dark_margin([images[:, :, steps], *inputs.values()]), len(steps) // 2
    head = ["input" if inputs else ""]
    for name in seeds:
        x = [crop(inputs[name], margin)] if name in inputs else [None]
        head += [*[None] * (middle - 1), name, *x, *[None] * (len(steps) - middle - 1)]
    rows = [
        [label(j, kld, top_factor), *crop(images[:, row, steps], margin).flatten(0, 1)]
        for row, j in enumerate(active(kld))
    ]
    named = "Its name: the factor it is most informative about, with the share of its mutual information."
    foot = ["Each row changes one latent and keeps the others.", named if top_factor else "", not_shown(kld)]
    table = [
        head,
        ["latent at", *map(number, VALUES[steps])] + [*map(number, VALUES[steps])] * (len(seeds) - 1),
        *rows,
    ]
    tile = min(1430 // (len(steps) * len(seeds)), 102)
    save(path, grid(table, "\n".join(filter(None, foot)), tile, columns=len(steps)).save)


def factors(decode, z, kld, top_factor, path, most=5):
    """Draws a block of rows for each of the latents with the highest KL: it goes from -3 to 3 in several images.

    As Higgins et al. (2017), Fig. 1 and 2, and Burgess et al. (2018). z: codes of the images, (S, z_dim), a row of each
    block. A latent that does the same in all of its rows codes one factor.
    """
    order = active(kld)[:most]
    images = traverse(decode, z, order)[:, :, ::2]  # S, L, 10, C, H, W
    rows = [["latent at", *map(number, VALUES[::2])]]
    for i, j in enumerate(order):
        names = [label(j, kld, top_factor) if row == len(z) // 2 else "" for row in range(len(z))]
        rows += [[name, *each] for name, each in zip(names, images[:, i])]
    save(path, grid(rows, "", tile=96, together=len(z)).save)


def animation(images, names, kld, top_factor, path):
    """Writes a GIF of under 1 MB in which all active latents move at once, from -3 to 3 and back.

    A column a latent, a row a seed of names; more than ten latents stand in several bands, of the first seed alone.
    """
    order, grey = active(kld), images.shape[3] == 1
    bands = -(-len(order) // 10)
    columns = -(-len(order) // bands)
    tile = min(720 // columns, 144) if bands == 1 else 64
    captions = [label(j, kld, top_factor).replace("  ", "\n") for j in order]
    images = crop(images if bands == 1 else images[:1], dark_margin([images]))

    def frame(step):
        rows = []
        for start in range(0, len(order), columns):
            band = slice(start, start + columns)
            rows.append(["", *captions[band]])
            rows += [[name, *each] for name, each in zip(names, images[:, band, step])]
        foot = f"Each column moves one latent, now at {VALUES[step]:+z.1f}. {not_shown(kld)}"
        page = grid(rows, foot, tile, font=12)
        return page.convert("L").point(GREYS) if grey else page.quantize(64)

    frames = [frame(step) for step in range(len(VALUES))]
    for stride in (1, 2, 3, 6):
        file, rest = io.BytesIO(), frames[stride::stride] + frames[-1 - stride : 0 : -stride]
        frames[0].save(file, "gif", save_all=True, append_images=rest, duration=80 * stride, loop=0)
        if file.tell() < MAX_GIF:
            break
    save(path, lambda whole, format: whole.write(file.getbuffer()))


def reconstruction(x, x_recon, path, pairs=4):
    """Draws images beside their reconstructions, on one scale from 0 to 1.

    x: (B, C, H, W) in [0, 1]; x_recon: logits, as x; pairs: how many pairs stand in a row.
    """
    images = torch.stack([x, torch.sigmoid(x_recon)], dim=1).flatten(0, 1).cpu()  # x_0, x_recon_0, x_1 ..
    rows = [["", *part] for part in images.split(2 * pairs)]
    save(path, grid([["", *["true", "recon"] * min(pairs, len(x))], *rows], "", tile=128, columns=2).save)


# Pages.


def number(value):
    return f"{value:+z.1f}".replace(".0", "").replace("+0", "0")


def dark_margin(images):
    """Pixels at all sides that are dark in all images (.., H, W) and can be cut off; at most a quarter."""
    lit = torch.stack([part.flatten(0, -3).amax(dim=0) for part in images]).amax(dim=0) > 0.1  # H, W
    lit = lit | lit.flip(0) | lit.flip(1) | lit.flip(0, 1)
    return min(*(int(lit.any(dim=d).int().argmax()) for d in (0, 1)), min(lit.shape) // 4)


def crop(images, margin):
    return images[..., margin : images.shape[-2] - margin, margin : images.shape[-1] - margin]


def grid(rows, foot, tile, font=26, columns=10**6, together=10**6):
    """A page of rows of cells, each an image (C, H, W) in [0, 1], a text or None; the first of a row is its label.

    foot: words below; tile: width of an image, font: size of texts, both in pixels; columns: so many columns of
    images stand together before a gap; together: so many rows. Returns an RGB image.
    """
    face, gap = ImageFont.load_default(font), font // 2
    left = 2 * gap + round(max(face.getlength(line) for row in rows for line in row[0].split("\n")))
    h, w = next(cell.shape[1:] for cell in rows[-1] if isinstance(cell, torch.Tensor))
    x = [left + (tile + 1) * i + gap * (i // columns) for i in range(max(map(len, rows)) - 1)]
    y, count, places = gap, 0, []  # places: top and height of each row
    for row in rows:
        pictures = any(isinstance(cell, torch.Tensor) for cell in row)
        y += gap * (pictures and count > 0 and count % together == 0)
        lines = max(cell.count("\n") + 1 for cell in row if isinstance(cell, str))
        places.append((y, tile * h // w if pictures else (font + 4) * lines))
        y, count = sum(places[-1]) + 1, count + pictures
    page = Image.new("RGB", (x[-1] + tile, y + bool(foot) * (foot.count("\n") + 2) * (font + 6)), "white")
    style = ImageDraw.Draw(page), face
    for (y, height), (name, *cells) in zip(places, rows):
        text(*style, (left - gap, y + height / 2), name, "rm", "right")
        for at, cell in zip(x, cells):
            if isinstance(cell, str):
                text(*style, (at + tile / 2, y + height / 2), cell, "mm", "center")
            elif cell is not None:
                page.paste(picture(cell).resize((tile, height), Image.Resampling.LANCZOS), (at, y))
    text(*style, (left, page.height - gap), foot, "ld", "left", "dimgrey")
    return page


def text(draw, face, at, words, anchor, align, color="black"):
    draw.multiline_text(at, words, color, face, anchor, spacing=4, align=align)


def picture(image):
    """An image (C, H, W) in [0, 1], 1 or 3 channels, as an RGB image."""
    pixels = image.clamp(0, 1).mul(255).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.numpy()))


def save(path, draw):
    """Writes a picture through draw(file, format=): a reader of path never sees half of it, and several may write it."""
    buffer = io.BytesIO()
    draw(buffer, format=path.suffix[1:])
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())
