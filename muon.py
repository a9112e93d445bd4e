"""Muon (Jordan et al., 2024) for matrices and convolutions, Adam for biases: a trial."""
import torch


def orthogonalise(G, steps=5):
    """Newton-Schulz: G (..., m, n), singular values to about 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G.bfloat16()
    tall = X.shape[-2] > X.shape[-1]
    if tall: X = X.mT.contiguous()
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return (X.mT if tall else X).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, betas=(0.9, 0.999), momentum=0.95, eps=1e-8, factor=0.2):
        super().__init__(params, dict(lr=lr, betas=betas, momentum=momentum, eps=eps, factor=factor))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            shapes = {}
            for p in g["params"]:
                s = self.state[p]
                if not s:
                    s["step"], s["exp_avg"], s["exp_avg_sq"] = torch.tensor(0.0), torch.zeros_like(p), torch.zeros_like(p)
                s["step"] += 1
                if p.ndim > 1:
                    m = s["exp_avg"]
                    m.mul_(g["momentum"]).add_(p.grad)
                    shapes.setdefault((len(p), p[0].numel()), []).append((p, (p.grad + g["momentum"] * m).reshape(len(p), -1)))
                else:
                    b1, b2 = g["betas"]; t = float(s["step"])
                    s["exp_avg"].lerp_(p.grad, 1 - b1)
                    s["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                    p.addcdiv_(s["exp_avg"] / (1 - b1**t), (s["exp_avg_sq"] / (1 - b2**t)).sqrt() + g["eps"], value=-g["lr"])
            for shape, pairs in shapes.items():
                O = orthogonalise(torch.stack([u for _, u in pairs]))
                for (p, _), o in zip(pairs, O):
                    p.add_(o.reshape(p.shape), alpha=-g["lr"] * g["factor"] * max(shape) ** 0.5)
