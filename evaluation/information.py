"""What latents know: mutual information with factors, KL; in nats.

codes:      (N, z) floats, the means of q(z|x) for N images, or any other representation
factors:    (N, K) integers, the values of the K factors that the images were made from
"""

import numpy as np


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


def latent_information(mu, factors, kld, bins=20):
    """Compute I(z_j; v_k) in nats, (z, K), less the bias of counts (Miller, 1955), at least 0 and at most the latent's KL.

    mu: (N, z), means of q(z|x) of a random sample; kld: (z,) nats. So a dead latent is informative about nothing.
    """
    values = np.array([len(np.unique(v)) for v in factors.T])  # K
    bias = (bins - 1) * (values - 1) / (2 * len(mu))
    return np.clip(mutual_information(mu, factors, bins) - bias, 0, np.array(kld)[:, None])


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
