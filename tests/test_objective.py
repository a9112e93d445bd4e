"""The losses and their gradients against torch.distributions and the papers' words; the steps that take them."""

import copy
from functools import wraps
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as torch_kl

import main
import objectives
from dataset import epoch_order
from objectives import reconstruction_loss
from run.log import read_log
from utils import UserError, bind, stream_seed


def q(mu, logvar):
    return Normal(mu, (logvar / 2).exp())


def batch_of_four():
    """A batch with posteriors that lie apart, float64, and by hand: reconstruction losses, KL, total correlation."""
    torch.manual_seed(0)
    s = SimpleNamespace(x=torch.rand(4, 1, 8, 8, dtype=torch.float64))
    s.x_recon = torch.randn_like(s.x).requires_grad_()
    s.mu, s.logvar, noise = torch.randn(3, 4, 5, dtype=torch.float64).unbind()
    s.mu, s.logvar = 2 * s.mu, s.logvar - 1
    s.z = s.mu + (s.logvar / 2).exp() * noise
    s.leaves = [s.x_recon, *(leaf.requires_grad_() for leaf in (s.mu, s.logvar, s.z))]
    s.bernoulli = -Bernoulli(logits=s.x_recon, validate_args=False).log_prob(s.x).sum() / 4
    s.gaussian = (torch.sigmoid(s.x_recon) - s.x).square().sum() / 4
    s.kld = torch_kl(q(s.mu, s.logvar), Normal(0, 1)).mean(dim=0)  # z_dim
    s.kl = s.kld.sum()
    log_q = q(s.mu[None], s.logvar[None]).log_prob(s.z[:, None])  # B of z, B of q, z_dim
    mixture = log_q.sum(dim=2).exp().mean(dim=1).log()
    s.tc = (mixture - log_q.exp().mean(dim=1).log().sum(dim=1)).mean()
    return s


def smoothed(distance, delta):
    return (distance**2 + delta**2).sqrt() - delta


B = "--objective B --C_stop_iter 100"
FALLING = "--kl_weight 0:2,100:1,200:1"


@pytest.mark.parametrize(
    "flags, step, expected, C",
    [
        ("--objective H --beta 4", 50, lambda s: s.bernoulli + 4 * s.kl, None),
        ("--objective H --beta 3 --dist gaussian", 50, lambda s: s.gaussian + 3 * s.kl, None),
        (f"{B} --gamma 1000 --C_max 25", 50, lambda s: s.bernoulli + 1000 * abs(s.kl - 12.5), 12.5),
        (f"{B} --gamma 10 --C_max 2", 99, lambda s: s.bernoulli + 10 * abs(s.kl - 1.98), 1.98),
        (f"{B} --gamma 10 --C_max 25", 100, lambda s: s.bernoulli + 10 * abs(s.kl - 25), 25),
        (f"{B} --gamma 10 --C_max 25", 300, lambda s: s.bernoulli + 10 * abs(s.kl - 25), 25),
        (f"{B} --gamma 10 --delta 2", 50, lambda s: s.bernoulli + 10 * smoothed(s.kl - 12.5, 2), 12.5),
        (f"{B} --gamma 3 --C_max 8 --delta 2 --dist gaussian", 50, lambda s: s.gaussian + 3 * smoothed(s.kl - 4, 2), 4),
        (f"--objective TC --beta 3 {FALLING}", 50, lambda s: s.bernoulli + 1.5 * s.kl + 3 * s.tc, None),
        (f"--objective TC --beta 3 {FALLING}", 999, lambda s: s.bernoulli + s.kl + 2 * s.tc, None),
        ("--objective TC --beta 1", 50, lambda s: s.bernoulli + s.kl, None),
        ("--objective TC --beta 6", 50, lambda s: s.bernoulli + s.kl + 5 * s.tc, None),
    ],
)  # fmt: skip
def test_loss_and_gradients_are_those_of_the_papers_with_every_flag(flags, step, expected, C):
    s, args = batch_of_four(), main.parse(flags.split())
    loss, terms = bind(objectives.OBJECTIVES[args.objective], args)(s.x, *s.leaves, step)
    by_hand = expected(s)
    assert s.tc > 0.5 and torch.allclose(loss, by_hand)
    options = dict(retain_graph=True, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(
        torch.autograd.grad(loss, s.leaves, **options), torch.autograd.grad(by_hand, s.leaves, **options)
    )
    recon = s.gaussian if args.dist == "gaussian" else s.bernoulli
    logged = dict(recon_loss=recon, total_kld=s.kl, mean_kld=s.kl / 5, kld=s.kld)
    torch.testing.assert_close({name: terms[name] for name in logged}, logged)
    assert terms.get("C") == (C if C is None else pytest.approx(C))


# Steps.


def test_each_step_takes_the_learning_rate_of_its_iteration_linear_between_the_points_of_the_schedule(runs):
    solver = runs.solver("run", "--batch_size 2 --lr 10:1e-3,30:1e-5")
    for step, rate in ((5, 1e-3), (10, 1e-3), (20, 0.505e-3), (30, 1e-5), (99, 1e-5)):
        solver.iter = step
        solver.training_step(solver.data.batch(torch.arange(2)))
        assert solver.optims["optim"].param_groups[0]["lr"] == pytest.approx(rate)


def test_three_steps_are_those_of_the_loop_that_people_write(runs):
    solver = runs.solver("run", "--batch_size 2 --gamma 10 --C_stop_iter 2 --lr 1e-3")
    net, noise = copy.deepcopy(solver.net), torch.Generator().manual_seed(stream_seed(1, "noise"))
    adam, order = torch.optim.Adam(net.parameters(), lr=1e-3), epoch_order(1, 0, len(solver.data))
    for step, C in ((1, 12.5), (2, 25), (3, 25)):
        solver.iter = step
        solver.training_step(solver.data.batch(solver.batches[solver.iter]))
        x = solver.data.batch(order[2 * step - 2 : 2 * step])
        mu, logvar = net.encode(x)
        z = mu + (logvar / 2).exp() * torch.randn(2, 10, generator=noise)
        kl = torch_kl(q(mu, logvar), Normal(0, 1)).sum() / 2
        loss = -Bernoulli(logits=net.decode(z)).log_prob(x).sum() / 2 + 10 * (kl - C).abs()
        adam.zero_grad()
        loss.backward()
        adam.step()
    means = solver.window.means()  # of the three steps
    assert {"mu_0", "var_9", "kld_9"} <= means.keys() and means["C"] == pytest.approx(62.5 / 3)
    for one, other in zip(solver.net.parameters(), net.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_each_epoch_is_a_permutation_of_its_own_whose_last_partial_batch_is_left_out(runs):
    orders = {each: epoch_order(*each, 1000).tolist() for each in product((1, 2, 3), (0, 1, 2))}
    assert all(sorted(order) == list(range(1000)) for order in orders.values())  # image 0 too
    assert len(set(map(tuple, orders.values()))) == 9  # no seed has the epochs of another
    assert epoch_order(1, 0, 1000).tolist() == orders[1, 0]
    solver = runs.solver("run", "--batch_size 500000")
    assert torch.equal(solver.batches[2], epoch_order(1, 1, len(solver.data))[:500_000])


def test_each_stream_of_random_numbers_has_a_seed_of_its_own():
    streams = list(product((0, 1, 2), ("model", "noise", "pictures"), (0, 1, 50_000)))
    assert len({stream_seed(*stream) for stream in streams}) == len(streams)


def test_weights_order_of_the_images_and_noise_each_follow_the_seed(runs):
    drawn = []
    for name, seed in (("one", 2), ("same", 2), ("other", 3)):
        solver = runs.solver(name, "--seed", seed)
        noise = torch.randn(9, generator=solver.noise)
        drawn.append([solver.net.encoder[0].weight, solver.batches[1], noise])
    assert all(map(torch.equal, drawn[0], drawn[1]))
    assert not any(map(torch.equal, drawn[0], drawn[2]))


# Objectives of one's own.


def test_keyword_arguments_come_from_flags_and_one_without_a_flag_keeps_its_default_or_is_named():
    def mine(x, *, beta, gamma=0.5, own=5):
        return x, beta, gamma, own

    args = main.parse("--beta 3 --gamma 2".split())
    assert bind(mine, args)(1) == (1, 3, 2, 5)
    mine.__kwdefaults__.pop("own")
    with pytest.raises(UserError, match="mine needs the flag --own"):
        bind(mine, args)


def test_an_objective_that_is_added_to_the_table_trains_logs_its_terms_and_resumes(runs, monkeypatch):
    def objective_L2(x, x_recon, mu, logvar, z, step, *, dist, gamma):
        recon_loss = reconstruction_loss(x, x_recon, dist)
        norm = z.square().sum(dim=1).mean()
        return recon_loss + gamma * norm, {"recon_loss": recon_loss, "norm": norm, "z": z.mean(dim=0)}

    monkeypatch.setitem(objectives.OBJECTIVES, "L2", objective_L2)
    for max_iter in (12, 20):
        runs.run("run", f"--objective L2 --gamma 3 --save_output no --max_iter {max_iter}")
    log = read_log(runs.outputs("run") / "log.csv")
    assert list(log)[:4] == ["iter", "recon_loss", "norm", "z_0"] and len(log["norm"]) == 4
    assert "gamma 3.0 (now 4.0)" in runs.refused("run", "--objective L2 --gamma 4")


def test_a_run_that_begins_to_log_other_terms_is_refused(runs, monkeypatch):
    @wraps(objective_B := objectives.objective_B)
    def objective(*batch, **flags):
        loss, terms = objective_B(*batch, **flags)
        del terms["C"]
        return loss, {"extra": loss, **terms}

    runs.run("run", "--save_output no --max_iter 20")
    before = (runs.outputs("run") / "log.csv").read_bytes()
    monkeypatch.setitem(objectives.OBJECTIVES, "B", objective)
    assert "log.csv has other columns" in runs.refused("run", "--save_output no --max_iter 30")
    assert (runs.outputs("run") / "log.csv").read_bytes() == before
