"""What latents know: mutual information with factors, KL, dependence on each other; in nats.

codes:      (N, z) floats, the means of q(z|x) for N images, or any other representation
mu, logvar: (N, z) floats, the parameters of q(z|x)
factors:    (N, K) integers, the values of the K factors that the images were made from
"""

import math

import numpy as np
import torch

from utils import SHOWN


def mutual_information(codes, factors, bins=20):
    """Compute I(z_j; v_k) in nats, (z, K), from counts, with each latent in bins of equal width over its range.

    N images overestimate it by about (bins - 1) (values - 1) / 2N: 0.04 nats for 40 values and 10,000 images.
    """
    codes, factors = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    information = np.zeros((codes.shape[1], factors.shape[1]))
    for k, v in enumerate(factors.T):
        labels = np.unique(v, return_inverse=True)[1]
        label_edges = np.arange(labels.max() + 2) - 0.5
        for j, z in enumerate(codes.T):
            counts = np.histogram2d(z, labels, (bins, label_edges))[0]  # bins, values
            independent = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / len(z)
            seen = counts > 0
            information[j, k] = (counts[seen] * np.log(counts[seen] / independent[seen])).sum() / len(z)
    return information


def entropy(factors):
    """Compute H(v_k) of each factor in nats, (K,), from counts."""
    frequencies = [np.unique(v, return_counts=True)[1] / len(factors) for v in np.asarray(factors).T]
    return np.array([-(p * np.log(p)).sum() for p in frequencies])


def latent_information(mu, logvar, factors, bins=200):
    """Compute I(z_j; v_k) in nats, (z, K), of a sampled latent z_j ~ q(z_j|x): 0 for a dead latent, at most its KL.

    mu, logvar: (N, z); factors: (N, K) of a random sample of images. p(z_j|v_k) is the mean of q(z_j|x) over images
    with that v_k, in bins of equal width. 10,000 images of dSprites give it to within 0.02 nats. (MIG is defined with
    another estimator, bins of the means, in which even a dead latent may seem informative.)
    """
    mu, logvar = (torch.as_tensor(array, dtype=torch.float64) for array in (mu, logvar))
    factors = torch.as_tensor(factors)
    std = (logvar / 2).exp().clip(1e-6)
    information = torch.zeros(mu.shape[1], factors.shape[1])
    for j in range(len(information)):
        mean, sigma = mu[:, [j]], std[:, [j]]  # N, 1
        edges = torch.linspace((mean - 3 * sigma).min(), (mean + 3 * sigma).max(), bins + 1).to(mean)
        edges[0], edges[-1] = -math.inf, math.inf
        q = torch.special.ndtr((edges - mean) / sigma).diff(dim=1)  # N, bins; each row sums to 1
        information[j] = torch.stack([bin_information(q, v) for v in factors.T])
    return np.clip(information.numpy(), 0, mean_kl(mu, logvar)[:, None])


def bin_information(q, v):
    """Compute I(b; v) in nats of a bin b with probabilities q (N, bins) for each image and of its label v (N,).

    The estimate from N images is too high by a term in 1/N; 2 I(all) - mean of I(each half) cancels it.
    """
    one_hot = torch.nn.functional.one_hot(v.unique(return_inverse=True)[1]).to(q)  # N, labels
    sums = torch.stack([one_hot[half::2].T @ q[half::2] for half in (0, 1)])  # halves, labels, bins
    counts = torch.stack([one_hot[half::2].sum(dim=0) for half in (0, 1)])  # halves, labels

    def information(sums, counts):  # H(b) - H(b|v)
        q_v, p_v = sums / counts.clip(1)[:, None], counts / counts.sum()
        return torch.special.entr(p_v @ q_v).sum() - p_v @ torch.special.entr(q_v).sum(dim=1)

    return 2 * information(sums.sum(dim=0), counts.sum(dim=0)) - sum(map(information, sums, counts)) / 2


def top_factor(information, names, kld):
    """Find the factor that each latent is most informative about, and its share of the latent's mutual information.

    information: (z, K) nats, of latent_information; names: of the K factors; kld: (z,) nats.
    Returns z pairs (name, share in [0, 1]); None for latents with a KL under SHOWN, and for uninformative ones.
    """
    return [
        (names[row.argmax()], float(row.max() / row.sum())) if kl > SHOWN and row.sum() > 0 else None
        for row, kl in zip(information, kld)
    ]


def position_effect(effect, roles):
    """Find the largest total effect of x or y on a latent other than their own; 0 if nothing else moves with position.

    effect: (z, K) of metrics.total_effect, 0 for latents that do not count; roles: of the K factors, "x" and "y" among
    them. The own latent of x is the one that x has the highest effect on; so for y.
    """
    position = effect[:, [roles.index("x"), roles.index("y")]]  # z, 2
    return float(np.delete(position, position.argmax(axis=0), axis=0).max(initial=0))


def mean_kl(mu, logvar):
    """Compute KL(q(z_j|x) || N(0, 1)) of each latent in nats, (z,), averaged over the images (N, z)."""
    mu, logvar = np.asarray(mu, dtype=np.float64), np.asarray(logvar, dtype=np.float64)
    return 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).mean(axis=0)


def total_correlation(codes):
    """Compute KL(N(m, S) || N(m, diag S)) in nats, with m and S the mean and covariance of codes (Locatello et al., 2019).

    Equals -1/2 log det of the correlation matrix. Constant latents are left out. Eigenvalues under 1e-6, about the
    precision of float32, count as 1e-6: linearly dependent latents would make it infinite.
    """
    codes = np.asarray(codes, dtype=np.float64)
    codes = codes[:, codes.std(axis=0) > 1e-7]
    if codes.shape[1] < 2:
        return 0.0
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(codes, rowvar=False))
    return max(0.0, float(-0.5 * np.log(eigenvalues.clip(1e-6)).sum()))
