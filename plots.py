"""Everything that writes a picture. Knows arrays, tensors and paths, nothing of runs or flags."""
import io

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import make_grid

from utils import atomic_file, read_log

TRAVERSAL = torch.linspace(-3, 3, 10)  # values that a traversed latent takes: +-3 prior sigma


def traversal(decode, z, kld, path):
    """Draws what each latent does: a row a latent, from -3 to 3, the others as in z.

    decode: z (B, z_dim) -> logits (B, C, 64, 64); z: (z_dim,) tensor; kld: z_dim floats, nats.
    Rows are sorted by KL, the most informative latent first.
    """
    order = sorted(range(len(kld)), key=lambda j: -kld[j])
    codes = z.repeat(len(order), len(TRAVERSAL), 1)              # rows, columns, z_dim
    for row, j in enumerate(order):
        codes[row, :, j] = TRAVERSAL.to(z)
    images = torch.sigmoid(decode(codes.flatten(0, 1)))          # rows * columns, C, 64, 64
    grid(images, [f"z_{j}  {kld[j]:.2f} nats" for j in order], [f"{v:+.1f}" for v in TRAVERSAL], path)


def reconstruction(x, x_recon, path, pairs=4):
    """Draws images beside their reconstructions, on one scale from 0 to 1.

    x: (B, C, 64, 64) in [0, 1]; x_recon: logits, as x; pairs: how many pairs stand in a row.
    """
    images = torch.stack([x, torch.sigmoid(x_recon)], dim=1).flatten(0, 1)  # x_0, x_recon_0, x_1 ..
    grid(images, [], ["true", "recon"] * pairs, path)


def grid(images, row_labels, column_labels, path, scale=2):
    """Writes images (R * C, channels, H, W) in [0, 1] as a grid with a label for each row and column."""
    tiles = make_grid(images.cpu(), nrow=len(column_labels), padding=1, pad_value=0.5)
    pixels = tiles.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)

    font = ImageFont.load_default(11 * scale)
    left = max((round(font.getlength(label)) for label in row_labels), default=0) + 8 * scale
    top = 18 * scale
    sheet = Image.new("RGB", (left + picture.width, top + picture.height), "white")
    sheet.paste(picture, (left, top))
    draw = ImageDraw.Draw(sheet)
    height, width = (scale * (side + 1) for side in images.shape[-2:])
    for row, label in enumerate(row_labels):
        draw.text((left - 4 * scale, top + (row + 0.5) * height), label, "black", font, anchor="rm")
    for column, label in enumerate(column_labels):
        draw.text((left + (column + 0.5) * width, top / 2), label, "black", font, anchor="mm")
    save(path, sheet.save)


def curves(log_path, path):
    """Draws log.csv: reconstruction loss, KL with C, and posterior variance, against iterations."""
    log = read_log(log_path)
    latents = [name[4:] for name in log if name.startswith("kld_")]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    recon, kld, var = figure.subplots(1, 3)
    recon.plot(log["iter"], log["recon_loss"], color="black", marker="." if len(log["iter"]) < 50 else "")
    recon.set(title="Reconstruction loss", ylabel="nats an image", yscale="log")
    recon.yaxis.set_major_formatter("{x:.0f}")
    recon.yaxis.set_minor_formatter("{x:.0f}")
    kld.plot(log["iter"], log["total_kld"], color="black", label="total")
    if any(C == C for C in log["C"]):
        kld.plot(log["iter"], log["C"], color="black", linestyle="--", label="C")
    for j in latents:
        kld.plot(log["iter"], log[f"kld_{j}"], label=f"z_{j}")
        var.plot(log["iter"], log[f"var_{j}"], label=f"z_{j}")
    kld.set(title="KL of the posterior from the prior", ylabel="nats")
    var.set(title="Posterior variance", ylabel="mean of sigma\u00b2", ylim=(0, None))
    for axes in (recon, kld, var):
        axes.set_xlabel("iterations")
        axes.grid(alpha=0.3)
    kld.legend(ncols=2 + len(latents) // 16, fontsize="small")
    save(path, figure.savefig)


def save(path, write):
    """Writes a picture through write(file, format=): a reader of path never sees half of it."""
    buffer = io.BytesIO()
    write(buffer, format="png")
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())
