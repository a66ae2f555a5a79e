"""Latents and text embeddings as the transformer takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fpsgen.errors import ENVIRONMENT, NUMERIC, FpsgenError
from fpsgen.train.teacher import embed


class Encoder:
    """pipe: a WanPipeline with VAE and text encoder on their device. tokens: text tokens that the model reads."""

    def __init__(self, pipe: Any, tokens: int) -> None:
        self._pipe, self._tokens = pipe, tokens
        config = pipe.vae.config
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean, device=pipe.vae.device).view(shape)
        self._std = torch.tensor(config.latents_std, device=pipe.vae.device).view(shape)

    @torch.no_grad()
    def latents(self, frames: np.ndarray) -> torch.Tensor:
        """Frames uint8 [T, H, W, 3] as fp16 [C, t, h, w] on the CPU: (mode of the VAE's posterior - mean) / std.

        Raises FpsgenError NUMERIC where they are not finite, ENVIRONMENT where the GPU has too little memory.
        """
        vae = self._pipe.vae
        try:
            video = torch.tensor(frames, device=vae.device).permute(3, 0, 1, 2)[None].to(vae.dtype)
            latents = vae.encode(video / 127.5 - 1).latent_dist.mode()
        except torch.OutOfMemoryError as error:
            count, height, width = frames.shape[:3]
            what = f"the GPU has too little memory to encode {count} frames of {width}x{height}"
            raise FpsgenError(what, "choose a smaller --res or fewer --frames", ENVIRONMENT) from error
        scaled = ((latents.float() - self._mean) / self._std)[0].half().cpu()
        if not bool(scaled.isfinite().all()):
            raise FpsgenError(
                "the VAE gave latents that are not finite", "check the model: fpsgen models verify", NUMERIC
            )
        return scaled

    @torch.no_grad()
    def text(self, caption: str) -> torch.Tensor:
        """bf16 [L, D] on the CPU, zeros behind the last token."""
        return embed(self._pipe, caption, self._tokens)[0].bfloat16().cpu()
