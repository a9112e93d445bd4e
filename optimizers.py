"""The optimisers: Adam, Adagrad and Muon.

An entry of OPTIMIZERS is a function of the network and, by keyword, of the flags of main.py that it needs. It returns
torch's optimisers by the names under which checkpoints keep their state, the first of them "optim". Solver sets their
learning rate before each step.
"""

import torch


@torch.no_grad()
def orthogonalise(matrices, dtype=torch.float32):
    """Return roughly the nearest semi-orthogonal matrices (N, m, n): singular values become 0.7 to 1.2, singular vectors stay.

    Five steps of Newton and Schulz with the coefficients of Jordan et al. (2024), each of which multiplies a small singular
    value by 3.4: those below 1/500 of a matrix's norm stay below 1. dtype: of the products.
    """
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT.contiguous()
    for _ in range(5):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024), for weights of two dimensions or more.

    A step moves a weight matrix along the orthogonalised average of its gradients, so that directions in which the gradient
    is weak learn as fast as the strong ones. torch.optim.Muon is for linear layers only; here a convolution's weight is a
    matrix too, with one row for each index of its first dimension. A step is 0.2 sqrt(max(rows, columns)) lr long in each
    direction, which makes the size of an entry's change that of Adam (Liu et al., 2025). dtype: of orthogonalise().
    """

    MOMENTUM = 0.95

    def __init__(self, weights, lr=1e-3, dtype=torch.float32):
        super().__init__(weights, {"lr": lr})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}  # those of one shape are orthogonalised together: many small matrices are slow
            for p in (p for p in group["params"] if p.grad is not None):
                alike.setdefault((len(p), p[0].numel()), []).append(p)
            for shape, weights in alike.items():
                updates = orthogonalise(torch.stack([self.average(p) for p in weights]), self.dtype)
                for p, update in zip(weights, updates):
                    p.add_(update.view(p.shape), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def average(self, p):
        """Return Nesterov's average of a weight's gradients, as a matrix."""
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momentum = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - self.MOMENTUM)
        return p.grad.lerp(momentum, self.MOMENTUM).flatten(1)


def adam(net, *, beta1, beta2):
    """Adam (Kingma & Ba, 2015), fused."""
    return {"optim": torch.optim.Adam(net.parameters(), betas=(beta1, beta2), fused=True)}


def adagrad(net):
    """Adagrad (Duchi et al., 2011), fused where torch has it so."""
    on_cpu = next(net.parameters()).device.type == "cpu"
    return {"optim": torch.optim.Adagrad(net.parameters(), fused=on_cpu)}


def muon(net, *, beta1, beta2, precision):
    """Muon for the weights of hidden layers; Adam for biases and for the weights of the first and the last layer.

    Jordan et al. leave those two to Adam as well; here they are the layers that touch the image.
    """
    hidden = [p for p in net.parameters() if p.ndim > 1][1:-1]
    others = [p for p in net.parameters() if all(p is not weight for weight in hidden)]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return {
        "optim": Muon(hidden, dtype=dtype),
        "adam": torch.optim.Adam(others, betas=(beta1, beta2), fused=True),
    }


OPTIMIZERS = {"adam": adam, "adagrad": adagrad, "muon": muon}
