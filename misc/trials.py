"""Trials of the restarted encoder (misc/capacity.md): many short runs side by side on one GPU.

    python -m misc.trials --list
    python -m misc.trials --out /tmp/trials A.5 weak.5TC --minutes 5

Each run is a CUDA graph of five training steps on a stream of its own: on one H100 a run alone makes 930 iterations a second,
nine together 2,150. Without a GPU the same steps are taken one after the other, slowly. The weights of all terms are tables
over iterations, so that one captured step serves every schedule. The scores of all trials are in misc/runs/trials.json.
"""

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from model import BetaVAE_B
from prepare import dsprites

Z, BATCH, STEPS = 10, 64, 5  # latents, images a batch, steps a graph


def table(n, *points):
    """(iteration, value[, "geo"]) points -> float (n,): straight lines between them, geometric up to a point marked so."""
    its, out = np.arange(n), np.full(n, float(points[-1][1]))
    for (a, va, *_), (b, vb, *how) in zip(points, points[1:]):
        inside, f = (its >= a) & (its < b), (its - a) / max(1, b - a)
        out[inside] = (va * (vb / va) ** f if how else va + (vb - va) * f)[inside]
    return torch.tensor(out, dtype=torch.float32)


def cosine(n, start, lr=1e-3):
    """lr up to start, then half a cosine down to a hundredth of it at n."""
    f = np.clip((np.arange(n) - start) / max(1, n - start), 0, 1)
    return torch.tensor(lr * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * f))), dtype=torch.float32)


def ramp(seed, n=20_000):
    """Objective B, gamma 1000, delta 1, C from 0 to 10 over all n iterations."""
    zero = torch.zeros(n)
    return dict(seed=seed, n=n, kl=zero, C=table(n, (0, 0), (n, 10)), gamma=zero + 1000, lr=zero + 1e-3)


def anneal(seed, start, end, stop, n=60_000):
    """Objective H from scratch, beta from start to end over stop iterations."""
    return dict(seed=seed, n=n, kl=table(n, (0, start), (stop, end, "geo")), lr=cosine(n, stop))


def restart(
    seed, init="S1a", low=0.2, high=2.0, weak=9000, rise=8000, tc=0.0, teacher=0.0, until=17_000, **more
):
    """A new encoder for the decoder of init: KL weight low for weak iterations, then to high over rise iterations.

    tc: weight that the total correlation gets beyond the KL's, from the end of the weak phase on. teacher: weight of the squared
    distance of the active latents' means to those of init's encoder, until that iteration, then falling to 0 over 4,000.
    more: opened (1000: inactive latents are at zero until then; 0: drawn anew at once), decoder (weight of its learning rate in
    the weak phase), parts ("encoder" or "both" are drawn anew), kl (another table).
    """
    n = 60_000 - (10_000 if init == "S1fast" else 20_000)
    weights = dict(
        kl=table(n, (0, low), (weak, low), (weak + rise, high, "geo")),
        tc=table(n, (0, 0), (weak, 0), (weak + rise, tc)),
        teacher=table(n, (0, teacher), (until, teacher), (until + 4000, 0)),
    )
    return {
        **dict(seed=seed, n=n, init=init, opened=1000, parts="encoder", lr=cosine(n, weak + rise)),
        **weights,
        **more,
    }


def taught(seed, **more):
    return restart(seed, **{"teacher": 20.0, "opened": 0, **more})


def slow_decoder(n=40_000):
    return table(n, (0, 1), (1000, 0.1), (9000, 0.1), (12_000, 1, "geo"))


TRIALS = {
    "S1a": ramp(1),
    "S1b": ramp(3),
    "S1fast": ramp(2, 10_000),
    "S1H": dict(ramp(1), kl=table(20_000, (0, 60), (15_000, 15, "geo")), gamma=torch.zeros(20_000)),
    "annealH": anneal(1, 60, 2, 40_000),
    "annealH30": anneal(2, 30, 2, 30_000),
    "cyclic": dict(anneal(1, 2, 2, 30_000), kl=table(60_000, (0, 0.2), (9000, 0.2), (17_000, 2, "geo"))),
    "H2": anneal(1, 2, 2, 30_000),
    "R0a": restart(1),
    "R0b": restart(2),
    "weak.5": restart(1, low=0.5),
    "weak1": restart(1, low=1.0, opened=0),
    "dec.1": restart(1, decoder=slow_decoder()),
    "anchor": taught(1),
    "enc3": taught(1, high=3.0),
    "both3": taught(1, high=3.0, parts="both"),
    "both3b": taught(2, high=3.0, parts="both"),
    "both.5": taught(1, low=0.5, high=3.0, parts="both"),
    "both4": taught(1, high=4.0, parts="both"),
    "both3keep": taught(1, high=3.0, weak=6000, rise=6000, until=40_000, parts="both"),
    "bothTC": taught(1, high=1.5, tc=3.0, parts="both"),
    "fast3": taught(1, init="S1fast", high=3.0, parts="both"),
    "A.5": taught(1, low=0.5),
    "A.5b": taught(2, low=0.5),
    "A.5w5": taught(1, low=0.5, teacher=3.0),
    "A1": taught(1, low=1.0),
    "A.5TC": taught(1, low=0.5, high=1.5, tc=2.0),
    "A1TC": taught(1, low=1.0, high=1.5, tc=2.0),
    "weak.5TC": restart(1, low=0.5, high=1.5, tc=2.0, opened=0),
    "A.5fast": taught(1, init="S1fast", low=0.5),
}


class Trial:
    """One run: its network, its tables, and a graph of STEPS training steps on its own stream."""

    def __init__(self, name, bits, device, finished):
        self.name, self.bits, self.device = name, bits, device
        spec = self.spec = TRIALS[name]
        torch.manual_seed(spec["seed"])
        net = BetaVAE_B(Z, 1).to(device)
        self.inactive, self.teacher = [], None
        self.active = torch.ones(Z, device=device)  # z_dim
        if "init" in spec:
            old = finished[spec["init"]]
            self.inactive = [j for j in range(Z) if old["kl"][j] < 0.1]
            self.active[self.inactive] = 0
            if spec["parts"] == "encoder":
                stay = {k: v for k, v in old["net"].items() if k.startswith("decoder")}
                net.load_state_dict(stay, strict=False)
            with torch.no_grad():
                net.decoder[0].weight[:, self.inactive] = 0
            if spec["teacher"].any():
                self.teacher = copy.deepcopy(net)
                self.teacher.load_state_dict(old["net"])
                self.teacher = self.teacher.encoder.to(memory_format=torch.channels_last)
        self.net = net.to(memory_format=torch.channels_last)
        names = ("kl", "C", "gamma", "tc", "teacher", "lr", "decoder")
        default = {"decoder": torch.ones(spec["n"])}
        self.tables = {k: spec.get(k, default.get(k, torch.zeros(spec["n"]))).to(device) for k in names}
        self.has_tc = bool(self.tables["tc"].any())
        self.params = [*net.encoder.parameters(), *net.decoder.parameters()]
        self.lrs = [torch.zeros((), device=device) for _ in range(2)]
        groups = [
            dict(params=part.parameters(), lr=lr) for part, lr in zip((net.encoder, net.decoder), self.lrs)
        ]
        cuda = device.type == "cuda"
        self.optim = torch.optim.Adam(groups, capturable=cuda, fused=cuda)
        # moving average of the weights, which is scored
        self.mean = [p.detach().clone() for p in self.params]
        self.step_on_device = torch.zeros(1, dtype=torch.long, device=device)
        self.shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
        self.sums, self.rows, self.iter = torch.zeros(2 + Z, device=device), [], 0
        self.random = torch.Generator(device).manual_seed(1000 + spec["seed"])
        self.stream = torch.cuda.Stream() if cuda else None
        self.graph = self.capture() if cuda else None

    def capture(self):
        weights = [p.detach().clone() for p in self.params]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self.step()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.random)
        with torch.cuda.graph(graph, stream=self.stream):
            for _ in range(STEPS):
                self.step()
        with torch.no_grad(), torch.cuda.stream(self.stream):  # undo the warm-up
            for p, mean, w in zip(self.params, self.mean, weights):
                p.copy_(w), mean.copy_(w)
            for state in self.optim.state.values():
                for value in state.values():
                    value.zero_()
            self.step_on_device.zero_(), self.sums.zero_()
        self.stream.synchronize()
        return graph

    def step(self):
        now = {name: values[self.step_on_device][0] for name, values in self.tables.items()}
        i = torch.randint(len(self.bits), (BATCH,), device=self.device, generator=self.random)
        x = ((self.bits[i].unsqueeze(-1) >> self.shifts) & 1).reshape(BATCH, 1, 64, 64).float()
        mu, logvar = self.net.encode(x)
        z = mu + (0.5 * logvar).exp() * torch.randn(mu.shape, device=self.device, generator=self.random)
        recon = F.binary_cross_entropy_with_logits(self.net.decode(z), x, reduction="sum") / BATCH
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(0)  # z_dim
        loss = recon + now["kl"] * kl.sum() + now["gamma"] * (((kl.sum() - now["C"]) ** 2 + 1).sqrt() - 1)
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(x)[:, :Z]
            loss = loss + now["teacher"] * ((mu - target) ** 2 * self.active).sum(1).mean()
        if self.has_tc:
            # B, B, z_dim
            log_q = -0.5 * (math.log(2 * math.pi) + logvar + (z[:, None] - mu) ** 2 / logvar.exp())
            loss = loss + now["tc"] * (log_q.sum(2).logsumexp(1) - log_q.logsumexp(1).sum(1)).mean()
        self.optim.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            self.lrs[0].copy_(now["lr"]), self.lrs[1].copy_(now["lr"] * now["decoder"])
            self.optim.step()
            torch._foreach_lerp_(self.mean, self.params, 0.001)
            self.sums += torch.cat([recon[None], kl.sum()[None], kl])
            self.step_on_device += 1

    @torch.no_grad()
    def open_inactive(self):
        """Draws the decoder's weights of inactive latents, and their rows of the encoder's last layer, anew."""
        torch.manual_seed(7 + self.spec["seed"])
        new, rows = BetaVAE_B(Z, 1).to(self.device), self.inactive + [Z + j for j in self.inactive]
        last, first = self.net.encoder[13], self.net.decoder[0].weight
        first[:, self.inactive] = new.decoder[0].weight[:, self.inactive]
        last.weight[rows], last.bias[rows] = new.encoder[13].weight[rows], 0
        for moment in ("exp_avg", "exp_avg_sq") if self.optim.state else ():
            self.optim.state[first][moment][:, self.inactive] = 0
            self.optim.state[last.weight][moment][rows] = self.optim.state[last.bias][moment][rows] = 0

    def advance(self):
        """STEPS iterations; True when it is finished."""
        with torch.cuda.stream(self.stream):  # None on a CPU: nothing
            if self.inactive and self.iter == self.spec["opened"]:
                self.open_inactive()
            self.graph.replay() if self.graph else [self.step() for _ in range(STEPS)]
            self.iter += STEPS
            if self.iter % 1000 == 0:
                self.rows.append((self.iter, (self.sums / 1000).clone()))
                self.sums.zero_()
        return self.iter >= self.spec["n"]

    def result(self):
        names = {id(p): name for name, p in self.net.named_parameters()}
        state = {names[id(p)]: mean.clone() for p, mean in zip(self.params, self.mean)}
        rows = [(i, row.tolist()) for i, row in self.rows] or [(0, [0.0] * (2 + Z))]
        return {"net": state, "kl": rows[-1][1][2:], "log": rows}


def main():
    parser = argparse.ArgumentParser(prog="misc.trials", description=__doc__.split("\n")[0])
    parser.add_argument(
        "names", nargs="*", choices=[[], *TRIALS], help="trials to run; those they start from are run first"
    )
    parser.add_argument("--list", action="store_true", help="list the trials")
    parser.add_argument("--out", type=Path, default=Path("outputs/trials"), help="folder of weights and logs")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop all after this time")
    args = parser.parse_args()
    if args.list:
        print(*TRIALS)
        return
    device, begin = torch.device("cuda" if torch.cuda.is_available() else "cpu"), time.time()
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    bits, finished = torch.from_numpy(dsprites.render()).to(device), {}
    names = args.names or list(TRIALS)
    waiting = list(dict.fromkeys([TRIALS[n]["init"] for n in names if "init" in TRIALS[n]] + names))
    running = []
    while waiting or running:
        for name in [n for n in waiting if TRIALS[n].get("init") in (None, *finished)]:
            waiting.remove(name)
            running.append(Trial(name, bits, device, finished))
        for trial in list(running):
            if trial.advance():
                running.remove(trial)
                finished[trial.name] = trial.result()
        if time.time() - begin > 60 * args.minutes:
            finished |= {trial.name: trial.result() for trial in running}
            break
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(
        {name: {**r, "net": {k: v.cpu() for k, v in r["net"].items()}} for name, r in finished.items()},
        args.out / "trials.pt",
    )
    (args.out / "trials.json").write_text(json.dumps({name: r["log"] for name, r in finished.items()}))


if __name__ == "__main__":
    main()
