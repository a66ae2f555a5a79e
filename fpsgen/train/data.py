"""Draw pairs of teacher shards. What a step sees follows from (seed, step) alone, so a run resumes anywhere.

A step's pairs share a profile of the schedule, since one runs in a forward: half of the steps draw it by how many pairs
lie in its windows, as inference visits them, half evenly, since few steps of inference fall into some.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.files import open_tensors
from fpsgen.text import show


@dataclass(frozen=True)
class Batch:
    """latents, velocity, clean [B, C, T, H, W] fp32; sigmas, timesteps fp32 [B]; text [B, L, D]. profile: of all."""

    latents: torch.Tensor
    velocity: torch.Tensor
    clean: torch.Tensor
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    text: torch.Tensor
    profile: str


Shard = Path | Mapping[str, torch.Tensor]


class Pairs:
    """The pairs of some shards: files that are read when pairs are drawn, or their tensors in memory.

    Raises FpsgenError BAD_INPUT for a broken shard.
    """

    def __init__(self, shards: Sequence[Shard], schedule: Schedule) -> None:
        self.shards = list(shards)
        self._places: dict[str, list[tuple[int, int]]] = {}  # by profile: shard, step
        for number, shard in enumerate(self.shards):
            for step, sigma in enumerate(_read(shard, ("sigmas",))["sigmas"].tolist()):
                self._places.setdefault(profile_name(schedule, sigma), []).append((number, step))

    @property
    def profiles(self) -> list[str]:
        return sorted(self._places)

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    def draw(self, step: int, seed: int, batch: int, null_share: float) -> Batch:
        chance = random.Random(f"{seed} {step}")
        names = self.profiles
        even = chance.random() < 0.5
        profile = chance.choices(names, None if even else [len(self._places[name]) for name in names])[0]
        places = chance.choices(self._places[profile], k=batch)
        return self._load(places, profile, chance.random() < null_share)

    def every(self, profile: str, batch: int, limit: int = 1 << 30):
        """All pairs of a profile in order, evenly thinned to at most `limit`, in batches."""
        places = self._places.get(profile, [])
        places = places[:: max(1, len(places) // limit)][:limit]
        for first in range(0, len(places), batch):
            yield self._load(places[first : first + batch], profile, False)

    def _load(self, places: list[tuple[int, int]], profile: str, null: bool) -> Batch:
        rows = []
        for shard, step in places:
            velocity, text = ("velocity_null", "text_null") if null else ("velocity", "text")
            names = ("latents", velocity, "sigmas", "timesteps")
            found = _read(self.shards[shard], names, step) | _read(self.shards[shard], ("clean", text))
            rows.append(
                (found["latents"], found[velocity], found["clean"], *(found[name] for name in names[2:]), found[text])
            )
        latents, velocity, clean, sigmas, timesteps, text = (torch.stack(column) for column in zip(*rows, strict=True))
        return Batch(latents.float(), velocity.float(), clean.float(), sigmas, timesteps, text, profile)


def profile_name(schedule: Schedule, sigma: float) -> str:
    """The profile that runs at a noise level; a scheduler's first may be a little above 1."""
    return schedule.profile_at(min(1.0, sigma)).name


def _read(shard: Shard, names: Sequence[str], row: int | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a shard, or one row of each."""
    if not isinstance(shard, Path):
        return {name: shard[name] if row is None else shard[name][row] for name in names}
    try:
        with open_tensors(shard) as file:
            return {name: file.get_tensor(name) if row is None else file.get_slice(name)[row] for name in names}
    except (OSError, SafetensorError, IndexError) as error:
        raise FpsgenError(
            f"{show(shard)} is not a whole shard of pairs: {show(error, 120)}", "remove it, and run again", BAD_INPUT
        ) from error
