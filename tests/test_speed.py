"""What is fast computes the same: layers, precision; and bench.py."""

import subprocess
import sys

import pytest
import torch

import bench
import model
from helpers import ROOT
from layers import ConvTranspose2d

WEIGHTS = ROOT / "misc" / "dsprites_B.pt"


def output_and_gradients(layer, x):
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    return [y, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(32, 1, 4, 2, 1), (32, 3, 4, 2, 1), (32, 32, 4, 2, 1), (256, 64, 4, 1, 0)])
def test_the_fast_transposed_conv_equals_torchs_in_output_and_gradients(shape, layout):
    torch.manual_seed(0)
    layer, x = ConvTranspose2d(*shape), torch.randn(64, shape[0], 8, 8).to(memory_format=layout)
    fast, torchs = output_and_gradients(layer, x), output_and_gradients(layer.eval(), x)
    for a, b in zip(fast, torchs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


def test_a_bf16_step_computes_in_bfloat16_and_has_the_loss_and_gradient_of_a_float32_step(runs):
    """At trained weights: loss within 1 %, an angle between the gradients of less than 8 degrees (cosine 0.99)."""
    losses, gradients, inside = [], [], []
    for precision in ("float32", "bf16"):
        solver = runs.solver(precision, "--precision", precision, "--init", WEIGHTS)
        solver.net.decoder[9].register_forward_hook(lambda *call: inside.append(call[-1].dtype))
        solver.noise.manual_seed(1)
        loss, terms = solver.compute_loss(solver.data.batch(torch.arange(32) * 23_039))
        loss.backward()
        assert {each.dtype for each in (loss, *terms.values()) if torch.is_tensor(each)} == {torch.float32}
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in solver.net.parameters()]))
    assert inside == [torch.float32, torch.bfloat16]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_in_bf16_the_layers_around_z_compute_in_float32():
    """Or mu and z would be rounded by as much as half a standard deviation of q(z|x)."""
    net, inside = model.BetaVAE_B(), []
    for layer in (net.encoder[-1], net.decoder[0]):
        layer.register_forward_hook(lambda module, inputs, output: inside.extend([inputs[0], output]))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(torch.rand(2, 1, 64, 64))
    assert [each.dtype for each in (*inside, *outputs)] == [torch.float32] * 8


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_line_says_where_bf16_is_slow(runs, monkeypatch, has_bf16):
    monkeypatch.setattr("run.folder.has_bf16", lambda: has_bf16)
    runs.run("run", "--max_iter", 1, "--save_output", False)
    output = runs.run("run", "--precision bf16 --max_iter", 2, "--save_output", False).stdout
    assert ("only emulates bf16" in output) != has_bf16
    assert "resumed" in output  # it may change in a run


@pytest.mark.slow
def test_main_starts_without_the_libraries_that_only_some_runs_need():
    code = "import main, sys; print(*{name.split('.')[0] for name in sys.modules}, 'torch._dynamo' in sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    needless = "matplotlib pooch requests scipy sklearn torchvision visdom distributed True"
    assert not {*loaded.split()} & {*needless.split()}


def test_both_loops_of_bench_compute_the_same_step(runs, monkeypatch):
    # Without noise, of which each would draw its own.
    monkeypatch.setattr(model, "reparameterise", lambda mu, logvar, generator: mu)
    solver = runs.solver("run", "--lr 1e-9 --init", WEIGHTS)
    next(bench.solver_steps(solver))
    images = solver.data.batch(solver.batches[1])  # one batch: the plain loop shuffles it
    net = next(bench.plain_steps(solver, images))
    assert ConvTranspose2d not in map(type, net.modules())
    for one, other in zip(net.parameters(), solver.net.parameters()):
        bar = 1e-4 * other.grad.abs().max().item()
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=bar)


def test_bench_gives_medians_over_rounds_and_the_ratio_to_the_plain_burst_beside_each(
    dset_dir, tmp_path, monkeypatch, capsys
):
    seconds = iter([1.0, 0.5, 0.5, 0.125, 0.25, 0.125])  # plain, main.py, plain ..
    monkeypatch.setattr(bench, "seconds_per_step", lambda steps, *rest: next(steps) and None or next(seconds))
    monkeypatch.chdir(tmp_path)
    assert bench.main(f"--batch_size 8 --threads 1 --rounds 3 --dset_dir {dset_dir}".split()) == 0
    plain, ours = capsys.readouterr().out.splitlines()[-2:]
    assert plain.split() == ["plain", "2.0", "(", "1.0", "..", "4.0)", "1.00"]
    assert ours.split() == ["main.py", "8.0", "(", "2.0", "..", "8.0)", "2.00"]
    assert list(tmp_path.iterdir()) == []  # it leaves no folders
