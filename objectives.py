"""Losses of both papers and of beta-TCVAE. All terms are in nats: summed over pixels or latents, averaged over the batch.

An objective is a function of (x, x_recon, mu, logvar, z, step) and, by keyword, of the flags of main.py that it needs:
    x, x_recon        images in [0, 1] and logits of p(x|z), (B, C, H, W)
    mu, logvar, z     parameters of q(z|x) and the sample to decode, (B, z_dim)
    step              iteration, starting at 1
It returns the loss to minimise (scalar) and a dict of what to log: scalars, or vectors (z_dim,) with one value per
latent. The columns of log.csv follow its keys; names of scalars do not end in a digit, and mu and var are taken. The
other programs read recon_loss, total_kld and kld. To add an objective, write the function and name it in OBJECTIVES.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


def reconstruction_loss(x, x_recon, dist):
    """Estimate -E_q[log p(x|z)], up to a constant, from one sample of z; a scalar, nats per image.

    x: images in [0, 1]; x_recon: logits of p(x|z); both (B, C, H, W).
    bernoulli: binary cross-entropy per pixel.
    gaussian: squared error of the mean sigmoid(x_recon), that is, a Gaussian of variance 1/2.
    """
    if dist == "bernoulli":
        loss = F.binary_cross_entropy_with_logits(x_recon, x, reduction="sum")
    elif dist == "gaussian":
        loss = F.mse_loss(torch.sigmoid(x_recon), x, reduction="sum")
    else:
        raise ValueError(f"distribution {dist!r} is neither bernoulli nor gaussian")
    return loss / len(x)


def kl_divergence(mu, logvar):
    """Compute KL(q(z|x) || N(0, I)) of diagonal Gaussians (Kingma & Welling, 2014, Appendix B), in nats.

    mu, logvar: (B, z_dim). Return, averaged over the batch, the total over latents (scalar), the KL of each latent
    (z_dim,) and their mean (scalar).
    """
    per_latent = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(dim=0)  # z_dim
    return per_latent.sum(), per_latent, per_latent.mean()


def capacity(step, C_max, C_stop_iter):
    """Return C in nats: linear from 0 to C_max at C_stop_iter, then C_max (Burgess et al., A.2)."""
    return min(C_max, C_max * step / C_stop_iter)


def capacity_penalty(total_kld, C, smoothing=0.0):
    """Return |KL - C|, a scalar in nats, where KL is the mean over the batch.

    smoothing: width (nats) of the pseudo-Huber smoothing sqrt(d^2 + smoothing^2) - smoothing of |d|; 0 is the paper's loss.
    Without smoothing, the slope jumps between -1 and 1 from step to step. This noise fills Adam's second moment and drowns
    the gradient of the reconstruction in the encoder (misc/capacity.md).
    """
    distance = total_kld - C
    return (distance**2 + smoothing**2).sqrt() - smoothing if smoothing else distance.abs()


def total_correlation(z, mu, logvar):
    """Estimate KL(q(z) || prod_j q(z_j)), a scalar in nats (Chen et al., 2018, eq. 2).

    q(z) is the mean of the batch's posteriors; z, mu, logvar: (B, z_dim), one sample from each. The gradient equals that
    of minibatch-weighted sampling (Chen et al., Appendix C). With so few posteriors the estimate is too high: once x, y
    and scale distinguish the images of a batch, each further latent adds most of its own KL, and beta weighs that too.
    The bias shrinks slowly as B grows; at B = 1 the estimate is 0.
    """
    # B of z, B of q, z_dim
    log_q = -0.5 * (math.log(2 * math.pi) + logvar + (z[:, None] - mu) ** 2 / logvar.exp())
    log_B = math.log(len(z))
    log_joint = log_q.sum(dim=2).logsumexp(dim=1) - log_B  # B
    log_marginals = log_q.logsumexp(dim=1) - log_B  # B, z_dim
    return (log_joint - log_marginals.sum(dim=1)).mean()


def scheduled(value, step):
    """Return a schedule's value at a step: linear between its points ((iteration, value), ..), constant before and after.

    A number is the same at every step.
    """
    if not isinstance(value, tuple):
        return value
    iterations, values = zip(*value)
    return float(np.interp(step, iterations, values))


def objective_H(x, x_recon, mu, logvar, z, step, *, dist, beta):
    """Compute reconstruction + beta KL, the negative of eq. 4 of Higgins et al. (2017)."""
    recon_loss = reconstruction_loss(x, x_recon, dist)
    total_kld, latent_kld, mean_kld = kl_divergence(mu, logvar)
    loss = recon_loss + beta * total_kld
    return loss, {"recon_loss": recon_loss, "total_kld": total_kld, "mean_kld": mean_kld, "kld": latent_kld}


def objective_B(x, x_recon, mu, logvar, z, step, *, dist, gamma, C_max, C_stop_iter, delta):
    """Compute reconstruction + gamma |KL - C|, the negative of eq. 8 of Burgess et al. (2018).

    delta: width (nats) of the penalty's smoothing, see capacity_penalty(); 0 is the paper's loss.
    """
    recon_loss = reconstruction_loss(x, x_recon, dist)
    total_kld, latent_kld, mean_kld = kl_divergence(mu, logvar)
    C = capacity(step, C_max, C_stop_iter)
    loss = recon_loss + gamma * capacity_penalty(total_kld, C, smoothing=delta)
    terms = {"recon_loss": recon_loss, "total_kld": total_kld, "mean_kld": mean_kld, "C": C}
    return loss, {**terms, "kld": latent_kld}


def objective_TC(x, x_recon, mu, logvar, z, step, *, dist, beta, kl_weight):
    """Compute reconstruction + KL + (beta - 1) total correlation, the negative of eq. 4 of Chen et al. (2018), beta-TCVAE.

    kl_weight: factor of all but the reconstruction, a number or a schedule; 1 in the paper.
    """
    recon_loss = reconstruction_loss(x, x_recon, dist)
    total_kld, latent_kld, mean_kld = kl_divergence(mu, logvar)
    regulariser = total_kld + (beta - 1) * total_correlation(z, mu, logvar)
    loss = recon_loss + scheduled(kl_weight, step) * regulariser
    return loss, {"recon_loss": recon_loss, "total_kld": total_kld, "mean_kld": mean_kld, "kld": latent_kld}


OBJECTIVES = {"H": objective_H, "B": objective_B, "TC": objective_TC}
