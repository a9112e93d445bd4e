"""The optimisers: Adam, Adagrad and Muon."""

import torch
from torch.optim.adam import adam


@torch.no_grad()
def orthogonalise(matrices, dtype=torch.float32):
    """The nearest semi-orthogonal matrices (N, m, n), roughly: singular values become 0.7 to 1.2, singular vectors stay.

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
    """Muon (Jordan et al., 2024) for weights, Adam for biases.

    A step moves a weight matrix along the orthogonalised average of its gradients, so that directions in which the gradient
    is weak learn as fast as the strong ones. torch.optim.Muon is for linear layers only; here a convolution's weight is a
    matrix too, with one row for each index of its first dimension. A step is 0.2 sqrt(max(rows, columns)) lr long in each
    direction, which makes the size of an entry's change that of Adam (Liu et al., 2025). dtype: of orthogonalise().
    """

    MOMENTUM = 0.95

    def __init__(self, parameters, lr, betas=(0.9, 0.999), dtype=torch.float32):
        super().__init__(parameters, {"lr": lr, "betas": betas})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike, biases = {}, []
            for p in (p for p in group["params"] if p.grad is not None):
                if p.ndim > 1:  # those of one shape are orthogonalised together: many small matrices are slow
                    alike.setdefault((len(p), p[0].numel()), []).append(p)
                else:
                    biases.append(p)
            for shape, weights in alike.items():
                updates = orthogonalise(torch.stack([self.average(p) for p in weights]), self.dtype)
                for p, update in zip(weights, updates):
                    p.add_(update.view(p.shape), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
            self.adam_step(biases, group["lr"], *group["betas"])

    def average(self, p):
        """Nesterov's average of a weight's gradients, as a matrix."""
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momentum = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - self.MOMENTUM)
        return p.grad.lerp(momentum, self.MOMENTUM).flatten(1)

    def adam_step(self, biases, lr, beta1, beta2):
        for p in biases:
            if not self.state[p]:
                shapes = state_shapes(self, p).items()
                self.state[p] = {name: torch.zeros(shape, device=p.device) for name, shape in shapes}
        names = ("exp_avg", "exp_avg_sq", "count")
        means, squares, counts = ([self.state[p][name] for p in biases] for name in names)
        gradients = [p.grad for p in biases]
        options = dict(fused=True, amsgrad=False, maximize=False, weight_decay=0, eps=1e-8)
        adam(biases, gradients, means, squares, [], counts, lr=lr, beta1=beta1, beta2=beta2, **options)


def make_optimizer(args, parameters, device):
    """The optimiser that --optimizer names; those of torch are fused where torch supports it."""
    if args.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=args.lr, fused=device.type == "cpu")
    betas = args.beta1, args.beta2
    if args.optimizer == "muon":
        return Muon(parameters, args.lr, betas, torch.bfloat16 if args.precision == "bf16" else torch.float32)
    return torch.optim.Adam(parameters, lr=args.lr, betas=betas, fused=True)


def state_shapes(optimizer, parameter):
    """{name: shape} of the tensors that the optimiser keeps of a parameter and that a checkpoint must hold."""
    if isinstance(optimizer, torch.optim.Adagrad):
        return {"sum": parameter.shape}
    moments = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    if isinstance(optimizer, Muon):  # count, not step, which load_state_dict() would leave on the CPU
        return {"momentum_buffer": parameter.shape} if parameter.ndim > 1 else {**moments, "count": ()}
    return moments
