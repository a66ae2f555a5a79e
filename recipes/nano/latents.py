"""A pool of encoded clips with their captions, filled once and refreshed while training goes on."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers' and transformers' annotations do not describe .to(), .config and outputs)

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from fpsgen.evaluate.nano import captions, world
from recipes.nano import autoencoder, denoiser

SUBJECT_WEIGHT = 2.0  # extra loss weight of latent cells that the subject touches
WORD_DROP = 0.02  # share of captions in which one word is unknown


class LatentPool:
    """Latents [N, 16, 9, 20, 32] (bf16, normalised), token ids [N, 24] and loss weights [N, 1, 9, 20, 32]."""

    def __init__(self, vae: AutoencoderKLWan, tokenizer, size: int, seed: int, render: int = 32):
        self.device = next(vae.parameters()).device
        self.vae, self.tokenizer, self.render = vae, tokenizer, render
        self.renderer, self.rng = world.Renderer(self.device, seed), random.Random(seed)
        self.mean = torch.tensor(vae.config.latents_mean, device=self.device).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(vae.config.latents_std, device=self.device).view(1, -1, 1, 1, 1)
        shape = (9, world.HEIGHT // 8, world.WIDTH // 8)
        self.latents = torch.empty(size, vae.config.z_dim, *shape, dtype=torch.bfloat16, device=self.device)
        self.weights = torch.empty(size, 1, *shape, dtype=torch.bfloat16, device=self.device)
        self.ids = torch.zeros(size, denoiser.TEXT_LENGTH, dtype=torch.long, device=self.device)
        self.encoded = 0

    def __len__(self) -> int:
        return min(self.encoded, len(self.latents))

    @torch.no_grad()
    def add(self) -> None:
        """Render and encode some new clips over the oldest ones."""
        examples = [captions.random_example(self.rng) for _ in range(self.render)]
        video, mask = self.renderer.render([scene for _, scene in examples])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            mean, _ = autoencoder.encode_clip(self.vae, video)
        touched = torch.cat([F.max_pool3d(mask[:, :, :1], (1, 8, 8)), F.max_pool3d(mask[:, :, 1:], (4, 8, 8))], 2)
        ids = denoiser.token_ids(self.tokenizer, [caption for caption, _ in examples])
        for row in ids:
            if self.rng.random() < WORD_DROP:
                row[self.rng.randrange(int((row > 1).sum()))] = self.tokenizer.unk_token_id
        slots = (torch.arange(self.render, device=self.device) + self.encoded) % len(self.latents)
        self.latents[slots] = ((mean.float() - self.mean) / self.std).bfloat16()
        self.weights[slots] = (1 + SUBJECT_WEIGHT * touched).bfloat16()
        self.ids[slots] = ids.to(self.device)
        self.encoded += self.render

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random latents (fp32), token ids and weights (fp32)."""
        picks = torch.randint(0, len(self), (size,), device=self.device)
        return self.latents[picks].float(), self.ids[picks], self.weights[picks].float()
