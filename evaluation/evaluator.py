"""Scores, pictures and codes of a trained model, for training and for notebooks.

    evaluator = Evaluator(net, data)          # data: see dataset.return_data
    latents = evaluator.describe()            # the KL of each latent, and the factor it codes
    evaluator.draw("pictures", latents)       # traversals, reconstructions, a plane of two latents
    evaluator.score("full", "pictures", {}, latents)  # every metric, in pictures/metrics.json

Random draws come from the evaluator's own generators, so looking at a model never changes its training.
"""

from pathlib import Path

import numpy as np
import torch

from evaluation import metrics
from evaluation.information import latent_information, mean_kl
from prepare.images import read_image
from utils import UserError, atomic_file, progress, stream_seed
from viz import explore, figures, pictures
from viz.latents import Latents

SAMPLE = 10_000  # images from which a latent's mutual information is estimated
MOST_TRAVERSED = 5  # of the user's own images


@torch.no_grad()
def encode_all(net, data, indices=None, batch_size=1024):
    """Encode the images at indices (N,), default all of data.

    net: encode(x) -> mu, logvar; data: len() and batch(indices), as from dataset.return_data.
    Returns mu and logvar, float32 (N, z) each, on the CPU: 59 MB for both on dSprites.
    """
    indices = torch.arange(len(data)) if indices is None else torch.as_tensor(indices)
    codes = None  # 2, N, z: one block, as many small ones would keep the freed large ones apart
    for i, part in enumerate(progress(indices.split(batch_size), desc="encoding", unit="batch")):
        both = torch.stack(net.encode(data.batch(part))).float().cpu()  # 2, B, z
        codes = both.new_empty(2, len(indices), both.shape[2]) if codes is None else codes
        codes[:, i * batch_size : i * batch_size + len(part)] = both
    mu, logvar = codes
    return mu, logvar


class Evaluator:
    """Evaluates net on the images of data; net may be trained further between calls.

    net: encode(x) -> mu, logvar and decode(z) -> logits; seed: chooses the images of pictures.
    Methods that draw take latents, as describe() returns them. Folders are made if need be.
    """

    def __init__(self, net, data, seed=1):
        self.net, self.data = net, data
        self.roles = data.factor_roles or ()
        generator = torch.Generator().manual_seed(stream_seed(seed, "pictures"))
        first, second, *self.reconstructed = torch.randint(len(data), (22,), generator=generator).tolist()
        self.seed_images = data.seed_images or {"image 1": first, "image 2": second}
        self.example = data.batch(torch.tensor([first]))  # 1, C, H, W

    def check(self, level="full", files=()):
        """UserError if the model cannot be scored at this level of metrics, or one of these image files cannot be read."""
        self.read(files)
        mu, _ = self.net.encode(self.example)  # 1, z_dim
        if level != "none" and (not self.data.factor_sizes or mu.shape[1] < 2):
            raise UserError("scores need known factors of the data and at least 2 latents: omit the metrics")

    def read(self, files):
        """Read image files, squeezed to the network's size, (B, C, H, W); UserError names one that cannot be read."""
        _, channels, size, _ = self.example.shape
        pixels = np.array([read_image(file, size, channels) for file in files])
        return torch.tensor(pixels).to(self.example) / 255

    def describe(self):
        """Find the Latents that pictures and scores share.

        With known factors from 10,000 images, the same for every model; else from 1,000.
        """
        sizes = self.data.factor_sizes
        indices = np.random.default_rng(0).permutation(len(self.data))[: SAMPLE if sizes else 1000]
        mu, logvar = encode_all(self.net, self.data, indices)  # N, z_dim
        kld = mean_kl(mu, logvar).tolist()
        if not sizes:
            return Latents(kld)
        factors = np.stack(np.unravel_index(indices, sizes), axis=1)  # N, K
        information = latent_information(mu, factors, kld)  # z_dim, K
        covariance = (mu - mu.mean(dim=0)).numpy().T @ (factors - factors.mean(axis=0))  # z_dim, K
        directed = {k for k, role in enumerate(self.roles) if role in ("x", "y", "scale")}
        best = information.argmax(axis=1)  # z_dim
        signs = [-1 if k in directed and row[k] < 0 else 1 for k, row in zip(best, covariance)]
        return Latents(kld, self.data.factor_names, information, signs)

    @torch.no_grad()
    def draw(self, folder, latents):
        """Draw traversals, reconstructions and the plane of two latents in folder."""
        folder, names = Path(folder), list(self.seed_images)
        folder.mkdir(parents=True, exist_ok=True)
        x = self.data.batch(torch.tensor(list(self.seed_images.values())))  # S, C, H, W
        self.draw_traversals(names, x, latents, folder / "traverse.png")
        if pair := latents.plane():
            images = pictures.plane(self.net.decode, self.net.encode(x)[0][0], pair)
            figures.plane(images, self.turns(), names[0], pair, latents, folder / "plane.png")
        x = self.data.batch(torch.tensor(self.reconstructed))  # 20, C, H, W
        mu, _ = self.net.encode(x)
        pictures.reconstruction(x, self.net.decode(mu), folder / "reconstruction.png")
        pictures.factors(self.net.decode, mu[:5], latents, folder / "factors.png")

    def draw_traversals(self, names, x, latents, path):
        """Draw path and a GIF beside it. names: of the images x (S, C, H, W) to start from."""
        z, _ = self.net.encode(x)  # S, z_dim
        images = pictures.traverse(self.net.decode, z, latents)  # S, L, 13, C, H, W
        recon = torch.sigmoid(self.net.decode(z))
        pictures.traversals(images, names, x.cpu(), recon.cpu(), latents, path)
        pictures.animation(images, names, latents, path.with_suffix(".gif"))

    def shapes(self):
        """Names of the values of shape: those of seed images, where there are any."""
        k, sizes = self.roles.index("shape"), self.data.factor_sizes
        known = {int(np.unravel_index(i, sizes)[k]): name for name, i in self.seed_images.items()}
        return [known.get(value, f"shape {value + 1}") for value in range(sizes[k])]

    def turns(self):
        """Codes of each shape as it turns once round, at the largest scale in the middle: {shape: means (rotations, z_dim)}.

        {} where the data set names no factor as the shape or as the rotation.
        """
        if not {"shape", "rotation"} <= set(self.roles):
            return {}
        sizes = self.data.factor_sizes
        place = [size - 1 if role == "scale" else size // 2 for role, size in zip(self.roles, sizes)]
        shape, rotation = self.roles.index("shape"), self.roles.index("rotation")
        place[shape], place[rotation] = np.ogrid[: sizes[shape], : sizes[rotation]]
        indices = np.ravel_multi_index(np.broadcast_arrays(*place), sizes)  # shapes, rotations
        mu, _ = encode_all(self.net, self.data, indices.ravel())
        return dict(zip(self.shapes(), mu.view(*indices.shape, -1)))

    @torch.no_grad()
    def draw_files(self, files, folder, latents):
        """Draw reconstructions of image files, and traversals of the first MOST_TRAVERSED, in folder."""
        x, folder = self.read(files), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pictures.reconstruction(
            x, self.net.decode(self.net.encode(x)[0]), folder / "reconstruction_files.png"
        )
        names = [f"file {i}" for i in range(1, len(x) + 1)][:MOST_TRAVERSED]
        self.draw_traversals(names, x[:MOST_TRAVERSED], latents, folder / "traverse_files.png")
        print(f"{folder}: reconstructions of all {len(x)} images, traversals of the first {len(names)}")

    @torch.no_grad()
    def write_page(self, path, title, latents):
        """Write a page with a slider for each latent, which starts from the seeds and eight more images (viz/explore.py)."""
        x = self.data.batch(torch.tensor([*self.seed_images.values(), *self.reconstructed[:8]]))
        explore.write_page(Path(path), self.net, x, self.net.encode(x)[0], latents, title)

    def score(self, level, folder, about, latents, draw=True):
        """Compute and print every metric and write metrics.json in folder; return the scores.

        level: "full" or "fast" (see metrics.settings_of); about: dict to be kept among the settings; draw: whether to draw
        mutual_information.png and total_effect.png too, and latent_response.png where the factors' roles are known.
        """
        self.check()
        folder, sizes, names = Path(folder), self.data.factor_sizes, self.data.factor_names
        folder.mkdir(parents=True, exist_ok=True)
        indices, factors = metrics.subgrid(sizes, level)
        mu, logvar = encode_all(self.net, self.data, indices)  # N, z_dim
        scores = metrics.score(mu, logvar, factors, level, roles=self.roles)
        scores["settings"] |= about
        metrics.write(scores, folder / "metrics.json")
        if draw:
            shares = latents.information / np.log(sizes)  # of each factor's entropy; z_dim, K
            title = "Mutual information of latent and factor: share of the factor's entropy"
            figures.factor_map(shares, names, title, latents, folder / "mutual_information.png")
            title = "Total effect: share of a latent's variance\nthat changes when this factor alone is drawn anew"
            figures.factor_map(scores["total_effect"], names, title, latents, folder / "total_effect.png")
            if figures.ROLES <= set(self.roles):
                grid = mu.numpy().reshape(*scores["settings"]["factor_sizes"], -1)  # 3, 6, 40, 32, 32, z_dim
                path = folder / "latent_response.png"
                figures.latent_response(grid, self.roles, self.shapes(), latents, path)
        return scores

    def encode(self, path):
        """Write the codes of all images, in the order of the data set, to path, an .npz file.

        mu, logvar: float32 (N, z_dim); with known factors also factors, int64 (N, K) counted from 0, and their factor_names
        and factor_roles (K,).
        """
        mu, logvar = encode_all(self.net, self.data)
        arrays = dict(mu=mu.numpy(), logvar=logvar.numpy())
        if self.data.factor_sizes:
            arrays["factors"] = metrics.subgrid(self.data.factor_sizes)[1]
            arrays["factor_names"] = np.array(self.data.factor_names)
            arrays["factor_roles"] = np.array(self.roles)
        with atomic_file(path) as file:
            np.savez(file, **arrays)
        print(f"codes of {len(mu):,} images in {path}: {', '.join(arrays)}")
