"""Muon is torch's, to the bit; the flags reach each optimiser, and a run resumes with it."""

import pytest
import torch

import model
from optimizers import OPTIMIZERS, Muon, orthogonalise
from run.checkpoint import read_checkpoint


def steps(optimizer, parameters, n=4, scale=1.0):
    """Take n steps with seeded gradients, the same for matrices and for kernels that flatten to them."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(n):
        for p in parameters:
            p.grad = scale * torch.randn(p.shape, generator=generator)
        optimizer.step()


def weights(*shapes):
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_muon_in_bf16_moves_the_weight_of_a_linear_layer_as_torchs_muon_to_the_bit(shape):
    ours, theirs = weights(shape), weights(shape)
    steps(Muon(ours, 0.01, dtype=torch.bfloat16), ours)
    options = dict(momentum=0.95, nesterov=True, ns_steps=5, ns_coefficients=(3.4445, -4.775, 2.0315))
    steps(torch.optim.Muon(theirs, 0.01, 0, adjust_lr_fn="match_rms_adamw", **options), theirs)
    assert torch.equal(ours[0], theirs[0])


def test_muon_moves_a_convolutions_weight_as_the_matrix_of_its_rows():
    kernel, matrix = weights((8, 4, 3, 3), (8, 36))
    kernel.data = matrix.data.clone().view(8, 4, 3, 3)
    for p in ([kernel], [matrix]):
        steps(Muon(p, 0.01), p)
    assert torch.equal(kernel.flatten(1), matrix)


@pytest.mark.parametrize("dtype, rounding", [(torch.float32, (0, 1e-5)), (torch.bfloat16, (1e-3, 0.05))])
def test_orthogonalised_matrices_keep_their_singular_vectors_as_exactly_as_dtype_and_values_become_about_1(
    dtype, rounding
):
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    u, _, vT = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ orthogonalise(matrices.float(), dtype).double() @ vT.mT  # 3, 24, 24
    values = inside.diagonal(dim1=1, dim2=2)
    assert 0.65 < values.min() and values.max() < 1.25
    assert rounding[0] <= (inside - values.diag_embed()).abs().max() < rounding[1]


def test_the_optimiser_takes_each_of_its_flags(runs):
    (adam,) = runs.solver("adam", "--beta1 0.5 --beta2 0.75").optims.values()
    muon, others = runs.solver("muon", "--optimizer muon --beta1 0.5 --beta2 0.75").optims.values()
    in_bf16 = runs.solver("bf16", "--optimizer muon --precision bf16").optims["optim"]
    assert adam.param_groups[0]["betas"] == others.param_groups[0]["betas"] == (0.5, 0.75)
    assert (muon.dtype, in_bf16.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("network", model.MODELS)
def test_muon_moves_the_weights_of_hidden_layers_and_adam_the_rest(network):
    net = model.build_net(network, 10, 1, seed=1)
    named = {id(p): name for name, p in net.named_parameters()}
    optims = OPTIMIZERS["muon"](net, beta1=0.9, beta2=0.999, precision="float32").values()
    muon, adam = ({named[id(p)] for p in optim.param_groups[0]["params"]} for optim in optims)
    weights = [name for name in named.values() if name.endswith("weight")]
    assert muon == set(weights[1:-1]) and adam == set(named.values()) - muon


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_weights_without_a_gradient_stay_as_they_are_and_such_a_run_resumes(runs, monkeypatch, optimizer):
    build = model.BetaVAE_B.__init__

    def frozen_decoder(self, *sizes):
        build(self, *sizes)
        self.decoder.requires_grad_(False)

    monkeypatch.setattr(model.BetaVAE_B, "__init__", frozen_decoder)
    flags = f"--optimizer {optimizer} --save_output no --max_iter"
    before = runs.solver("fresh", flags, 3).net.state_dict()
    runs.run("run", flags, 3)
    assert "resumed at iteration 3" in runs.run("run", flags, 5).stdout
    after = read_checkpoint(runs.checkpoint("run"))["model_states"]["net"]
    kept = {name for name in before if torch.equal(after[name], before[name])}
    assert kept == {name for name in before if name.startswith("decoder")}


def test_flags_of_the_optimiser_that_belong_to_a_device_are_not_taken_from_a_checkpoint(runs):
    runs.run("run", "--max_iter", 3, "--save_output", False)
    state = read_checkpoint(runs.checkpoint("run"))
    state["optim_states"]["optim"]["param_groups"][0].update(fused=False, capturable=True, foreach=True)
    torch.save(state, runs.checkpoint("run"))
    runs.run("run", "--max_iter", 4, "--save_output", False)
    group = read_checkpoint(runs.checkpoint("run"))["optim_states"]["optim"]["param_groups"][0]
    assert (group["fused"], group["capturable"], group["foreach"]) == (True, False, None)
