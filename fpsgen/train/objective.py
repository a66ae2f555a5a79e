"""What a step minimizes: mean squared error of the student's velocity to the batch's, by the profile that inference
uses at its noise levels.

distill: the velocity is the dense teacher's at the same latents (white-box distillation, as arXiv 2602.13515 and others
tune sparse attention). flow: it leads from the latents of a video to noise (rectified flow, arXiv 2403.03206).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch

from fpsgen.models.patch.apply import Handle
from fpsgen.train.data import Batch

DISTILL, FLOW = "distill", "flow"


class Source(Protocol):
    """Where batches come from. What `draw` gives follows from (step, seed) alone, and is of one profile."""

    @property
    def profiles(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def draw(self, step: int, seed: int, batch: int, null_share: float) -> Batch: ...

    def every(self, profile: str, batch: int, limit: int = ...) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Objective:
    """name: "distill" or "flow". weight: of its loss. train, held_out: what is trained on, and measured."""

    name: str
    weight: float
    train: Source
    held_out: Source


def velocity_error(
    transformer: Any, handle: Handle | None, batch: Batch, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Mean squared error of the velocity, a scalar in fp32. handle: of the patches on the transformer, if there are
    any. dtype: that it computes in, by default the one of its weights.
    """
    device, dtype = transformer.device, dtype or transformer.dtype
    given = {
        "hidden_states": batch.latents.to(device, dtype),
        "timestep": batch.timesteps.to(device),
        "encoder_hidden_states": batch.text.to(device, dtype),
        "return_dict": False,
    }
    if handle is None:
        found = transformer(**given)[0]
    else:
        with handle.fixed_sigma(min(1.0, float(batch.sigmas[0]))):
            found = transformer(**given)[0]
    return (found.float() - batch.velocity.to(device)).square().mean()


def rows(batch: Batch, first: int, count: int) -> Batch:
    """Some samples of a batch."""
    parts = {
        field.name: value[first : first + count]
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    }
    return replace(batch, **parts)
