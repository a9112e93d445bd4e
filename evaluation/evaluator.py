"""Scores, pictures and codes of a trained model, for training and for notebooks.

    evaluator = Evaluator(net, data)          # data: see dataset.return_data
    evaluator.draw("pictures")                # traversals and reconstructions
    evaluator.score("full", "pictures")       # every metric, in pictures/metrics.json

Random draws come from the evaluator's own generators, so looking at a model never changes its training.
"""

import json
from pathlib import Path

import numpy as np
import torch

from evaluation import metrics
from prepare import images
from utils import UserError, atomic_file, stream_seed
from viz import explore, figures, pictures


class Evaluator:
    """Evaluates net on the images of data; net may be trained further between calls.

    net: encode(x) -> mu, logvar and decode(z) -> logits; seed: chooses the images and the random code of pictures.
    Methods that draw take kld, the KL of each latent in nats, which orders and labels latents; default: measured.
    """

    @torch.no_grad()
    def __init__(self, net, data, seed=1):
        self.net, self.data = net, data
        generator = torch.Generator().manual_seed(stream_seed(seed, "pictures"))
        indices = torch.randint(len(data), (21,), generator=generator)
        self.seed_images = data.seed_images or {"image": int(indices[0])}
        self.reconstructed = indices[1:]
        x = data.batch(indices[:1])
        self.size = x.shape[-1]  # width and height of an image in pixels
        mu, _ = net.encode(x)  # 1, z_dim
        self.random_z = torch.randn(mu.shape[1], generator=generator).to(mu.device)  # z_dim

    def check(self, level="full", files=()):
        """UserError if the model cannot be scored at this level of metrics, or one of these image files cannot be read."""
        for file in files:
            read_image(file, self.data.channels, self.size)
        if level == "none":
            return
        if not self.data.factor_sizes:
            raise UserError("scores need known factors, which this data set does not have: omit the metrics")
        if len(self.random_z) < 2:
            raise UserError("scores need at least 2 latents: use more, or omit the metrics")

    def quick_information(self):
        """KL of each latent, (z_dim,), and its mutual information with each factor, (z_dim, K), in nats. Takes about 2 s.

        From 10,000 images, the same for every model. Without known factors: the KL from 1,000 images, and None.
        """
        if not self.data.factor_sizes:
            indices = torch.linspace(0, len(self.data) - 1, 1000).long()
            return metrics.mean_kl(*metrics.encode_all(self.net, self.data, indices)), None
        indices, factors = metrics.fixed_sample(self.data.factor_sizes)
        mu, logvar = metrics.encode_all(self.net, self.data, indices)
        return metrics.mean_kl(mu, logvar), metrics.latent_information(mu, logvar, factors)

    def name_latents(self, kld=None):
        """KL of each latent, kld if given, and its metrics.top_factor; None for the latter without known factors."""
        if kld is not None and not self.data.factor_sizes:
            return kld, None
        measured, information = self.quick_information()
        kld = measured.tolist() if kld is None else kld
        if information is None:
            return kld, None
        return kld, metrics.top_factor(information, self.data.factor_names, measured)

    @torch.no_grad()
    def draw(self, folder, kld=None):
        """Draws traversals and reconstructions in folder, which is made; returns the top factors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kld, top_factor = self.name_latents(kld)
        x = self.data.batch(torch.tensor(list(self.seed_images.values())))  # S, C, H, W
        seeds = dict(zip(self.seed_images, x))
        z, _ = self.net.encode(x)  # S, z_dim
        if not self.data.seed_images:
            seeds["random"] = None
            z = torch.cat([z, self.random_z[None]])
        self.draw_traversals(seeds, z, kld, top_factor, folder / "traverse.png")
        x = self.data.batch(self.reconstructed)  # 20, C, H, W
        mu, _ = self.net.encode(x)
        pictures.reconstruction(x, self.net.decode(mu), folder / "reconstruction.png")
        pictures.factors(self.net.decode, mu[:5], kld, top_factor, folder / "factors.png")
        return top_factor

    def draw_traversals(self, seeds, z, kld, top_factor, path):
        """Draws path and a GIF beside it. seeds: {name: image, or None for a code of no image}; z: their codes."""
        images = pictures.traverse(self.net.decode, z, pictures.active(kld))  # S, L, 19, C, H, W
        pictures.traversals(images, seeds, kld, top_factor, path)
        pictures.animation(images, list(seeds), kld, top_factor, path.with_suffix(".gif"))

    @torch.no_grad()
    def draw_files(self, files, folder, kld=None):
        """Draws reconstructions and traversals of image files in folder, which is made.

        Each image is squeezed to the network's size; UserError names one that cannot be read.
        """
        folder = Path(folder)
        x = torch.stack([read_image(file, self.data.channels, self.size) for file in files])  # B, C, H, W
        x = x.to(self.random_z.device)
        folder.mkdir(parents=True, exist_ok=True)
        mu, _ = self.net.encode(x)
        pictures.reconstruction(x, self.net.decode(mu), folder / "reconstruction_files.png")
        seeds = {f"image {i}": image for i, image in enumerate(x, 1)}
        self.draw_traversals(seeds, mu, *self.name_latents(kld), folder / "traverse_files.png")
        print(f"{len(x)} images in {folder}: reconstruction_files.png, traverse_files.png and .gif")

    @torch.no_grad()
    def write_page(self, path, title, kld=None):
        """Writes a page with a slider for each latent, which starts from the seeds and eight more images (viz/explore.py)."""
        kld, top_factor = self.name_latents(kld)
        x = self.data.batch(torch.tensor([*self.seed_images.values(), *self.reconstructed[:8].tolist()]))
        names = [f"{top[0]} {100 * top[1]:.0f} %" if top else "" for top in top_factor or ()]
        explore.write_page(Path(path), self.net, x, self.net.encode(x)[0], kld, names or None, title)

    def score(self, level, folder, about=None, kld=None, draw=True):
        """Computes and prints every metric and writes metrics.json in folder, which is made; returns the scores.

        level: "full" or "fast" (see metrics.settings_of); about: dict to be kept among the settings; draw: whether to draw
        latent_response.png and mutual_information.png too. "latents" holds quick_information(), the same at each level.
        """
        self.check()
        path, names = Path(folder) / "metrics.json", self.data.factor_names
        path.parent.mkdir(parents=True, exist_ok=True)
        indices, factors = metrics.subgrid(self.data.factor_sizes, level)
        mu, logvar = metrics.encode_all(self.net, self.data, indices)  # N, z_dim
        scores = metrics.score(mu, logvar, factors, level)
        measured, information = self.quick_information()
        top_factor = metrics.top_factor(information, names, measured)
        scores["latents"] = [
            dict(kl=kl, top_factor=top and top[0], share=top and top[1], information=dict(zip(names, row)))
            for kl, top, row in zip(measured.tolist(), top_factor, information.tolist())
        ]
        scores["settings"].update(about or {})
        with atomic_file(path) as file:
            file.write(json.dumps(scores, indent=2).encode())
        print(f"{metrics.table(scores)}\n{len(mu):,} images; settings in {path}")
        if draw:
            kld = measured.tolist() if kld is None else kld
            entropy, to = np.log(self.data.factor_sizes), path.with_name("mutual_information.png")
            figures.mutual_information(information, entropy, names, kld, to)
            grid = mu.numpy().reshape(*metrics.grid_sizes(factors), -1)  # 3, 6, 40, 32, 32, z_dim on dSprites
            figures.latent_response(grid, kld, top_factor, path.with_name("latent_response.png"))
        return scores

    def encode(self, path):
        """Writes the codes of all images, in the order of the data set, to path, an .npz file.

        mu, logvar: float32 (N, z_dim); with known factors also factors, int64 (N, K) counted from 0, and factor_names (K,).
        """
        mu, logvar = metrics.encode_all(self.net, self.data)
        arrays = dict(mu=mu.numpy(), logvar=logvar.numpy())
        if self.data.factor_sizes:
            arrays["factors"] = metrics.subgrid(self.data.factor_sizes)[1]
            arrays["factor_names"] = np.array(self.data.factor_names)
        with atomic_file(path) as file:
            np.savez(file, **arrays)
        print(f"codes of {len(mu):,} images in {path}: {', '.join(arrays)}")


def read_image(path, channels, size):
    """Read an image file as float32 (channels, size, size) in [0, 1]; UserError if it cannot be read."""
    return torch.tensor(images.read_image(path, size, channels)) / 255
