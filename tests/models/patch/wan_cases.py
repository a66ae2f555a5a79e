"""Shared by the tests of fpsgen.apply: schedules for small ragged grids, one forward, one video, and an oracle."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from fpsgen.attention import Profile, Schedule

LATENT = (2, 4, 5, 12, 14)  # B, C, F, H', W': a grid of (5, 6, 7) tokens
GRID = (5, 6, 7)
RAGGED = (2, 4, 3)  # divides no axis of it

DENSE = Profile("dense", "bf16")
TILED = Profile("tiled", "sta", RAGGED)  # dense, but in tile order
SPARSE = Profile("sparse", "sta", RAGGED, (1, 1, 3))
FP8 = Profile("fp8", "fps", RAGGED, (1, 1, 3), 2)
OTHER = Profile("other", "sta", (3, 2, 7), (1, 3, 1))


def one(profile: Profile, **changes) -> Schedule:
    """The profile at every noise level."""
    return Schedule(profile.name, (profile,), ((0.0, 1.0, profile.name),), **changes)


def mixed(*profiles: Profile, **changes) -> Schedule:
    """The profiles in equal windows, the first at the highest noise."""
    cuts = [1 - i / len(profiles) for i in range(len(profiles))] + [0.0]
    rows = tuple((low, high, p.name) for p, high, low in zip(profiles, cuts, cuts[1:], strict=False))
    return Schedule("mixed", profiles, rows, **changes)


def inputs(seed: int = 0, batch: int = 2) -> dict[str, torch.Tensor]:
    """Arguments of one forward at timestep 500."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, *LATENT[1:], generator=draw),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": torch.randn(batch, 6, 32, generator=draw),
    }


def forward(transformer, **changes) -> torch.Tensor:
    """Output of one forward, without gradient."""
    with torch.no_grad():
        return transformer(**inputs() | changes, return_dict=False)[0]


def video(pipe, steps: int = 3, guidance: float = 3.0, **changes) -> torch.Tensor:
    """Latents of a whole denoising loop, [1, 4, 5, 12, 14] unless `changes` ask for another size."""
    settings = {"height": 96, "width": 112, "num_frames": 17, "output_type": "latent", "max_sequence_length": 16}
    return pipe(
        prompt="a cat",
        negative_prompt="x",
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        **settings | changes,
    ).frames


def window_mask(tile, window, grid=GRID) -> torch.Tensor:
    """bool [L, L] in raster order: which key a query sees. Written from the definition, token by token."""
    axes = []
    for size, side, width in zip(grid, tile, window, strict=True):
        tiles = -(-size // side)
        allowed = torch.zeros(size, size, dtype=torch.bool)
        for query in range(size):
            low = min(max(query // side - width // 2, 0), tiles - width)
            for key in range(size):
                allowed[query, key] = low <= key // side < low + width
        axes.append(allowed)
    t, h, w = axes
    mask = t[:, None, None, :, None, None] & h[None, :, None, None, :, None] & w[None, None, :, None, None, :]
    return mask.reshape(t.shape[0] * h.shape[0] * w.shape[0], -1)


class MaskedProcessor(WanAttnProcessor):
    """Stock attention with a mask in raster order: the oracle of sparse attention."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.mask, rotary_emb)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())
