"""Pictures made of images, and what all pictures share. Knows arrays, tensors and paths, nothing of runs or flags.

What several of them take:
    kld     KL of each latent in nats, z_dim floats: latents are shown in its order, the highest first
    told    what each latent tells of the known factors, z_dim texts (from tells), or None
    images  what the decoder makes of each latent's traversal, (z_dim, 19, C, H, W) in [0, 1] (from traverse)
"""

import io
import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import make_grid

from utils import ACTIVE, atomic_file

VALUES = torch.linspace(-3, 3, 19)  # that a traversed latent takes: +-3 prior sigma, 3 steps a sigma
MOST = 32  # latents that a picture shows, of those with the highest KL
GREYS = [round(round(v / 255 * 63) / 63 * 255) for v in range(256)]  # 64 of them: half the size of a GIF


# What the pictures say of a latent.


def by_kl(kld):
    """Latents with the highest KL first; the higher index last among equals."""
    return sorted(range(len(kld)), key=lambda j: -kld[j])[:MOST]


def tells(information, names):
    """Of each latent: the factor it tells most about, and how much of all that it tells is about this one.

    information: mutual information (z_dim, K) in nats; names: K factors. Returns z_dim texts, "posX 93 %".
    """
    best = information.argmax(axis=1)
    share = information.max(axis=1) / np.maximum(information.sum(axis=1), 1e-12)
    return [f"{names[k]} {100 * part:.0f} %" for k, part in zip(best, share)]


def title(j, kld, told, end="\n"):
    """The lines that name latent j: its number, what it tells, its KL."""
    word = "inactive" if kld[j] <= ACTIVE else told[j] if told else None
    return end.join([f"z_{j}", *[word] * bool(word), f"KL {kld[j]:.2f} nats"])


# Traversals.


@torch.no_grad()
def traverse(decode, z, latents=None):
    """Decodes z (z_dim,) with one latent after the other set to VALUES, the others as they are.

    decode: z (B, z_dim) -> logits (B, C, H, W); latents: L of them, default all. Returns mean images
    (L, 19, C, H, W) on the CPU.
    """
    latents = range(len(z)) if latents is None else latents
    codes = z.repeat(len(latents), len(VALUES), 1)  # L, 19, z_dim
    for row, j in enumerate(latents):
        codes[row, :, j] = VALUES.to(z)
    images = [torch.sigmoid(decode(row)).cpu() for row in codes]
    return torch.stack(images)  # L, 19, C, H, W


def traversal(images, kld, told, path, seed=None):
    """Draws what each latent does: a row a latent, from -3 to 3 in ten steps, the others as in the seed.

    seed: the image (C, H, W) that z is the code of, shown in front of each row; None if there is none.
    """
    order, columns = by_kl(kld), [f"{v:+.1f}" for v in VALUES[::2]]
    rows = images[order][:, ::2]  # z_dim, 10, C, H, W
    if seed is not None:
        rows = torch.cat([seed.cpu().expand(len(order), 1, *seed.shape), rows], dim=1)
        columns = ["seed", *columns]
    grid(rows.flatten(0, 1), [title(j, kld, told) for j in order], columns, path)


def factors(decode, seeds, kld, told, path, most=5):
    """Draws a block of rows for each of the latents with the highest KL: it goes from -3 to 3 in several images.

    As Higgins et al. (2017), Fig. 1 and 2, and Burgess et al. (2018). seeds: codes of the images, (S, z_dim), a
    row of each block. A latent that does the same in all of its rows codes one factor.
    """
    order = by_kl(kld)[:most]
    # latents, S, 10, C, H, W
    images = torch.stack([traverse(decode, z, order)[:, ::2] for z in seeds], dim=1)
    labels = [
        title(j, kld, told) if row == len(seeds) // 2 else "" for j in order for row in range(len(seeds))
    ]
    grid(images.flatten(0, 2), labels, [f"{v:+.1f}" for v in VALUES[::2]], path, scale=1, block=len(seeds))


def animation(images, kld, told, path, columns=10):
    """Writes a GIF that goes through all traversals at once, there and back, the latents side by side."""
    order = by_kl(kld)
    scale = 2 if len(order) <= columns else 1
    font = ImageFont.load_default(7 * scale)
    first = picture(images[order, 0], columns, scale)
    head, width = 26 * scale, scale * (images.shape[-1] + 1)
    side = 40 * scale  # where the value stands
    rows = math.ceil(len(order) / columns)
    height = first.height // rows  # of a row of images

    base = Image.new("RGB", (side + first.width, rows * (head + height)), "white")
    draw = ImageDraw.Draw(base)
    for place, j in enumerate(order):
        row, column = divmod(place, columns)
        at = side + (column + 0.5) * width, row * (head + height) + head / 2
        draw.multiline_text(
            at, title(j, kld, told), "black", font, anchor="mm", align="center", spacing=scale
        )

    frames = []
    for step, value in enumerate(VALUES):
        frame = base.copy()
        sheet = picture(images[order, step], columns, scale)
        for row in range(rows):
            strip = sheet.crop((0, row * height, sheet.width, (row + 1) * height))
            frame.paste(strip, (side, row * (head + height) + head))
        ImageDraw.Draw(frame).text(
            (side / 2, head + height / 2),
            f"{value:+z.1f}",
            "black",
            ImageFont.load_default(12 * scale),
            anchor="mm",
        )
        frames.append(frame.convert("L").point(GREYS) if images.shape[2] == 1 else frame.quantize(128))
    there_and_back = frames[1:] + frames[-2:0:-1]
    save(path, frames[0].save, save_all=True, append_images=there_and_back, duration=80, loop=0)


def reconstruction(x, x_recon, path, pairs=4):
    """Draws images beside their reconstructions, on one scale from 0 to 1.

    x: (B, C, 64, 64) in [0, 1]; x_recon: logits, as x; pairs: how many pairs stand in a row.
    """
    images = torch.stack([x, torch.sigmoid(x_recon)], dim=1).flatten(0, 1)  # x_0, x_recon_0, x_1 ..
    grid(images, [], ["true", "recon"] * pairs, path)


def picture(images, columns, scale):
    """Images (N, C, H, W) in [0, 1] side by side, with a grey line between, as one RGB picture."""
    tiles = make_grid(images.cpu(), nrow=min(columns, len(images)), padding=1, pad_value=0.5)
    pixels = tiles.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    whole = Image.fromarray(pixels)
    return whole.resize((scale * whole.width, scale * whole.height), Image.Resampling.NEAREST)


def grid(images, row_labels, column_labels, path, scale=2, block=None):
    """Writes images (R * C, channels, H, W) in [0, 1] as a grid with a label for each row and column.

    block: rows that stand together, with a gap to the next ones; default all.
    """
    font = ImageFont.load_default(11 * scale)
    lines = [line for label in row_labels for line in label.split("\n")]
    left = max((round(font.getlength(line)) for line in lines), default=0) + 8 * scale
    top, gap = 18 * scale, 8 * scale
    blocks = [
        picture(part, len(column_labels), scale)
        for part in images.split((block or len(images)) * len(column_labels))
    ]
    page = Image.new(
        "RGB", (left + blocks[0].width, top + sum(b.height + gap for b in blocks) - gap), "white"
    )
    draw = ImageDraw.Draw(page)
    height, width = (scale * (side + 1) for side in images.shape[-2:])
    for column, label in enumerate(column_labels):
        draw.text((left + (column + 0.5) * width, top / 2), label, "black", font, anchor="mm")
    for i, sheet in enumerate(blocks):
        at = top + i * (blocks[0].height + gap)
        page.paste(sheet, (left, at))
        for row, label in enumerate(row_labels[i * (block or 0) :][:block]):
            draw.multiline_text(
                (left - 4 * scale, at + (row + 0.5) * height),
                label,
                "black",
                font,
                anchor="rm",
                align="right",
                spacing=3 * scale,
            )
    save(path, page.save)


def save(path, write, **options):
    """Writes a picture through write(file, format=): a reader of path never sees half of it, and several may write it."""
    buffer = io.BytesIO()
    write(buffer, format=path.suffix[1:], **options)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())
