import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as torch_kl

from solver import capacity, kl_divergence, normalised_beta, objective_B, objective_H, reconstruction_loss
from utils import epoch_order


def test_bernoulli_loss_is_the_negative_log_likelihood_in_nats_an_image():
    x, logits = torch.rand(5, 3, 8, 8).round(), torch.randn(5, 3, 8, 8)
    expected = -Bernoulli(logits=logits).log_prob(x).sum() / 5
    torch.testing.assert_close(reconstruction_loss(x, logits, "bernoulli"), expected)
    half = reconstruction_loss(x, torch.zeros_like(x), "bernoulli")
    assert half.item() == pytest.approx(3 * 64 * math.log(2), rel=1e-5)


def test_gaussian_loss_is_that_of_variance_one_half_without_its_constant():
    x, logits = torch.rand(5, 3, 8, 8), torch.randn(5, 3, 8, 8)
    log_prob = Normal(torch.sigmoid(logits), math.sqrt(0.5)).log_prob(x).sum() / 5
    constant = 3 * 64 * 0.5 * math.log(math.pi)
    torch.testing.assert_close(reconstruction_loss(x, logits, "gaussian"), -log_prob - constant)


def test_an_unknown_distribution_is_an_error():
    with pytest.raises(ValueError, match="poisson"):
        reconstruction_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "poisson")


def test_kl_is_that_of_torch_distributions():
    mu, logvar = torch.randn(7, 4), torch.randn(7, 4)
    expected = torch_kl(Normal(mu, (0.5 * logvar).exp()), Normal(0, 1)).mean(dim=0)
    total, latents, mean = kl_divergence(mu, logvar)
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(total, expected.sum())
    torch.testing.assert_close(mean, expected.mean())
    assert all(t.abs().max() == 0 for t in kl_divergence(torch.zeros(3, 2), torch.zeros(3, 2)))


def test_objectives_are_those_of_the_papers():
    recon, kld = torch.tensor(100.0), torch.tensor(7.0)
    assert objective_H(recon, kld, beta=4) == 128
    assert objective_B(recon, kld, gamma=10, C=5) == 120
    assert objective_B(recon, kld, gamma=10, C=9) == 120  # KL under C costs as much as over it


def test_rounded_bars_are_flat_at_C_and_as_steep_as_the_papers_far_from_it():
    kld = torch.tensor([5.0, 5.001, 4.999, 30.0, 0.0], requires_grad=True)
    loss = objective_B(torch.tensor(100.0), kld, gamma=10, C=5, delta=0.5)
    torch.testing.assert_close(loss[0].item(), 100.0)
    torch.testing.assert_close(loss[3].item(), 100 + 10 * (25 - 0.5), rtol=1e-3, atol=0)
    (slope,) = torch.autograd.grad(loss.sum(), kld)
    torch.testing.assert_close(slope, torch.tensor([0, 0.02, -0.02, 10, -10]), rtol=0.01, atol=1e-3)


def test_normalised_beta():
    assert normalised_beta(4, 10, 4096) == pytest.approx(0.0098, rel=0.01)
    assert normalised_beta(250, 32, 3 * 4096) == pytest.approx(0.65, rel=0.01)


def test_capacity_rises_in_a_straight_line_and_stays():
    steps = (0, 1, 50_000, 100_000, 100_001, 2**40)
    assert [capacity(step, 25.0, 100_000) for step in steps] == [0, 0.00025, 12.5, 25, 25, 25]
    assert [capacity(step, 25.0, 100_000, C_start=10.0) for step in steps] == [10, 10.00015, 17.5, 25, 25, 25]
    assert [capacity(step, 5.0, 100_000, C_start=10.0) for step in steps] == [10, 9.99995, 7.5, 5, 5, 5]


def test_each_epoch_is_a_permutation_of_its_own():
    first = epoch_order(1, 0, 1000)
    assert sorted(first.tolist()) == list(range(1000))  # image 0 too
    assert torch.equal(first, epoch_order(1, 0, 1000))
    assert not torch.equal(first, epoch_order(1, 1, 1000))
    assert not torch.equal(first, epoch_order(2, 0, 1000))
