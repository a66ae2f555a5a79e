"""Noise levels of flow matching: logit-normal under a flow shift (arXiv 2403.03206, section 3.1), within a window."""

from __future__ import annotations

import math

import torch


def share(sigma: float, shift: float) -> float:
    """Share of logit-normal noise levels under this flow shift that lie below sigma."""
    if not 0.0 < sigma < 1.0:
        return float(sigma > 0.5)
    plain = sigma / (shift - (shift - 1) * sigma)
    return 0.5 * (1 + math.erf(math.log(plain / (1 - plain)) / math.sqrt(2)))


def draw_sigmas(
    count: int, shift: float, low: float = 0.0, high: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Noise levels in [low, high], one of each `count`-th part of the distribution, in random order. fp32 [count]."""
    below, above = share(low, shift), share(high, shift)
    order = torch.randperm(count, generator=generator)
    u = below + (above - below) * (order + torch.rand(count, generator=generator)) / count
    plain = torch.sigmoid(math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-0.99999, 0.99999)))
    return (shift * plain / (1 + (shift - 1) * plain)).clamp(low, high)
