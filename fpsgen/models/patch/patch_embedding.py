"""The patch embedding as one matrix product, whose result lies as the blocks read it.

diffusers' convolution has a kernel of its own step: every patch is multiplied once. As a convolution it writes channels
first, and the transformer copies that to tokens first; as a product it writes tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from fpsgen.models.patch.patch_permute import patches
from fpsgen.models.patch.swap_class import swap_class


class PatchEmbedding(torch.nn.Conv3d):
    """A Wan transformer's patch_embedding made into this; same weight, same result but for the order of sums."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [B, C, F, H', W'] to [B, dim, T, H, W], in memory [B, T, H, W, dim]."""
        if not input.is_cuda or torch.is_grad_enabled():
            return super().forward(input)
        return embed(input, self.weight, self.bias)


def install_embedding(embedding: torch.nn.Module) -> Callable[[], None] | None:
    """Make a Wan transformer's patch_embedding one product. Returns what undoes it, None where it cannot be one."""
    whole = type(embedding) is torch.nn.Conv3d and embedding.stride == embedding.kernel_size
    return swap_class(embedding, PatchEmbedding) if whole else None


def embed(latents: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """latents [B, C, F, H', W'], weight [dim, C, pt, ph, pw] to [B, dim, T, H, W], in memory [B, T, H, W, dim]."""
    pt, ph, pw = weight.shape[2:]
    tokens = patches(latents, (pt, ph, pw)).flatten(4)
    return F.linear(tokens, weight.flatten(1), bias).permute(0, 4, 1, 2, 3)
