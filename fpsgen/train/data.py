"""Draw pairs of teacher shards. What a step sees follows from (seed, step) alone, so a run resumes anywhere.

A step's pairs share a profile of the schedule, since one runs in a forward: half of the steps draw it by how many pairs
lie in its windows, as inference visits them, half evenly, since few steps of inference fall into some.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


_REMEDY = "remove it, and run again"
_TENSORS = ("latents", "velocity", "velocity_null", "sigmas", "timesteps", "clean", "text", "text_null")
Shard = Path | Mapping[str, torch.Tensor]


class Pairs:
    """The pairs of some shards: files that are read when pairs are drawn, or their tensors in memory.

    Raises FpsgenError BAD_INPUT for a broken shard, one of another size, or numbers that are not finite.
    """

    def __init__(self, shards: Sequence[Shard], schedule: Schedule) -> None:
        self.shards = list(shards)
        self._places: dict[str, list[tuple[int, int]]] = {}  # by profile: shard, step
        sizes: dict[str, tuple[int, ...]] = {}
        for number, shard in enumerate(self.shards):
            if isinstance(shard, Path):
                _check_sizes(shard, sizes)
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


@contextmanager
def _opened(path: Path, remedy: str) -> Iterator[Any]:
    """A file of tensors. Raises FpsgenError BAD_INPUT with the remedy where it is broken, also while it is read."""
    try:
        with open_tensors(path) as file:
            yield file
    except (OSError, SafetensorError, IndexError) as error:
        raise FpsgenError(f"{show(path)} is not a whole shard: {show(error, 120)}", remedy, BAD_INPUT) from error


def read_shard(path: Path, names: Sequence[str], row: int | None, remedy: str) -> dict[str, torch.Tensor]:
    """Tensors of a file, or one row of each. Raises FpsgenError BAD_INPUT with the remedy where the file is broken or
    they are not finite: a loss would tell only that something was.
    """
    with _opened(path, remedy) as file:
        found = {name: file.get_tensor(name) if row is None else file.get_slice(name)[row] for name in names}
    wrong = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if wrong:
        raise FpsgenError(f"{show(path)} holds {wrong[0]} that are not finite", remedy, BAD_INPUT)
    return found


def _read(shard: Shard, names: Sequence[str], row: int | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a shard, or one row of each."""
    if isinstance(shard, Path):
        return read_shard(shard, names, row, _REMEDY)
    return {name: shard[name] if row is None else shard[name][row] for name in names}


def _check_sizes(shard: Path, sizes: dict[str, tuple[int, ...]]) -> None:
    """Raise FpsgenError BAD_INPUT where a file's pairs are of other sizes than those before. sizes: of these."""
    with _opened(shard, _REMEDY) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in _TENSORS}
    steps, *latents = found["latents"]
    expected = dict.fromkeys(("latents", "velocity", "velocity_null"), (steps, *latents)) | {"clean": tuple(latents)}
    expected |= dict.fromkeys(("sigmas", "timesteps"), (steps,)) | sizes
    wrong = next((name for name, size in expected.items() if found[name] != size), None)
    if wrong:
        what = f"{show(shard)}: {wrong} are {found[wrong]}, not {expected[wrong]}"
        raise FpsgenError(what, _REMEDY, BAD_INPUT)
    sizes.update(found)
