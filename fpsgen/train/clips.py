"""Flow matching as batches: latents of videos with noise added, and the velocity that leads from them to the noise.

Two sources, with the interface of data.Pairs: folders of `fpsgen train prep`, and the ends of a teacher's trajectories.
What a step sees follows from (seed, step) alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.fields import Field, choice, fields, many, text, whole
from fpsgen.files import read_json
from fpsgen.models.catalog.manifest import sha256
from fpsgen.models.catalog.stamp import file_stats, is_stamped, write_stamp
from fpsgen.text import show
from fpsgen.train.data import Batch, read_shard
from fpsgen.train.objective import Source
from fpsgen.train.prep.shards import DATA, SCHEMA
from fpsgen.train.sigmas import draw_sigmas, share

_REMEDY = "make it again with fpsgen train prep"


class Clips:
    """Samples of a data folder. A step's noise levels lie in windows of one profile: half of the steps draw it by how
    often logit-normal levels fall there, half evenly, since a profile must be trained where it runs.
    """

    def __init__(
        self, places: Sequence[tuple[Path, int]], null: torch.Tensor, schedule: Schedule, shift: float
    ) -> None:
        """places: shard and row of each sample. null: the empty prompt's embedding [L, D]."""
        self._places, self._null, self._shift = list(places), null, shift
        self._windows: dict[str, list[tuple[float, float]]] = {}
        for low, high, name in schedule.windows:
            self._windows.setdefault(name, []).append((low, high))
        self._mass = {
            name: sum(share(high, shift) - share(low, shift) for low, high in windows)
            for name, windows in self._windows.items()
        }

    @property
    def profiles(self) -> list[str]:
        return sorted(self._windows)

    def __len__(self) -> int:
        return len(self._places)

    def draw(self, step: int, seed: int, batch: int, null_share: float) -> Batch:
        chance = random.Random(f"clips {seed} {step}")
        even = chance.random() < 0.5
        profile = chance.choices(self.profiles, None if even else [self._mass[name] for name in self.profiles])[0]
        places = chance.choices(self._places, k=batch)
        nulls = [chance.random() < null_share for _ in places]
        return self._load(places, nulls, profile, torch.Generator().manual_seed(chance.getrandbits(62)))

    def every(self, profile: str, batch: int, limit: int = 1 << 30) -> Iterator[Batch]:
        """Up to `limit` samples in order with noise levels of the profile, the same ones at each call."""
        places = self._places[:: max(1, len(self._places) // limit)][:limit]
        for first in range(0, len(places), batch):
            some = places[first : first + batch]
            yield self._load(some, [False] * len(some), profile, torch.Generator().manual_seed(first))

    def _load(
        self, places: Sequence[tuple[Path, int]], nulls: Sequence[bool], profile: str, generator: torch.Generator
    ) -> Batch:
        rows = [(_read(path, "latents", row), _read(path, "text", row)) for path, row in places]
        clean = torch.stack([latents.float() for latents, _ in rows])
        words = torch.stack([self._null if null else text for (_, text), null in zip(rows, nulls, strict=True)])
        windows = self._windows[profile]
        masses = [share(high, self._shift) - share(low, self._shift) + 1e-9 for low, high in windows]
        chosen = int(torch.multinomial(torch.tensor(masses), 1, generator=generator))
        sigmas = draw_sigmas(len(rows), self._shift, *windows[chosen], generator=generator)
        return noised(Batch(clean, clean, clean, sigmas, 1000 * sigmas, words, profile), generator)


class TrajectoryEnds:
    """The same from the latents that a teacher's trajectories end in, at the noise levels of its pairs."""

    def __init__(self, pairs: Source) -> None:
        self._pairs = pairs

    @property
    def profiles(self) -> list[str]:
        return self._pairs.profiles

    def __len__(self) -> int:
        return len(self._pairs)

    def draw(self, step: int, seed: int, batch: int, null_share: float) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return noised(self._pairs.draw(step, seed, batch, null_share), generator)

    def every(self, profile: str, batch: int, limit: int = 1 << 30) -> Iterator[Batch]:
        for number, drawn in enumerate(self._pairs.every(profile, batch, limit)):
            yield noised(drawn, torch.Generator().manual_seed(number))


def noised(batch: Batch, generator: torch.Generator) -> Batch:
    """latents clean + sigma * (noise - clean) and velocity noise - clean. generator: on the CPU."""
    velocity = torch.randn(batch.clean.shape, generator=generator) - batch.clean
    latents = batch.clean + batch.sigmas.view(-1, 1, 1, 1, 1) * velocity
    return replace(batch, latents=latents, velocity=velocity)


def open_folder(
    folder: Path, size: tuple[int, int, int], model: Mapping[str, Any], schedule: Schedule, shift: float
) -> tuple[Clips, Clips]:
    """Samples to train on, and those that the folder holds out (all of them, if it holds out none). size: width,
    height, frames of the run. model: config of its transformer. Digests are compared once (models.catalog.stamp).
    Raises FpsgenError BAD_INPUT for a folder that is not whole, or of another size.
    """
    what = f"data {show(folder)}"
    row = fields(read_json(folder / DATA, 1 << 26, what), _FIELDS, what, more=True, example=_REMEDY)
    found = (row["width"], row["height"], row["frames"])
    if found != size:
        raise FpsgenError(
            f"{what} holds {found[0]}x{found[1]}, {found[2]} frames; the run is {size[0]}x{size[1]}, {size[2]} frames",
            "change the run, or prepare the videos at its size",
            BAD_INPUT,
        )
    places = []
    before = file_stats(folder, [folder / name for name in (DATA, *(entry["name"] for entry in row["shards"]))])
    checked = is_stamped(folder, before)
    for entry in row["shards"]:
        path = folder / entry["name"]
        there = path.is_file() and path.stat().st_size == entry["size"]
        if not there or not (checked or sha256(path) == entry["sha256"]):
            raise FpsgenError(f"{what}: {show(entry['name'])} is not whole", _REMEDY, BAD_INPUT)
        places += [(path, number) for number in range(entry["samples"])]
    if not checked:
        write_stamp(folder, before)
    held = set(row["held_out"])
    trained = [place for number, place in enumerate(places) if number not in held]
    if not trained:
        raise FpsgenError(f"{what} has no samples to train on", _REMEDY, BAD_INPUT)
    null = _read(folder / "null.safetensors", "text")[0]
    widths = (len(_read(places[0][0], "latents", places[0][1])), null.shape[-1])
    if widths != (model["in_channels"], model["text_dim"]):
        what = f"{what} was prepared with {show(row['model'])}: {widths[0]} latent channels, text of {widths[1]}"
        raise FpsgenError(f"{what}; the run's model has another shape", "prepare it with the run's model", BAD_INPUT)
    measured = [place for number, place in enumerate(places) if number in held] or places
    return Clips(trained, null, schedule, shift), Clips(measured, null, schedule, shift)


def _read(path: Path, name: str, row: int | None = None) -> torch.Tensor:
    return read_shard(path, [name], row, _REMEDY)[name]


def _shard(value: object) -> dict[str, Any]:
    spec = {"name": text(100), "size": whole(1, 1 << 50), "sha256": text(64), "samples": whole(1, 1 << 30)}
    return fields(value, spec, "a shard", more=True)


_FIELDS = {
    "schema": choice([SCHEMA]),
    "model": text(1000),
    "width": whole(16, 8192),
    "height": whole(16, 8192),
    "frames": whole(1, 1025),
    "held_out": many(whole(0, 1 << 40), 0, 1 << 30, ()),
    "shards": many(Field(_shard, "a shard with name, size, sha256 and samples"), 1, 1_000_000),
}
