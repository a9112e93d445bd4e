"""What latents know: mutual information with factors, KL; in nats.

codes:      (N, z) floats, the means of q(z|x) for N images, or any other representation
mu, logvar: (N, z) floats, the parameters of q(z|x)
factors:    (N, K) integers, the values of the K factors that the images were made from
"""

import math

import numpy as np
import torch


def mutual_information(codes, factors, bins=20):
    """Compute I(z_j; v_k) in nats, (z, K), from counts, with each latent in bins of equal width over its range.

    N images overestimate it by about (bins - 1) (values - 1) / 2N: 0.04 nats for 40 values and 10,000 images.
    """
    from sklearn.metrics import mutual_info_score  # takes a second

    codes, factors = np.asarray(codes), np.asarray(factors)
    information = np.zeros((codes.shape[1], factors.shape[1]))
    for k, v in enumerate(factors.T):
        labels = np.unique(v, return_inverse=True)[1]
        for j, z in enumerate(codes.T):
            counts = np.histogram2d(z, labels, (bins, labels.max() + 1))[0]  # bins, values
            information[j, k] = mutual_info_score(None, None, contingency=counts)
    return information


def latent_information(mu, logvar, factors, bins=200):
    """Compute I(z_j; v_k) in nats, (z, K), of a sampled latent z_j ~ q(z_j|x): 0 for a dead latent, at most its KL.

    mu, logvar: (N, z); factors: (N, K) of a random sample of images. p(z_j|v_k) is the mean of q(z_j|x) over images
    with that v_k, in bins of equal width. 10,000 images of dSprites give it to within 0.02 nats. (MIG is defined with
    another estimator, bins of the means, in which even a dead latent may seem informative.)
    """
    mu, logvar = (torch.as_tensor(array, dtype=torch.float64) for array in (mu, logvar))
    factors = torch.as_tensor(factors)
    std = (logvar / 2).exp().clip(1e-6)
    information = np.zeros((mu.shape[1], factors.shape[1]))
    for j in range(len(information)):
        mean, sigma = mu[:, [j]], std[:, [j]]  # N, 1
        edges = torch.linspace((mean - 3 * sigma).min(), (mean + 3 * sigma).max(), bins + 1).to(mean)
        edges[0], edges[-1] = -math.inf, math.inf
        q = torch.special.ndtr((edges - mean) / sigma).diff(dim=1)  # N, bins; each row sums to 1
        for k, v in enumerate(factors.T):
            # From N images it is too high by a term in 1/N, which the difference to both halves cancels.
            halves = [bin_information(q[half::2], v[half::2]) for half in (0, 1)]
            information[j, k] = 2 * bin_information(q, v) - sum(halves) / 2
    return np.clip(information, 0, mean_kl(mu, logvar)[:, None])


def bin_information(q, v):
    """Compute I(b; v) = H(b) - H(b|v) in nats of a bin b with probabilities q (N, bins) for each image and its label v (N,)."""
    one_hot = torch.nn.functional.one_hot(v.unique(return_inverse=True)[1]).to(q)  # N, labels
    q_v = one_hot.T @ q / one_hot.sum(dim=0)[:, None]  # labels, bins
    return torch.special.entr(q.mean(dim=0)).sum() - one_hot.mean(dim=0) @ torch.special.entr(q_v).sum(dim=1)


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
