"""Training on a CUDA device. Skipped where there is none."""

import pytest
import torch

from run.checkpoint import read_checkpoint
from run.log import read_log

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_nothing_waits_for_the_device_between_gathers(runs):
    solver = runs.solver("sync")

    def iterate():
        solver.iter += 1
        solver.training_step(solver.data.batch(solver.batches[solver.iter]))

    for _ in range(3):
        iterate()  # first ones set things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            iterate()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_losses_follow_those_of_the_cpu(runs, precision):
    flags = ["--max_iter", 200, "--gather_step", 50, "--display_step", 200, "--precision", precision]
    runs.run("cpu", *flags, "--cuda", False)
    runs.run("cuda", *flags)
    cpu, cuda = (read_log(runs.outputs(name) / "log.csv") for name in ("cpu", "cuda"))
    assert cuda["recon_loss"] == pytest.approx(cpu["recon_loss"], rel=0.05)  # other noise


def test_a_run_goes_on_on_another_device(runs):
    for flags in (["--max_iter", 10], ["--max_iter", 20, "--cuda", False], ["--max_iter", 30]):
        runs.run("run", *flags)
    state = read_checkpoint(runs.checkpoint("run"))
    assert state["iter"] == 30 and state["device"] == torch.cuda.get_device_name()


def test_the_data_set_lives_on_the_device(runs):
    solver = runs.solver("data")
    assert solver.data.packed.device.type == solver.data.batch(torch.arange(2)).device.type == "cuda"
