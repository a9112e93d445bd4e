"""Muon (Jordan et al., 2024) for matrices and convolutions, Adam for biases: a trial."""
import torch


def orthogonalise(G, steps=5):
    """Newton-Schulz: the nearest matrix with singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = (G / (G.norm() + 1e-7)).bfloat16()
    tall = X.shape[0] > X.shape[1]
    if tall: X = X.T
    for _ in range(steps):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return (X.T if tall else X).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, betas=(0.9, 0.999), momentum=0.95, eps=1e-8, factor=0.2):
        super().__init__(params, dict(lr=lr, betas=betas, momentum=momentum, eps=eps, factor=factor))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            for p in g["params"]:
                s = self.state[p]
                if not s:
                    s["step"], s["exp_avg"], s["exp_avg_sq"] = torch.tensor(0.0), torch.zeros_like(p), torch.zeros_like(p)
                s["step"] += 1
                if p.ndim > 1:
                    m = s["exp_avg"]
                    m.mul_(g["momentum"]).add_(p.grad)
                    u = p.grad + g["momentum"] * m
                    O = orthogonalise(u.reshape(len(u), -1))
                    p.add_(O.reshape(p.shape), alpha=-g["lr"] * g["factor"] * max(O.shape) ** 0.5)
                else:
                    b1, b2 = g["betas"]; t = float(s["step"])
                    s["exp_avg"].lerp_(p.grad, 1 - b1)
                    s["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                    p.addcdiv_(s["exp_avg"] / (1 - b1**t), (s["exp_avg_sq"] / (1 - b2**t)).sqrt() + g["eps"], value=-g["lr"])
