"""Muon for matrices and convolution kernels, AdamW for the rest.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): momentum, then the nearest semi-orthogonal matrix by a
Newton-Schulz iteration; scaled so that an update has the RMS of AdamW's (Liu et al., 2025, arXiv 2502.16982, eq. 4),
hence one learning rate serves both. Matrices of one shape are stacked, so that a step costs few launches.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """[n, a, b] -> its approximate polar factor, computed in bf16 on CUDA and fp32 elsewhere."""
    x = g.bfloat16() if g.is_cuda else g.float()
    wide = x.shape[-2] > x.shape[-1]
    x = x.mT if wide else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if wide else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Parameters of two or more dimensions; a kernel counts as the matrix [out, in * taps]."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    stacks[(p.shape[0], p[0].numel())].append(p)
            for (rows, columns), params in stacks.items():
                grads = torch.stack([p.grad.reshape(rows, columns).float() for p in params if p.grad is not None])
                state = self.state[params[0]]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(grads)
                momentum = state["momentum"].lerp_(grads, 1 - group["momentum"])
                update = orthogonalize(grads.lerp(momentum, group["momentum"]))
                update *= group["lr"] * 0.2 * math.sqrt(max(rows, columns))
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(u.view_as(p))


class Optimizers:
    """Muon + AdamW over the named parameters of some modules, with a common learning-rate factor and an EMA."""

    def __init__(
        self, modules: list[nn.Module], lr: float, adam: Iterable[str] = (), ema: float = 0.998, decay: float = 0.01
    ):
        named = [(n, p) for m in modules for n, p in m.named_parameters() if p.requires_grad]
        is_matrix = [p.ndim >= 2 and not any(part in n for part in adam) for n, p in named]
        self.params = [p for _, p in named]
        matrices = [p for p, m in zip(self.params, is_matrix, strict=True) if m]
        others = [p for p, m in zip(self.params, is_matrix, strict=True) if not m]
        self.lr, self.ema_decay, self.steps = lr, ema, 0
        fused = others[0].is_cuda if others else False
        self.optimizers: list[torch.optim.Optimizer] = [Muon(matrices, lr, weight_decay=decay)]
        self.optimizers.append(torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.0, fused=fused))
        self.ema = [p.detach().clone() for p in self.params]

    def step(self, factor: float) -> Tensor:
        """Clip to norm 1, step with lr * factor, update the EMA, clear gradients. Returns the gradient norm."""
        norm = nn.utils.clip_grad_norm_(self.params, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        weight = 1 - min(self.ema_decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.params], weight)
        return norm

    @torch.no_grad()
    def load_ema(self) -> None:
        """Put the averaged weights into the modules."""
        for p, e in zip(self.params, self.ema, strict=True):
            p.copy_(e)


def schedule(progress: float, warmup: float = 0.02, floor: float = 0.02) -> float:
    """Learning-rate factor at `progress` in [0, 1]: linear warm-up, flat, then linear to `floor` over the last 60 %."""
    if progress < warmup:
        return progress / warmup + 1e-3
    return floor + (1 - floor) * min(1.0, (1 - min(progress, 1.0)) / 0.6)
