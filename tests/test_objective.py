"""The losses against torch.distributions and the papers' words, as functions of each flag; and the steps that take them."""

import copy
import math
from functools import wraps
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as torch_kl

import model
import objectives
import training.settings
from dataset import epoch_order
from objectives import reconstruction_loss
from optimizers import Muon
from run.log import read_log
from utils import stream_seed

# The loss of a step as a function of each flag.


def step_loss(runs, flags, step=50):
    """The loss of a step at fresh weights and what it logs; and by hand: reconstruction losses, KL, total correlation."""
    solver = runs.solver("step", "--save_output False --batch_size 4 --C_stop_iter 100", flags)
    solver.iter, objective, seen = step, solver.objective, SimpleNamespace()

    def watched(x, x_recon, mu, logvar, z, step):
        vars(seen).update(x=x, x_recon=x_recon, mu=mu, logvar=logvar, z=z)
        return objective(x, x_recon, mu, logvar, z, step)

    solver.objective = watched
    with torch.no_grad():
        solver.net.encoder[-1].weight[:10] *= 8  # apart, or the total correlation would hardly count
        loss, seen.terms = solver.compute_loss(solver.data.batch(torch.arange(4) * 100_000))
    solver.folder.release()
    seen.loss, seen.kld = loss.item(), torch_kl(q(seen.mu, seen.logvar), Normal(0, 1)).mean(dim=0)
    seen.kl = seen.kld.sum().item()
    seen.bernoulli = -Bernoulli(logits=seen.x_recon).log_prob(seen.x).sum().item() / 4
    seen.gaussian = (torch.sigmoid(seen.x_recon) - seen.x).square().sum().item() / 4
    log_q = q(seen.mu[None], seen.logvar[None]).log_prob(seen.z[:, None])  # B of z, B of q, z_dim
    mixture = log_q.sum(dim=2).exp().mean(dim=1).log()
    seen.tc = (mixture - log_q.exp().mean(dim=1).log().sum(dim=1)).mean().item()
    return seen


def q(mu, logvar):
    return Normal(mu, (logvar / 2).exp())


def smoothed(distance, delta):
    return math.sqrt(distance**2 + delta**2) - delta


B_TC = (
    "--objective B_TC --gamma 10 --C_stop_iter 20 --weak_iters 10 --rise_iters 40 --kl_weight 0.25 --beta 5"
)
OTHERS = f"{B_TC} --dist gaussian --gamma 3 --C_max 8 --C_start 2 --delta 2"


def without_C(weight):
    """The loss after C_stop_iter, when the weight of the total correlation has risen to this."""
    return lambda s: s.bernoulli + 0.25 * s.kl + (weight - 0.25) * s.tc


@pytest.mark.parametrize(
    "flags, step, expected, C",
    [
        ("--objective H --beta 4", 50, lambda s: s.bernoulli + 4 * s.kl, None),
        ("--objective H --beta 0", 50, lambda s: s.bernoulli, None),
        ("--objective H --beta 3 --dist gaussian", 50, lambda s: s.gaussian + 3 * s.kl, None),
        ("--gamma 1000 --C_max 25", 50, lambda s: s.bernoulli + 1000 * abs(s.kl - 12.5), 12.5),
        ("--gamma 10 --C_max 25", 100, lambda s: s.bernoulli + 10 * abs(s.kl - 25), 25),
        ("--gamma 10 --C_max 5 --C_start 10", 20, lambda s: s.bernoulli + 10 * abs(s.kl - 9), 9),
        ("--gamma 10 --C_max 25 --C_stop_iter 10", 50, lambda s: s.bernoulli + 10 * abs(s.kl - 25), 25),
        ("--gamma 10 --delta 2 --dist gaussian", 50, lambda s: s.gaussian + 10 * smoothed(s.kl - 12.5, 2), 12.5),
        ("--objective TC --beta 1", 50, lambda s: s.bernoulli + s.kl, None),
        ("--objective TC --beta 6", 50, lambda s: s.bernoulli + s.kl + 5 * s.tc, None),
        (f"{B_TC} --C_max 8", 10, lambda s: s.bernoulli + 10 * abs(s.kl - 4) + 5 * s.tc, 4),
        (B_TC, 21, without_C(0.25), math.nan),
        (B_TC, 30, without_C(0.25), math.nan),
        (B_TC, 50, without_C(2.625), math.nan),
        (B_TC, 70, without_C(5), math.nan),
        (B_TC, 99, without_C(5), math.nan),
        (OTHERS, 10, lambda s: s.gaussian + 3 * smoothed(s.kl - 5, 2) + 5 * s.tc, 5),
        (OTHERS, 50, lambda s: s.gaussian + 0.25 * s.kl + 2.375 * s.tc, math.nan),
    ],
)  # fmt: skip
def test_the_loss_is_that_of_the_papers_with_every_flag(runs, flags, step, expected, C):
    seen = step_loss(runs, flags, step)
    assert seen.tc > 0.5 and seen.loss == pytest.approx(expected(seen), rel=1e-5)
    assert seen.terms.get("C") == (C if C is None else pytest.approx(C, nan_ok=True))


def test_a_step_logs_each_term_under_its_name(runs):
    seen = step_loss(runs, "--dist gaussian")
    scalars = {name: float(seen.terms[name]) for name in ("recon_loss", "total_kld", "mean_kld", "C")}
    by_hand = dict(recon_loss=seen.gaussian, total_kld=seen.kl, mean_kld=seen.kl / 10, C=12.5)
    assert scalars == pytest.approx(by_hand, rel=1e-5)
    torch.testing.assert_close(seen.terms["mu"], seen.mu.mean(dim=0))
    torch.testing.assert_close(seen.terms["var"], seen.logvar.exp().mean(dim=0))
    torch.testing.assert_close(seen.terms["kld"], seen.kld)


# Steps.


def test_each_step_takes_the_learning_rate_of_its_iteration_which_falls_with_a_cosine_to_a_hundredth(runs):
    solver = runs.solver("run", "--batch_size 2 --lr 1e-3 --lr_start_iter 10 --lr_stop_iter 30")
    for step, rate in ((5, 1e-3), (10, 1e-3), (20, 0.505e-3), (30, 1e-5), (99, 1e-5)):
        solver.iter = step
        solver.training_step(solver.data.batch(torch.arange(2)))
        assert solver.optim.param_groups[0]["lr"] == pytest.approx(rate)


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
    for one, other in zip(solver.net.parameters(), net.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_each_epoch_is_a_permutation_of_its_own_whose_last_partial_batch_is_left_out(runs):
    orders = [epoch_order(seed, epoch, 1000).tolist() for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert all(sorted(order) == list(range(1000)) for order in orders)  # image 0 too
    assert orders[0] == orders[1] and orders[0] not in orders[2:]
    solver = runs.solver("run", "--batch_size 500000")
    solver.iter = 2
    assert torch.equal(solver.batches[solver.iter], epoch_order(1, 1, len(solver.data))[:500_000])


def test_weights_order_of_the_images_and_noise_each_follow_the_seed(runs):
    drawn = []
    for name, seed in (("one", 2), ("same", 2), ("other", 3)):
        solver = runs.solver(name, "--seed", seed)
        solver.iter, noise = 1, torch.randn(9, generator=solver.noise)
        drawn.append([solver.net.encoder[0].weight, solver.batches[solver.iter], noise])
    assert all(map(torch.equal, drawn[0], drawn[1]))
    assert not any(map(torch.equal, drawn[0], drawn[2]))


def test_the_optimiser_takes_each_of_its_flags(runs):
    group = runs.solver("adam", "--lr 0.25 --beta1 0.5 --beta2 0.75").optim.param_groups[0]
    assert (group["lr"], *group["betas"]) == (0.25, 0.5, 0.75)
    adagrad = runs.solver("adagrad", "--optimizer adagrad --lr 0.25").optim
    assert isinstance(adagrad, torch.optim.Adagrad) and adagrad.param_groups[0]["lr"] == 0.25
    muon = runs.solver("muon", "--optimizer muon --lr 0.25 --beta1 0.5 --beta2 0.75").optim
    group = muon.param_groups[0]
    assert isinstance(muon, Muon) and (group["lr"], *group["betas"]) == (0.25, 0.5, 0.75)


def test_muon_moves_linear_layers_as_that_of_torch_convolutions_as_their_matrices_and_biases_as_adam():
    layers = [[torch.nn.Linear(6, 4), torch.nn.Linear(4, 6), torch.nn.Conv2d(2, 4, 3)] for _ in range(2)]
    for one, other in zip(*layers):
        other.load_state_dict(one.state_dict())
    ours, theirs = ([p for layer in of for p in layer.parameters()] for of in layers)
    matrices = [torch.nn.Parameter(p.detach().clone().flatten(1)) for p in theirs if p.ndim > 1]
    biases = [p for p in theirs if p.ndim == 1]
    muon = Muon(ours, 0.01, (0.8, 0.9))
    reference = torch.optim.Muon(matrices, 0.01, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam(biases, 0.01, (0.8, 0.9))
    for _ in range(3):
        gradients = [torch.randn_like(p) for p in ours]
        for p, gradient in zip(ours, gradients):
            p.grad = gradient
        for of, wanted in ((matrices, lambda g: g.ndim > 1), (biases, lambda g: g.ndim == 1)):
            for p, gradient in zip(of, filter(wanted, gradients)):
                p.grad = gradient.flatten(1) if p.ndim > 1 else gradient
        for optimizer in (muon, reference, adam):
            optimizer.step()
    for p, matrix in zip((p for p in ours if p.ndim > 1), matrices):
        torch.testing.assert_close(p.flatten(1), matrix, atol=1e-3, rtol=0)  # that of torch computes in bf16
    for p, bias in zip((p for p in ours if p.ndim == 1), biases):
        torch.testing.assert_close(p, bias)


def test_muon_leaves_weights_without_a_gradient_as_they_are_and_such_a_run_resumes(runs, monkeypatch):
    build = model.BetaVAE_B.__init__

    def frozen_decoder(self, *sizes):
        build(self, *sizes)
        self.decoder.requires_grad_(False)

    monkeypatch.setattr(model.BetaVAE_B, "__init__", frozen_decoder)
    for optimizer in ("muon", "adam"):
        for max_iter in (3, 5):
            runs.run(optimizer, f"--optimizer {optimizer} --save_output no --max_iter {max_iter}")
        solver = runs.solver(optimizer, f"--optimizer {optimizer} --max_iter 6")
        args, after = solver.args, solver.net.state_dict()
        fresh = model.build_net(args.model, args.z_dim, 1, stream_seed(args.seed, "model")).state_dict()
        assert solver.iter == 5
        assert {name for name in fresh if torch.equal(after[name], fresh[name])} == {
            name for name in fresh if name.startswith("decoder")
        }


def test_a_checkpoint_of_muon_that_does_not_count_its_steps_is_refused_in_one_line(runs):
    runs.run("run", "--optimizer muon --save_output no --max_iter 2")
    path = runs.checkpoint("run")
    state = torch.load(path, weights_only=True)
    for each in state["optim_states"]["optim"]["state"].values():
        if "count" in each:
            each["step"] = int(each.pop("count"))  # as before commit bcf06ea
    torch.save(state, path)
    assert "does not fit" in runs.refused("run", "--optimizer muon --max_iter 4")


# Objectives of one's own.


def test_an_objective_that_is_added_to_the_table_trains_logs_its_terms_and_resumes(runs, monkeypatch):
    def objective_L2(x, x_recon, mu, logvar, z, step, *, dist, gamma):
        recon_loss = reconstruction_loss(x, x_recon, dist)
        norm = z.square().sum(dim=1).mean()
        return recon_loss + gamma * norm, {"recon_loss": recon_loss, "norm": norm, "z": z.mean(dim=0)}

    monkeypatch.setitem(objectives.OBJECTIVES, "L2", objective_L2)
    monkeypatch.setitem(training.settings.FLAGS_OF, "L2", objectives.flags_of(objective_L2))
    monkeypatch.setitem(training.settings.CHOICES, "objective", list(objectives.OBJECTIVES))
    for max_iter in (12, 20):
        runs.run("run", f"--objective L2 --gamma 3 --save_output no --max_iter {max_iter}")
    log = read_log(runs.outputs("run") / "log.csv")
    assert list(log)[:4] == ["iter", "recon_loss", "norm", "z_0"] and len(log["norm"]) == 4
    assert "gamma 3.0 (now 4.0)" in runs.refused("run", "--objective L2 --gamma 4")


def test_a_checkpoint_that_logged_other_terms_goes_on_and_the_log_has_the_new_columns(runs, monkeypatch):
    flags = "--save_output no --gather_step 15 --max_iter 30"  # the checkpoint of 20 is amid a window
    B = objectives.objective_B

    @wraps(B)
    def objective(*batch, **flags):
        loss, terms = B(*batch, **flags)
        del terms["C"]
        return loss, {"extra": loss, **terms}

    runs.run("run", flags)
    before = read_log(runs.outputs("run") / "log.csv")
    monkeypatch.setitem(objectives.OBJECTIVES, "B", objective)
    assert "logged other terms" in runs.run("run", flags, "--ckpt_name previous --overwrite True").stdout
    log = read_log(runs.outputs("run") / "log.csv")
    assert log["iter"] == [15, 30] and "C" not in log and log["kld_3"][0] == before["kld_3"][0]
    assert math.isnan(log["extra"][0])
    assert log["extra"][1] == pytest.approx(
        log["recon_loss"][1], rel=0.1
    )  # of 21 to 30, a window that starts anew
