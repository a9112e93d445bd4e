"""What is fast computes the same: layers, precision; and bench.py."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import bench
import model
from helpers import ROOT
from layers import ConvTranspose2d
from run.checkpoint import load_model, read_checkpoint


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


@pytest.mark.parametrize(
    "options", [dict(output_padding=1), dict(dilation=2), dict(groups=2), dict(bias=False)]
)
def test_the_transposed_conv_takes_options_that_no_model_here_uses(options):
    layer, x = ConvTranspose2d(4, 2, 4, 2, 1, **options), torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(x), nn.ConvTranspose2d.forward(layer, x))


def test_a_bf16_step_computes_in_bfloat16_and_has_the_loss_and_gradient_of_a_float32_step(runs):
    """At trained weights: loss within 1 %, an angle between the gradients of less than 8 degrees (cosine 0.99)."""
    losses, gradients, inside = [], [], []
    for precision in ("float32", "bf16"):
        weights = ROOT / "misc" / "dsprites_B.pt"
        solver = runs.solver(precision, "--batch_size 64 --precision", precision, "--init", weights)
        layer = solver.net.decoder[9]
        layer.register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
        solver.noise.manual_seed(1)
        loss, terms = solver.compute_loss(solver.data.batch(torch.arange(32) * 23_039))
        loss.backward()
        tensors = [loss, *filter(torch.is_tensor, terms.values())]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
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


def test_precision_may_change_when_a_run_goes_on_and_a_line_says_so(runs):
    runs.run("run", "--max_iter", 3, "--save_output", False)
    output = runs.run("run", "--precision bf16 --max_iter", 5, "--save_output", False).stdout
    assert "made with precision float32, this is bf16" in output
    assert read_checkpoint(runs.checkpoint("run"))["precision"] == "bf16"


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_line_says_where_bf16_is_slow(runs, monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    output = runs.run("run", "--precision", "bf16", "--max_iter", 1, "--save_output", False).stdout
    assert ("float32 is about ten times as fast" in output) == (capability == "AVX2")


@pytest.mark.slow
def test_main_starts_without_the_libraries_that_only_some_runs_need():
    code = "import main, sys; print(*{name.split('.')[0] for name in sys.modules}, 'torch._dynamo' in sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    needless = "matplotlib pooch requests scipy sklearn torchvision visdom distributed True"
    assert not {*loaded.split()} & {*needless.split()}


# bench.py.


def test_both_loops_of_bench_compute_the_same_step(runs, monkeypatch):
    monkeypatch.setattr(
        model, "reparameterise", lambda mu, logvar, generator: mu
    )  # each has noise of its own
    solver = runs.solver("run", "--lr 1e-9")
    solver.net.load_state_dict(load_model(bench.TRAINED).state_dict())
    next(bench.solver_steps(solver))
    images = solver.data.batch(solver.batches[1])  # one batch: the plain loop shuffles it
    net = next(bench.plain_steps(solver, images))
    assert ConvTranspose2d not in map(type, net.modules())
    for one, other in zip(net.parameters(), solver.net.parameters()):
        bar = 1e-4 * other.grad.abs().max().item()
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=bar)


def test_the_plain_loop_of_bench_keeps_denormal_numbers_and_main_py_flushes_them_in_all_threads():
    def kept():
        torch.set_num_threads(2)
        return int((torch.full((2**20,), 1e-39) * 0.5).count_nonzero())

    threads = torch.get_num_threads()
    counts = {loop: thread.submit(kept).result() for loop, thread in bench.loop_threads().items()}
    torch.set_num_threads(threads)
    assert counts == {"plain": 2**20, "main.py": 0}


def test_bench_gives_medians_over_rounds_and_the_ratio_to_the_plain_burst_beside_each():
    plain, ours = bench.table({"plain": [1.0, 0.5, 0.25], "main.py": [0.5, 0.125, 0.125]})
    assert plain == {"loop": "plain", "it_s": 2, "ratio": 1, "slowest": 1, "fastest": 4}
    assert ours == {"loop": "main.py", "it_s": 8, "ratio": 2, "slowest": 2, "fastest": 8}


@pytest.mark.slow
def test_bench_writes_its_table_and_the_flags_without_folders(dset_dir, tmp_path, capsys):
    flags = f"--model FC --optimizer adagrad --batch_size 8 --threads 1 --warm 1 --rounds 2 --burst 1 --dset_dir {dset_dir}"
    file = tmp_path / "bench.json"
    assert bench.main([*flags.split(), "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    assert [row["loop"] for row in results["rows"]] == ["plain", "main.py"]
    assert results["flags"]["optimizer"] == "adagrad" and str(tmp_path.parent) not in file.read_text()
    output = capsys.readouterr().out
    assert "\nplain " in output and "\nmain.py " in output


def test_bench_names_a_file_that_cannot_be_written_before_it_measures(tmp_path, capsys):
    assert bench.main(["--json", str(tmp_path / "none" / "bench.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
