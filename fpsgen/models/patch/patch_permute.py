"""Tokens in tile order for a whole forward pass, put there and taken back at the transformer's boundary.

Wan's patch embedding works patch by patch and its blocks token by token, self-attention and rotary embedding apart.
So the latent's *patches* are moved before the forward and those of the output moved back after it, and the rotary table
is moved with them: 16 channels are moved instead of thousands, nothing inside is touched, and no module that LoRA,
quantization or compilation may replace carries a hook.
"""

from __future__ import annotations

import torch

from fpsgen.attention.windows import Size3


def patch_grid(latents: torch.Tensor, patch: Size3) -> Size3:
    """(T, H, W) tokens of latents [B, C, F, H', W']: whole patches only, as the model takes them."""
    t, h, w = (size // side for size, side in zip(latents.shape[2:], patch, strict=True))
    return t, h, w


def move_patches(latents: torch.Tensor, patch: Size3, index: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, F, H', W'] with patch number index[i] at place i; places count in raster order of the token grid.

    Rows and columns beyond the last whole patch are cut off, as the patch embedding does. Differentiable.
    """
    (t, h, w), (pt, ph, pw) = patch_grid(latents, patch), patch
    batch, channels = latents.shape[:2]
    tokens = patches(latents, patch).flatten(1, 3).index_select(1, index).view(batch, t, h, w, channels, pt, ph, pw)
    return tokens.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, channels, t * pt, h * ph, w * pw)


def patches(latents: torch.Tensor, patch: Size3) -> torch.Tensor:
    """Latents [B, C, F, H', W'] by patch: [B, T, H, W, C, pt, ph, pw]."""
    (t, h, w), (pt, ph, pw) = patch_grid(latents, patch), patch
    batch, channels = latents.shape[:2]
    whole = latents[:, :, : t * pt, : h * ph, : w * pw].reshape(batch, channels, t, pt, h, ph, w, pw)
    return whole.permute(0, 2, 4, 6, 1, 3, 5, 7)
