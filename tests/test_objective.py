"""The losses against torch.distributions and the papers' words, and as functions of each flag."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as torch_kl

import objectives
from objectives import (
    capacity,
    capacity_penalty,
    kl_divergence,
    learning_rate,
    reconstruction_loss,
    total_correlation,
)
from solver import Solver
from training.log import read_log
from utils import epoch_order, stream_seed


def test_bernoulli_loss_is_the_negative_log_likelihood_in_nats_an_image():
    x, logits = torch.rand(5, 3, 8, 8).round(), torch.randn(5, 3, 8, 8)
    expected = -Bernoulli(logits=logits).log_prob(x).sum() / 5
    torch.testing.assert_close(reconstruction_loss(x, logits, "bernoulli"), expected)


def test_gaussian_loss_is_that_of_variance_one_half_without_its_constant():
    x, logits = torch.rand(5, 3, 8, 8), torch.randn(5, 3, 8, 8)
    log_prob = Normal(torch.sigmoid(logits), math.sqrt(0.5)).log_prob(x).sum() / 5
    constant = 3 * 64 * 0.5 * math.log(math.pi)
    torch.testing.assert_close(reconstruction_loss(x, logits, "gaussian"), -log_prob - constant)


def test_kl_is_that_of_torch_distributions():
    mu, logvar = torch.randn(7, 4), torch.randn(7, 4)
    expected = torch_kl(Normal(mu, (0.5 * logvar).exp()), Normal(0, 1)).mean(dim=0)
    total, latents, mean = kl_divergence(mu, logvar)
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(total, expected.sum())
    torch.testing.assert_close(mean, expected.mean())
    assert all(t.abs().max() == 0 for t in kl_divergence(torch.zeros(3, 2), torch.zeros(3, 2)))


def test_the_smoothed_penalty_is_flat_at_C_and_as_steep_as_the_papers_far_from_it():
    kld = torch.tensor([5.0, 5.001, 4.999, 30.0, 0.0], requires_grad=True)
    penalty = capacity_penalty(kld, C=5, smoothing=0.5)
    torch.testing.assert_close(penalty[[0, 3]], torch.tensor([0.0, 24.505]), rtol=1e-4, atol=0)
    (slope,) = torch.autograd.grad(penalty.sum(), kld)
    torch.testing.assert_close(slope, torch.tensor([0, 0.002, -0.002, 1, -1]), rtol=0.01, atol=1e-4)
    assert capacity_penalty(kld, C=5).tolist() == pytest.approx([0, 0.001, 0.001, 25, 5], rel=1e-3)


def test_capacity_rises_in_a_straight_line_and_stays():
    steps = (0, 1, 50_000, 100_000, 100_001, 2**40)
    assert [capacity(step, 25.0, 100_000) for step in steps] == [0, 0.00025, 12.5, 25, 25, 25]
    assert [capacity(step, 25.0, 100_000, C_start=10.0) for step in steps] == [10, 10.00015, 17.5, 25, 25, 25]
    assert [capacity(step, 5.0, 100_000, C_start=10.0) for step in steps] == [10, 9.99995, 7.5, 5, 5, 5]


# The loss of a step as a function of each flag.


def step_loss(runs, *flags, step=50):
    """The loss of a step at fresh weights and what it logs; and by hand: reconstruction losses, KL, total correlation."""
    solver = runs.solver("step", "--save_output False --batch_size 4 --C_stop_iter 100", *flags)
    solver.iter, objective, seen = step, solver.objective, SimpleNamespace()

    def watched(x, x_recon, mu, logvar, z, step):
        vars(seen).update(x=x, x_recon=x_recon, mu=mu, logvar=logvar, z=z)
        return objective(x, x_recon, mu, logvar, z, step)

    solver.objective = watched
    with torch.no_grad():
        solver.net.encoder[-1].weight[:10] *= 8  # apart, or the total correlation would hardly count
        loss, seen.terms = solver.compute_loss(solver.data.batch(torch.arange(4) * 100_000))
    solver.folder.release()
    q = Normal(seen.mu, (seen.logvar / 2).exp())
    seen.loss, seen.kl = loss.item(), torch_kl(q, Normal(0, 1)).sum(dim=1).mean().item()
    seen.bernoulli = -Bernoulli(logits=seen.x_recon).log_prob(seen.x).sum().item() / 4
    seen.gaussian = (torch.sigmoid(seen.x_recon) - seen.x).square().sum().item() / 4
    log_q = Normal(seen.mu[None], (seen.logvar[None] / 2).exp()).log_prob(
        seen.z[:, None]
    )  # B of z, B of q, z_dim
    mixture = log_q.sum(dim=2).exp().mean(dim=1).log()
    seen.tc = (mixture - log_q.exp().mean(dim=1).log().sum(dim=1)).mean().item()
    return seen


@pytest.mark.parametrize("beta, dist", [(4.0, "bernoulli"), (0.0, "bernoulli"), (4.0, "gaussian")])
def test_objective_H_is_reconstruction_plus_beta_KL(runs, beta, dist):
    step = step_loss(runs, "--objective H --dist", dist, "--beta", beta)
    assert step.loss == pytest.approx(vars(step)[dist] + beta * step.kl, rel=1e-5)
    assert "C" not in step.terms


@pytest.mark.parametrize(
    "flags, C, gamma, delta",
    [
        ("--gamma 1000 --C_max 25", 12.5, 1000, 0),
        ("--gamma 10 --C_max 25 --C_start 5", 15, 10, 0),
        ("--gamma 10 --C_max 25 --C_stop_iter 10", 25, 10, 0),
        ("--gamma 10 --C_max 25 --delta 2 --dist gaussian", 12.5, 10, 2),
    ],
)
def test_objective_B_is_reconstruction_plus_gamma_times_the_penalty_on_KL_minus_C(
    runs, flags, C, gamma, delta
):
    step = step_loss(runs, flags)
    recon = step.gaussian if "gaussian" in flags else step.bernoulli
    penalty = math.sqrt((step.kl - C) ** 2 + delta**2) - delta
    assert step.loss == pytest.approx(recon + gamma * penalty, rel=1e-5)
    assert step.terms["C"] == C and step.terms["recon_loss"].item() == pytest.approx(recon, rel=1e-5)


@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_objective_TC_is_reconstruction_plus_KL_plus_beta_minus_1_total_correlations(runs, beta):
    step = step_loss(runs, "--objective TC --beta", beta)
    assert step.tc > 0.5
    assert step.loss == pytest.approx(step.bernoulli + step.kl + (beta - 1) * step.tc, rel=1e-5)


def test_total_correlation_is_zero_where_posteriors_are_the_prior_and_high_where_latents_are_copies():
    z = torch.randn(64, 1)
    assert total_correlation(z.expand(64, 3), torch.zeros(64, 3), torch.zeros(64, 3)).abs() < 1e-5
    spread, narrow = torch.linspace(-2, 2, 64)[:, None], torch.full((64, 2), -4.0)
    alone, copies = torch.cat([spread, 0 * spread], 1), spread.expand(64, 2)
    assert total_correlation(alone, alone, narrow).abs() < 1e-5
    assert total_correlation(copies, copies, narrow) > 1


RESTART = "--objective restart --gamma 10 --restart_iter 20 --weak_iters 10 --rise_iters 40 --restart_beta 0.25 --beta 5"


@pytest.mark.parametrize("step, weight", [(21, 0.25), (30, 0.25), (50, 2.625), (70, 5), (99, 5)])
def test_after_its_restart_the_objective_is_TC_whose_weight_rises(runs, step, weight):
    step = step_loss(runs, RESTART, step=step)
    assert step.loss == pytest.approx(step.bernoulli + 0.25 * step.kl + (weight - 0.25) * step.tc, rel=1e-5)
    assert step.tc > 0.5 and math.isnan(step.terms["C"])


def test_up_to_its_restart_the_objective_is_B(runs):
    step = step_loss(runs, RESTART, "--C_max 8", step=20)
    assert step.loss == pytest.approx(step.bernoulli + 10 * abs(step.kl - 1.6), rel=1e-5)
    assert step.terms["C"] == 1.6


def test_before_and_after_its_restart_the_objective_takes_the_distribution_and_every_flag(runs):
    flags = f"{RESTART} --dist gaussian --gamma 3 --C_max 8 --C_start 2 --delta 2"
    step = step_loss(runs, flags, step=20)
    penalty = math.sqrt((step.kl - 3.2) ** 2 + 2**2) - 2
    assert step.loss == pytest.approx(step.gaussian + 3 * penalty, rel=1e-5)
    step = step_loss(runs, flags, step=50)
    assert step.loss == pytest.approx(step.gaussian + 0.25 * step.kl + 2.375 * step.tc, rel=1e-5)


def test_a_step_logs_mu_variance_and_KL_each_under_its_name(runs):
    step = step_loss(runs)
    torch.testing.assert_close(step.terms["mu"], step.mu.mean(dim=0))
    torch.testing.assert_close(step.terms["var"], step.logvar.exp().mean(dim=0))
    torch.testing.assert_close(step.terms["kld"], kl_divergence(step.mu, step.logvar)[1])
    assert step.terms["total_kld"].item() == pytest.approx(step.kl, rel=1e-5)
    assert step.terms["mean_kld"].item() == pytest.approx(step.kl / 10, rel=1e-5)
    assert not torch.equal(step.z, step.mu)


# Steps.


def test_the_learning_rate_stays_then_falls_with_a_cosine_to_a_hundredth():
    rates = [learning_rate(step, 2.0, 10, 30) for step in (1, 10, 20, 30, 99)]
    assert rates == pytest.approx([2, 2, 1.01, 0.02, 0.02])
    assert [learning_rate(step, 2.0, 0, 0) for step in (1, 10**6)] == [2, 2]


def test_each_step_takes_the_learning_rate_of_its_iteration(runs):
    solver = runs.solver("run", "--batch_size 2 --lr 1e-3 --lr_start_iter 10 --lr_stop_iter 30")
    for step, rate in ((5, 1e-3), (20, 0.505e-3), (31, 1e-5)):
        solver.iter = step
        solver.training_step(solver.data.batch(torch.arange(2)))
        assert solver.optim.param_groups[0]["lr"] == pytest.approx(rate)


def test_a_restart_draws_the_encoder_and_what_inactive_latents_pass_through_anew_and_keeps_the_rest(runs):
    solver = runs.solver("run", RESTART, "--batch_size 2")
    initial, solver.iter = copy.deepcopy(solver.net.state_dict()), 1
    solver.training_step(solver.data.batch(torch.arange(2)))
    solver.latent_kld = lambda: [{2: 0.5, 7: 0.011}.get(j, 0.009) for j in range(10)]
    before = copy.deepcopy(solver.net.state_dict())
    solver.restart_encoder()
    after = solver.net.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    weights = {name for name in after if name.startswith("encoder") and name.endswith("weight")}
    assert weights < changed
    assert not any(torch.equal(after[name], initial[name]) for name in weights)  # nor those it began with
    assert {name for name in changed if name.startswith("decoder")} == {"decoder.0.weight"}
    columns = (after["decoder.0.weight"] != before["decoder.0.weight"]).any(dim=0)
    assert columns.nonzero().flatten().tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert not solver.optim.state


def test_the_encoder_restarts_once_between_restart_iter_and_the_next_iteration(runs, monkeypatch):
    happened, restart, step = [], Solver.restart_encoder, Solver.training_step

    def restarting(solver):
        happened.append("restart")
        restart(solver)

    def stepping(solver, x):
        happened.append(solver.iter)
        step(solver, x)

    monkeypatch.setattr(Solver, "restart_encoder", restarting)
    monkeypatch.setattr(Solver, "training_step", stepping)
    runs.run("run", "--objective restart --restart_iter 3 --max_iter 6 --save_output no")
    assert happened == [1, 2, 3, "restart", 4, 5, 6]


def test_three_steps_are_those_of_the_loop_that_people_write(runs):
    solver = runs.solver("run", "--batch_size 2 --gamma 10 --C_stop_iter 2 --lr 1e-3")
    net, noise = copy.deepcopy(solver.net), torch.Generator().manual_seed(stream_seed(1, "noise"))
    adam, order = torch.optim.Adam(net.parameters(), lr=1e-3), epoch_order(1, 0, len(solver.data))
    for step, C in ((1, 12.5), (2, 25), (3, 25)):
        solver.iter = step
        solver.training_step(solver.data.batch(solver.next_indices()))
        x = solver.data.batch(order[2 * step - 2 : 2 * step])
        mu, logvar = net.encode(x)
        z = mu + (logvar / 2).exp() * torch.randn(2, 10, generator=noise)
        kl = torch_kl(Normal(mu, (logvar / 2).exp()), Normal(0, 1)).sum() / 2
        loss = -Bernoulli(logits=net.decode(z)).log_prob(x).sum() / 2 + 10 * (kl - C).abs()
        adam.zero_grad()
        loss.backward()
        adam.step()
    for one, other in zip(solver.net.parameters(), net.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    solver.iter = solver.batches + 1
    assert torch.equal(solver.next_indices(), epoch_order(1, 1, len(solver.data))[:2])


def test_the_last_partial_batch_of_an_epoch_is_left_out(runs):
    solver = runs.solver("run", "--batch_size 500000")
    solver.iter = 2
    assert torch.equal(solver.next_indices(), epoch_order(1, 1, len(solver.data))[:500_000])


def test_weights_order_of_the_images_and_noise_each_follow_the_seed(runs):
    drawn = []
    for name, seed in (("one", 2), ("same", 2), ("other", 3)):
        solver = runs.solver(name, "--seed", seed)
        solver.iter, noise = 1, torch.randn(9, generator=solver.noise)
        drawn.append([solver.net.encoder[0].weight, solver.next_indices(), noise])
    assert all(map(torch.equal, drawn[0], drawn[1]))
    assert not any(map(torch.equal, drawn[0], drawn[2]))


@pytest.mark.parametrize("flag, value", [("lr", 0.25), ("beta1", 0.5), ("beta2", 0.75)])
def test_the_optimiser_takes_each_of_its_flags(runs, flag, value):
    group = runs.solver("optim", f"--{flag} {value}").optim.param_groups[0]
    assert {"lr": group["lr"], "beta1": group["betas"][0], "beta2": group["betas"][1]}[flag] == value
    assert isinstance(runs.solver("other", "--optimizer adagrad").optim, torch.optim.Adagrad)


def test_an_objective_that_is_added_to_the_table_trains_logs_its_terms_and_resumes(runs, monkeypatch):
    def objective_L2(x, x_recon, mu, logvar, z, step, *, dist, gamma):
        recon_loss = reconstruction_loss(x, x_recon, dist)
        norm = z.square().sum(dim=1).mean()
        return recon_loss + gamma * norm, {"recon_loss": recon_loss, "norm": norm, "z": z.mean(dim=0)}

    monkeypatch.setitem(objectives.OBJECTIVES, "L2", objective_L2)
    import training.settings

    monkeypatch.setitem(training.settings.FLAGS_OF, "L2", objectives.flags_of(objective_L2))
    monkeypatch.setitem(training.settings.CHOICES, "objective", list(objectives.OBJECTIVES))
    runs.run("run", "--objective L2 --gamma 3 --save_output no --max_iter 12")
    runs.run("run", "--objective L2 --gamma 3 --save_output no --max_iter 20")
    log = read_log(runs.outputs("run") / "log.csv")
    assert list(log)[:4] == ["iter", "recon_loss", "norm", "z_0"] and len(log["norm"]) == 4
    assert "gamma 3.0 (now 4.0)" in runs.refused("run", "--objective L2 --gamma 4")


@pytest.mark.parametrize("new", [True, False])
def test_a_checkpoint_that_logged_other_terms_goes_on_and_the_log_has_the_new_columns(runs, monkeypatch, new):
    """new: a term more than in the checkpoint, else one less; the open window of iterations starts anew."""
    flags = "--save_output no --gather_step 15 --max_iter 30"  # the checkpoint of 20 is amid a window
    B = objectives.objective_B

    def objective(x, x_recon, mu, logvar, z, step, *, dist, gamma, C_start, C_max, C_stop_iter, delta):
        flags = dict(
            dist=dist, gamma=gamma, C_start=C_start, C_max=C_max, C_stop_iter=C_stop_iter, delta=delta
        )
        loss, terms = B(x, x_recon, mu, logvar, z, step, **flags)
        return loss, {"extra": loss, **terms} if new else {k: v for k, v in terms.items() if k != "C"}

    runs.run("run", flags)
    before = read_log(runs.outputs("run") / "log.csv")
    monkeypatch.setitem(objectives.OBJECTIVES, "B", objective)
    assert "logged other terms" in runs.run("run", flags, "--ckpt_name previous --overwrite True").stdout
    log = read_log(runs.outputs("run") / "log.csv")
    assert log["iter"] == [15, 30] and ("extra" in log, "C" in log) == (new, new)
    assert log["kld_3"][0] == before["kld_3"][0]
    if new:
        assert math.isnan(log["extra"][0]) and log["extra"][1] > 0
        assert log["C"][1] == pytest.approx(25e-5 * 25.5, rel=1e-4)  # of 21 to 30


def test_each_epoch_is_a_permutation_of_its_own():
    first = epoch_order(1, 0, 1000)
    assert sorted(first.tolist()) == list(range(1000))  # image 0 too
    assert torch.equal(first, epoch_order(1, 0, 1000))
    assert not torch.equal(first, epoch_order(1, 1, 1000))
    assert not torch.equal(first, epoch_order(2, 0, 1000))
