"""The norm and the modulation before a Wan transformer's last projection, in one reading of the tokens.

The transformer computes (norm_out(x.float()) * scale + shift).type_as(x), passes over x in fp32. Its forward cannot be
changed from outside. So norm_out returns an object that collects scale and shift, and the cast gives it x itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.normalization import FP32LayerNorm
from torch.compiler import is_compiling

from fpsgen.fused import norm_rows
from fpsgen.models.patch.fusable import not_fusable
from fpsgen.models.patch.swap_class import has_hooks, swap_class


class HeadNorm(FP32LayerNorm):
    """A Wan transformer's norm_out, which has no weight, made into this. anywhere: also on devices without CUDA."""

    anywhere: bool = False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor | PendingNorm:
        stays = is_compiling() or has_hooks(self) or not_fusable(inputs.device)
        if stays or not (self.anywhere or inputs.is_cuda):
            return super().forward(inputs)
        return PendingNorm(self.eps)


def install_head(transformer: Any, anywhere: bool = False) -> Callable[[], None] | None:
    """Fuse the head of a Wan transformer. Returns what undoes it, None where it cannot be fused."""
    norm = transformer.norm_out
    bare = type(norm) is FP32LayerNorm and norm.weight is None
    return swap_class(norm, HeadNorm, anywhere=anywhere) if bare else None


@dataclass(frozen=True)
class PendingNorm:
    """A LayerNorm that is computed when it is cast. mul, add: [B, 1, K] or [B, L, K], what its result is multiplied
    with, and what is added then.
    """

    eps: float
    mul: torch.Tensor | None = None
    add: torch.Tensor | None = None

    def __mul__(self, mul: torch.Tensor) -> PendingNorm:
        return replace(self, mul=mul)

    def __add__(self, add: torch.Tensor) -> PendingNorm:
        return replace(self, add=add)

    def type_as(self, x: torch.Tensor) -> torch.Tensor:
        """The result for x [B, L, K], in its type."""
        assert self.mul is not None and self.add is not None
        mul, add = (p.squeeze(1) if p.shape[1] == 1 else p for p in (self.mul, self.add))
        out = norm_rows(x, mul, add, self.eps, False, False)
        assert isinstance(out, torch.Tensor)
        return out
