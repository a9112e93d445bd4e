"""Trials of the restarted encoder (misc/capacity.md): many short runs side by side on one GPU.

    python -m misc.trials --out outputs/trials A.5 weak.5TC

Each run is a CUDA graph of five training steps on a stream of its own: on one H100 a run alone makes 930 iterations a second,
nine together 2,150. Without a GPU the same steps are taken one after the other, slowly. The weights of all terms are tables
over iterations, so that one captured step serves every schedule. misc/runs/trials.json has logs and scores of all trials.
"""

import argparse
import copy
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dataset import DSprites
from model import BetaVAE_B
from objectives import capacity_penalty, kl_divergence, learning_rate, reconstruction_loss, total_correlation
from prepare import dsprites

Z, BATCH, STEPS = 10, 64, 5  # latents, images a batch, steps a graph
TABLES = ("kl", "C", "gamma", "tc", "teacher", "lr", "decoder")  # what a schedule sets for each iteration


# Schedules: dicts of seed, n (iterations), tables (n,), and for a restart what is reinitialised and when.


def schedule(seed, n, decay=None, **more):
    """decay: iteration from which the learning rate of 1e-3 falls until n; decoder: factor for that of the decoder."""
    lr = torch.tensor([learning_rate(i, 1e-3, decay, n if decay else 0) for i in range(n)])
    zero = {name: torch.zeros(n) for name in TABLES}
    return {**zero, "lr": lr, "decoder": torch.ones(n), "seed": seed, "n": n, "init": None, **more}


def table(n, *points, geometric=False):
    """(iteration, value) points -> float (n,): straight lines between them, in the logarithm if geometric."""
    iterations, values = np.array(points, dtype=float).T
    line = np.interp(np.arange(n), iterations, np.log(values) if geometric else values)
    return torch.tensor(np.exp(line) if geometric else line, dtype=torch.float32)


def ramp(seed, n=20_000, **more):
    """Objective B, gamma 1000, delta 1, C from 0 to 10 over all n iterations."""
    B = {"C": table(n, (0, 0), (n, 10)), "gamma": torch.full((n,), 1000.0)}
    return schedule(seed, n, **(B | more))


def anneal(seed, *betas, n=60_000):
    """Objective H from scratch; beta goes geometrically through (iteration, beta) points."""
    return schedule(seed, n, decay=betas[-1][0], kl=table(n, *betas, geometric=True))


def restart(
    seed, low=0.2, high=2.0, weak=9000, rise=8000, tc=0.0, teacher=0.0, until=17_000, init="S1a", **more
):
    """A new encoder for the decoder of init: KL weight low for weak iterations, then to high over rise iterations.

    tc: weight that the total correlation gets beyond the KL's, from the end of the weak phase on. teacher: weight of the squared
    distance of the active latents' means to those of init's encoder, until that iteration, then falling to 0 over 4,000.
    more: opened, the iteration at which inactive latents are reinitialised, whose decoder weights start at zero; parts,
    "encoder" or "both": what is new; or other tables.
    """
    n = 60_000 - (10_000 if init == "S1fast" else 20_000)
    tables = {
        "kl": table(n, (0, low), (weak, low), (weak + rise, high), geometric=True),
        "tc": table(n, (weak, 0), (weak + rise, tc)),
        "teacher": table(n, (until, teacher), (until + 4000, 0)),
    }
    other = {"init": init, "opened": 1000, "parts": "encoder"}
    return schedule(seed, n, decay=weak + rise, **(tables | other | more))


taught = partial(restart, teacher=20.0, opened=0)
slow = table(40_000, (0, 1), (1000, 0.1))  # the decoder's learning rate in dec.1
slow[9000:] = table(31_000, (0, 0.1), (3000, 1), geometric=True)
H60 = {"kl": table(20_000, (0, 60), (15_000, 15), geometric=True), "gamma": torch.zeros(20_000)}
TRIALS = {
    "S1a": partial(ramp, 1),
    "S1b": partial(ramp, 3),
    "S1fast": partial(ramp, 2, 10_000),
    "S1H": partial(ramp, 1, **H60),
    "annealH": partial(anneal, 1, (0, 60), (40_000, 2)),
    "annealH30": partial(anneal, 2, (0, 30), (30_000, 2)),
    "cyclic": partial(anneal, 1, (0, 0.2), (9000, 0.2), (17_000, 2), (30_000, 2)),
    "H2": partial(anneal, 1, (0, 2), (30_000, 2)),
    "R0a": partial(restart, 1),
    "R0b": partial(restart, 2),
    "weak.5": partial(restart, 1, low=0.5),
    "weak1": partial(restart, 1, low=1.0, opened=0),
    "dec.1": partial(restart, 1, decoder=slow),
    "anchor": partial(taught, 1),
    "enc3": partial(taught, 1, high=3.0),
    "both3": partial(taught, 1, high=3.0, parts="both"),
    "both3b": partial(taught, 2, high=3.0, parts="both"),
    "both.5": partial(taught, 1, low=0.5, high=3.0, parts="both"),
    "both4": partial(taught, 1, high=4.0, parts="both"),
    "both3keep": partial(taught, 1, high=3.0, weak=6000, rise=6000, until=40_000, parts="both"),
    "bothTC": partial(taught, 1, high=1.5, tc=3.0, parts="both"),
    "fast3": partial(taught, 1, init="S1fast", high=3.0, parts="both"),
    "A.5": partial(taught, 1, low=0.5),
    "A.5b": partial(taught, 2, low=0.5),
    "A.5w5": partial(taught, 1, low=0.5, teacher=3.0),
    "A1": partial(taught, 1, low=1.0),
    "A.5TC": partial(taught, 1, low=0.5, high=1.5, tc=2.0),
    "A1TC": partial(taught, 1, low=1.0, high=1.5, tc=2.0),
    "weak.5TC": partial(restart, 1, low=0.5, high=1.5, tc=2.0, opened=0),
    "A.5fast": partial(taught, 1, init="S1fast", low=0.5),
}


class Trial:
    """One run: its network, its schedule, and on a GPU a graph of STEPS training steps on its own stream.

    init: result() of the trial that it continues, or None.
    """

    def __init__(self, spec, data, device, init=None):
        self.spec, self.data, self.device = spec, data, device
        torch.manual_seed(spec["seed"])
        self.net, self.inactive, self.teacher = BetaVAE_B(Z, 1).to(device), [], None
        if init:
            self.continue_from(init)
        self.net.to(memory_format=torch.channels_last)
        self.tables = {name: spec[name].to(device) for name in TABLES}
        self.has_tc = bool(spec["tc"].any())
        parts = self.net.encoder, self.net.decoder
        self.lrs = [torch.zeros((), device=device) for _ in parts]
        groups = [{"params": part.parameters(), "lr": lr} for part, lr in zip(parts, self.lrs)]
        cuda = device.type == "cuda"
        self.optim = torch.optim.Adam(groups, capturable=cuda, fused=cuda)
        self.params = list(self.net.parameters())
        self.mean = [
            p.detach().clone() for p in self.params
        ]  # moving average of the weights, which is scored
        self.step_on_device = torch.zeros(1, dtype=torch.long, device=device)
        self.sums, self.rows, self.iter = torch.zeros(2 + Z, device=device), [], 0
        self.random = torch.Generator(device).manual_seed(1000 + spec["seed"])
        self.stream, self.graph = torch.cuda.Stream() if cuda else None, None
        if cuda:
            self.stream.wait_stream(torch.cuda.current_stream())

    def continue_from(self, init):
        """Take over the decoder of init, or its encoder as a teacher. Inactive latents start with decoder weights of zero."""
        self.inactive = [j for j in range(Z) if init["kl"][j] < 0.1]
        self.active = torch.ones(Z, device=self.device)  # z_dim
        self.active[self.inactive] = 0
        if self.spec["parts"] == "encoder":
            decoder = {name: w for name, w in init["net"].items() if name.startswith("decoder")}
            self.net.load_state_dict(decoder, strict=False)
        with torch.no_grad():
            self.net.decoder[0].weight[:, self.inactive] = 0
        if self.spec["teacher"].any():
            self.teacher = copy.deepcopy(self.net)
            self.teacher.load_state_dict(init["net"])
            self.teacher.to(memory_format=torch.channels_last)

    def capture(self):
        """Record STEPS steps as a graph. Steps must have run on the stream before, which sets up what cannot be recorded."""
        self.stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.random)
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.steps()

    def steps(self):
        for _ in range(STEPS):
            self.step()

    def step(self):
        now = {name: values[self.step_on_device][0] for name, values in self.tables.items()}
        i = torch.randint(len(self.data), (BATCH,), device=self.device, generator=self.random)
        x = self.data.batch(i)  # B, 1, 64, 64
        x_recon, mu, logvar, z = self.net(x, self.random)
        recon_loss = reconstruction_loss(x, x_recon, "bernoulli")
        total_kld, kld, _ = kl_divergence(mu, logvar)
        penalty = now["gamma"] * capacity_penalty(total_kld, now["C"], smoothing=1.0)
        loss = recon_loss + now["kl"] * total_kld + penalty
        if self.teacher is not None:
            with torch.no_grad():
                target, _ = self.teacher.encode(x)
            loss = loss + now["teacher"] * ((mu - target) ** 2 * self.active).sum(1).mean()
        if self.has_tc:
            loss = loss + now["tc"] * total_correlation(z, mu, logvar)
        self.optim.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            self.lrs[0].copy_(now["lr"])
            self.lrs[1].copy_(now["lr"] * now["decoder"])
            self.optim.step()
            torch._foreach_lerp_(self.mean, self.params, 0.001)
            self.sums += torch.cat([recon_loss[None], total_kld[None], kld])
            self.step_on_device += 1

    @torch.no_grad()
    def open_inactive(self):
        """Reinitialise the decoder's weights of inactive latents, and their rows of the encoder's last layer."""
        torch.manual_seed(7 + self.spec["seed"])
        new, rows = BetaVAE_B(Z, 1).to(self.device), self.inactive + [Z + j for j in self.inactive]
        last, first = self.net.encoder[-1], self.net.decoder[0].weight
        first[:, self.inactive] = new.decoder[0].weight[:, self.inactive]
        last.weight[rows], last.bias[rows] = new.encoder[-1].weight[rows], 0
        for moment in ("exp_avg", "exp_avg_sq") if self.optim.state else ():
            self.optim.state[first][moment][:, self.inactive] = 0
            self.optim.state[last.weight][moment][rows] = self.optim.state[last.bias][moment][rows] = 0

    def advance(self):
        """Take STEPS iterations, the first ones without a graph; returns whether the trial is finished."""
        with torch.cuda.stream(self.stream):  # does nothing for None
            if self.inactive and self.iter == self.spec["opened"]:
                self.open_inactive()
            if self.graph:
                self.graph.replay()
            else:
                self.steps()
            self.iter += STEPS
            if self.iter % 1000 == 0:
                self.rows.append((self.iter, (self.sums / 1000).clone()))
                self.sums.zero_()
        if self.stream and not self.graph:
            self.capture()
        return self.iter >= self.spec["n"]

    def result(self):
        """Averaged weights, KL of each latent over the last 1,000 iterations, and the log: (iteration, [recon, KL, *KL of each])."""
        if self.stream:
            self.stream.synchronize()
        weights = {name: mean.clone() for (name, _), mean in zip(self.net.named_parameters(), self.mean)}
        rows = [(i, row.tolist()) for i, row in self.rows] or [(0, [0.0] * (2 + Z))]
        return {"net": weights, "kl": rows[-1][1][2:], "log": rows}


def run(names, data, device):
    """Run trials side by side, each as soon as the one that it continues is finished; returns {name: result}."""
    finished, running, waiting = {}, {}, {name: TRIALS[name]() for name in names}
    for spec in list(waiting.values()):
        if spec["init"] and spec["init"] not in waiting:
            waiting[spec["init"]] = TRIALS[spec["init"]]()
    while waiting or running:
        for name in [name for name, spec in waiting.items() if spec["init"] in (None, *finished)]:
            spec = waiting.pop(name)
            running[name] = Trial(spec, data, device, finished.get(spec["init"]))
        for name in [name for name, trial in running.items() if trial.advance()]:
            finished[name] = running.pop(name).result()
    return finished


def main(argv=None):
    parser = argparse.ArgumentParser(prog="misc.trials", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        choices=[[], *TRIALS],
        help="trials to run, with those that they continue; default: all",
    )
    add("--out", type=Path, default=Path("outputs/trials"), help="folder of weights and logs")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    args.out.mkdir(parents=True, exist_ok=True)
    results = run(args.names or list(TRIALS), DSprites(dsprites.render(), "drawn", device), device)
    for each in results.values():
        each["net"] = {name: weight.cpu() for name, weight in each["net"].items()}
    torch.save(results, args.out / "trials.pt")
    (args.out / "trials.json").write_text(json.dumps({name: each["log"] for name, each in results.items()}))


if __name__ == "__main__":
    main()
