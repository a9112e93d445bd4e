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
from model import BetaVAE_B, BetaVAE_H, load_model
from objectives import kl_divergence, reconstruction_loss
from training.checkpoint import read_checkpoint
from training.log import read_log


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(32, 1, 4, 2, 1), (32, 3, 4, 2, 1), (32, 32, 4, 2, 1), (256, 64, 4, 1, 0)])
def test_the_fast_transposed_conv_equals_torchs_in_output_and_gradients(shape, channels_last):
    torch.manual_seed(0)
    fast, plain = ConvTranspose2d(*shape), nn.ConvTranspose2d(*shape)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(64, shape[0], 8, 8)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    results = []
    for layer in (fast, plain):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.square().sum().backward()
        results.append([y, leaf.grad, layer.weight.grad, layer.bias.grad])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("build", [BetaVAE_B, BetaVAE_H])
def test_the_networks_use_the_fast_transposed_conv(build):
    layers = {type(layer) for layer in build(10, 1).decoder}
    assert ConvTranspose2d in layers and nn.ConvTranspose2d not in layers


def test_under_autocast_the_network_is_bfloat16_and_what_it_gives_is_float32():
    net, inside = BetaVAE_B(), []
    net.decoder[9].register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(torch.rand(2, 1, 64, 64))
    assert inside == [torch.bfloat16]
    assert [output.dtype for output in outputs] == [torch.float32] * 4
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_a_bf16_step_has_the_loss_and_gradient_of_a_float32_step(runs):
    """At trained weights: loss within 1 %, an angle between the gradients of less than 8 degrees (cosine 0.99)."""
    data = runs.solver("data", "--train False", "--ckpt_name", ROOT / "misc" / "dsprites_B.pt").data
    x, losses, gradients = data.batch(torch.arange(32) * 23_039), [], []
    for enabled in (False, True):
        net = load_model(ROOT / "misc" / "dsprites_B.pt")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            x_recon, mu, logvar, _ = net(x, torch.Generator().manual_seed(1))
        loss = reconstruction_loss(x, x_recon, "bernoulli") + kl_divergence(mu, logvar)[0]
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.slow
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "AVX2", reason="bf16 has no instructions on this CPU: minutes"
)
def test_a_bf16_run_follows_the_float32_run(runs):
    """C rises to 8 nats in 240 iterations of batch 8. Measured for two seeds, over 120 iterations each: reconstruction
    within 4.7 %, KL within 0.2 nats. misc/speed.md has 2,000 iterations, within 1.2 %."""
    logs = []
    for precision in ("float32", "bf16"):
        steps = "--max_iter 240 --gather_step 120 --display_step 240 --save_step 240 --save_output False"
        flags = "--lr 1e-3 --delta 1 --C_max 8 --C_stop_iter 240"
        runs.run(precision, steps, flags, "--precision", precision)
        logs.append(read_log(runs.outputs(precision) / "log.csv"))
    float32, bf16 = logs
    assert float32["recon_loss"] != bf16["recon_loss"]
    assert bf16["recon_loss"] == pytest.approx(float32["recon_loss"], rel=0.1)
    assert bf16["total_kld"] == pytest.approx(float32["total_kld"], abs=0.4)
    assert bf16["recon_loss"][-1] < 540  # the best static picture costs 565.6


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
    assert ConvTranspose2d not in {type(layer) for layer in plain.net.decoder}
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
@pytest.mark.parametrize("model", ["B", "FC"])
def test_bench_measures_both_loops_at_fresh_and_trained_weights(tiny, tmp_path, capsys, model):
    trained = "--model FC --optimizer adagrad --warm 2".split() if model == "FC" else []
    assert bench.main([*tiny, *trained]) == 0
    figures = json.loads((tmp_path / "bench.json").read_text())
    rows = {(row["weights"], row["loop"]): row for row in figures["rows"]}
    assert rows.keys() == {(state, loop) for state in ("fresh", "trained") for loop in ("plain", "Solver")}
    if model == "B":  # 3 x 12.46 M multiply-adds, less the first layer's dx
        assert figures["gflop"] == pytest.approx(8 * 0.0737, rel=0.01)
    for (weights, _), row in rows.items():
        assert row["ratio"] == pytest.approx(row["it_s"] / rows[weights, "plain"]["it_s"])
        assert row["share"] == pytest.approx(
            row["it_s"] * figures["gflop"] / figures["matmul_gflop_s"]["float32"]
        )
    assert 0.1 < figures["peak_gb"] < 100
    output = capsys.readouterr().out
    assert all(f"\n{weights:8} {loop}" in output for weights, loop in rows)


def test_bench_says_in_a_line_what_it_cannot_do(tiny, tmp_path, capsys):
    for flags in (["--rounds", "0"], ["--warm", "-1"]):
        with pytest.raises(SystemExit):
            bench.main(flags)
    assert bench.main(["--json", str(tmp_path / "none" / "bench.json")]) == 1
    assert bench.main([*tiny, "--weights", str(ROOT / "misc" / "dsprites_B.pt"), "--model", "H"]) == 1
    assert capsys.readouterr().err.count("\n") == 4
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.slow
def test_main_starts_without_the_libraries_that_only_some_runs_need():
    """They would double the seconds that --help takes."""
    code = "import main, sys; print(*{name.split('.')[0] for name in sys.modules}, 'torch._dynamo' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    needless = "matplotlib pooch requests scipy sklearn torchvision visdom distributed True"
    assert not {*loaded.stdout.split()} & {*needless.split()}
