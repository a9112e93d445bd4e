"""What is fast computes the same: layers, precision; and bench.py."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import bench
from helpers import ROOT
from layers import ConvTranspose2d
from run.checkpoint import read_checkpoint


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(32, 1, 4, 2, 1), (32, 3, 4, 2, 1), (32, 32, 4, 2, 1), (256, 64, 4, 1, 0)])
def test_the_fast_transposed_conv_equals_torchs_in_output_and_gradients(shape, layout):
    torch.manual_seed(0)
    fast, plain = ConvTranspose2d(*shape), nn.ConvTranspose2d(*shape)
    plain.load_state_dict(fast.state_dict())
    x, results = torch.randn(64, shape[0], 8, 8).to(memory_format=layout), []
    for layer in (fast, plain):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.square().sum().backward()
        results.append([y, leaf.grad, layer.weight.grad, layer.bias.grad])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize(
    "options", [dict(output_padding=1), dict(dilation=2), dict(groups=4), dict(bias=False)]
)
def test_the_transposed_conv_takes_torchs_own_way_with_options_that_no_model_here_uses(options):
    layer, x = ConvTranspose2d(4, 4, 3, 2, 1, **options), torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(x), nn.ConvTranspose2d.forward(layer, x))


def test_a_bf16_step_computes_in_bfloat16_and_has_the_loss_and_gradient_of_a_float32_step(runs):
    """At trained weights: loss within 1 %, an angle between the gradients of less than 8 degrees (cosine 0.99)."""
    losses, gradients, inside = [], [], []
    for precision in ("float32", "bf16"):
        weights = ROOT / "misc" / "dsprites_B.pt"
        solver = runs.solver(precision, "--train False --precision", precision, "--ckpt_name", weights)
        layer = solver.net.decoder[9]
        layer.register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
        solver.noise.manual_seed(1)
        loss, terms = solver.compute_loss(solver.data.batch(torch.arange(32) * 23_039))
        loss.backward()
        assert {loss.dtype, *(term.dtype for term in terms.values() if torch.is_tensor(term))} == {
            torch.float32
        }
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in solver.net.parameters()]))
    assert inside == [torch.float32, torch.bfloat16]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_in_bf16_the_layers_around_z_compute_in_float32(runs):
    """Or mu and z would be rounded by as much as half a standard deviation of q(z|x)."""
    net, inside = runs.solver("run").net, []
    for layer in (net.encoder[-1], net.decoder[0]):
        layer.register_forward_hook(
            lambda module, inputs, output: inside.extend([inputs[0].dtype, output.dtype])
        )
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.rand(2, 1, 64, 64))
    assert inside == [torch.float32] * 4


def test_precision_may_change_when_a_run_goes_on_and_a_line_says_so(runs):
    runs.run("run", "--max_iter", 20, "--save_output", False)
    output = runs.run("run", "--precision", "bf16", "--save_output", False).stdout
    assert "made with precision float32, this is bf16" in output
    assert read_checkpoint(runs.checkpoint("run"))["precision"] == "bf16"
    assert json.loads((runs.outputs("run") / "args.json").read_text())["precision"] == "bf16"


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_line_says_where_bf16_is_slow(runs, monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    output = runs.run("run", "--precision", "bf16", "--max_iter", 1, "--save_output", False).stdout
    assert ("float32 is about ten times as fast" in output) == (capability == "AVX2")


def test_flags_of_the_optimiser_that_belong_to_a_device_are_not_taken_from_a_checkpoint(runs):
    runs.run("run", "--max_iter", 20, "--save_output", False)
    state = read_checkpoint(runs.checkpoint("run"))
    state["optim_states"]["optim"]["param_groups"][0].update(fused=False, capturable=True, foreach=True)
    torch.save(state, runs.checkpoint("run"))
    runs.run("run", "--max_iter", 21, "--save_output", False)
    group = read_checkpoint(runs.checkpoint("run"))["optim_states"]["optim"]["param_groups"][0]
    assert (group["fused"], group["capturable"], group["foreach"]) == (True, False, None)


@pytest.mark.slow
def test_main_starts_without_the_libraries_that_only_some_runs_need():
    """They would double the seconds that --help takes."""
    code = "import main, sys; print(*{name.split('.')[0] for name in sys.modules}, 'torch._dynamo' in sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    needless = "matplotlib pooch requests scipy sklearn torchvision visdom distributed True"
    assert not {*loaded.split()} & {*needless.split()}


# bench.py.


@pytest.fixture
def tiny(dset_dir, tmp_path):
    """Flags of a small measurement."""
    flags = f"--batch_size 8 --threads 2 --rounds 1 --burst 1 --json {tmp_path}/bench.json"
    return ["--dset_dir", str(dset_dir), *flags.split()]


def test_both_loops_of_bench_compute_the_same_step(runs, tiny):
    args = bench.parse([*runs.command("run"), *tiny], bench.bench_parser())
    solver = bench.Solver(args)
    with solver.folder:
        weights = bench.all_weights(solver, None)
        plain = bench.Plain(solver, images=64)
    layers = [{type(layer) for layer in trainer.net.decoder} for trainer in (solver, plain)]
    assert ConvTranspose2d in layers[0] - layers[1] and nn.ConvTranspose2d in layers[1] - layers[0]
    for state in ("fresh", "trained"):
        gradients = []
        for trainer in (solver, plain):
            trainer.net.load_state_dict(weights[state])
            trainer.noise, trainer.iter = torch.Generator().manual_seed(1), args.C_stop_iter
            trainer.training_step(solver.data.batch(torch.arange(8) * 90_000))
            gradients.append([p.grad for p in trainer.net.parameters()])
        for a, b in zip(*gradients):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


def test_the_plain_loop_of_bench_keeps_denormal_numbers_and_the_solver_flushes_them_in_all_threads():
    def kept():
        torch.set_num_threads(2)
        return int((torch.full((2**20,), 1e-39) * 0.5).count_nonzero())

    threads = torch.get_num_threads()
    counts = {loop: thread.submit(kept).result() for loop, thread in bench.computing_threads().items()}
    torch.set_num_threads(threads)
    assert counts == {"plain": 2**20, "Solver": 0}


@pytest.mark.slow
def test_bench_measures_both_loops_at_fresh_and_trained_weights(tiny, tmp_path, capsys):
    assert bench.main([*tiny, *"--model FC --optimizer adagrad --warm 2".split()]) == 0
    figures = json.loads((tmp_path / "bench.json").read_text())
    rows = {(row["weights"], row["loop"]) for row in figures["rows"]}
    assert rows == {(state, loop) for state in ("fresh", "trained") for loop in ("plain", "Solver")}
    # 3 x 14.2 M multiply-adds an image, less the gradient of the first layer's input
    assert figures["gflop"] == pytest.approx(8 * 2e-9 * (3 * 14_186_400 - 4096 * 1200), rel=1e-6)
    assert 0.1 < figures["peak_gb"] < 100
    output = capsys.readouterr().out
    assert all(f"\n{weights:8} {loop}" in output for weights, loop in rows)


def test_figures_of_bench_are_medians_and_shares_of_the_product_in_the_loops_own_precision():
    times = {("fresh", "plain"): [1.0, 0.5, 0.25], ("fresh", "Solver"): [0.5, 0.125, 0.125]}
    plain, solver = bench.figures(times, {"float32": [100, 90, 20], "bf16": [400]}, 9.0, "bf16")["rows"]
    assert (plain["it_s"], plain["slowest"], plain["fastest"], plain["ratio"]) == (2, 1, 4, 1)
    assert (solver["it_s"], solver["ratio"], solver["gflop_s"]) == (8, 2, 72)
    assert (plain["share"], solver["share"]) == (18 / 90, 72 / 400)


def test_bench_names_a_file_that_cannot_be_written_before_it_measures(tmp_path, capsys):
    assert bench.main(["--json", str(tmp_path / "none" / "bench.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_bench_takes_no_empty_name_for_its_file(capsys):
    with pytest.raises(SystemExit) as stop:
        bench.parse(["--json="], bench.bench_parser())
    assert stop.value.code == 2 and "--json: must be a valid file name" in capsys.readouterr().err
