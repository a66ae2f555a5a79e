"""What a step minimizes. The student runs by the profile that inference will use at the batch's noise level.

distill: mean squared error of the student's velocity to the dense teacher's at the same latents (white-box
distillation, as arXiv 2602.13515 and others tune sparse attention). flow: rectified flow matching to the latents that
the teacher's trajectory ends in, with fresh noise.
"""

from __future__ import annotations

from typing import Any

import torch

from fpsgen.models.patch.apply import Handle
from fpsgen.train.data import Batch


def velocity(transformer: Any, handle: Handle, latents: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The student's, fp32 [B, C, T, H, W], by the profile of the batch."""
    device = transformer.device
    with handle.fixed_sigma(min(1.0, float(batch.sigmas[0]))):
        out = transformer(
            hidden_states=latents.to(device),
            timestep=batch.timesteps.to(device),
            encoder_hidden_states=batch.text.to(device),
            return_dict=False,
        )[0]
    return out.float()


def distill(transformer: Any, handle: Handle, batch: Batch) -> torch.Tensor:
    """Mean squared error, a scalar."""
    found = velocity(transformer, handle, batch.latents, batch)
    return (found - batch.velocity.to(found.device)).square().mean()


def flow(transformer: Any, handle: Handle, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """Mean squared error to noise - clean at clean + sigma * (noise - clean), a scalar. generator: on the CPU."""
    noise = torch.randn(batch.clean.shape, generator=generator)
    target = noise - batch.clean
    noisy = batch.clean + batch.sigmas.view(-1, 1, 1, 1, 1) * target
    found = velocity(transformer, handle, noisy, batch)
    return (found - target.to(found.device)).square().mean()
