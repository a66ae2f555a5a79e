"""A teacher that runs along: pairs are made when they are drawn and never stored, each trajectory from fresh noise.

Steps are taken in blocks of as many as a trajectory has. A block makes one trajectory for each sample of a batch, keeps
them in memory, and its steps draw from their pairs as `Pairs` does. So a step costs the same two forwards of the
teacher for each sample as stored pairs cost once, and a run that goes on makes its block anew: at most one is lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch

from fpsgen.attention.schedule import Schedule
from fpsgen.train.data import Batch, Pairs, profile_name

Make = Callable[[str, int], dict[str, torch.Tensor]]


class LivePairs:
    """The interface of Pairs. make: (prompt, seed of the noise) to the tensors of a shard, see `teacher.trajectories`;
    its model is dense, and not the one that is trained. sigmas: of its steps, [S].
    """

    def __init__(self, make: Make, prompts: Sequence[str], schedule: Schedule, sigmas: torch.Tensor) -> None:
        self._make, self._prompts, self._schedule = make, list(prompts), schedule
        self._sigmas = sigmas.tolist()
        self._block: tuple[tuple[int, int, int], Pairs] | None = None

    @property
    def profiles(self) -> list[str]:
        return sorted({profile_name(self._schedule, sigma) for sigma in self._sigmas})

    def __len__(self) -> int:
        """Pairs of one trajectory for each prompt; there is no end to them."""
        return len(self._sigmas) * len(self._prompts)

    def draw(self, step: int, seed: int, batch: int, null_share: float) -> Batch:
        return self._pairs(step // len(self._sigmas), seed, batch).draw(step, seed, batch, null_share)

    def every(self, profile: str, batch: int, limit: int = 1 << 30) -> Iterator[Batch]:
        """The pairs of the first block."""
        yield from self._pairs(0, 0, batch).every(profile, batch, limit)

    def _pairs(self, block: int, seed: int, batch: int) -> Pairs:
        key = (block, seed, batch)
        if self._block is None or self._block[0] != key:
            self._block = None  # its memory, before the next one takes as much
            numbers = range(block * batch, (block + 1) * batch)
            made = [self._make(self._prompt(number, seed), trajectory_seed(seed, number)) for number in numbers]
            self._block = key, Pairs(made, self._schedule)
        return self._block[1]

    def _prompt(self, number: int, seed: int) -> str:
        """Every prompt once, in an order of its own in each cycle."""
        cycle, place = divmod(number, len(self._prompts))
        order = list(range(len(self._prompts)))
        random.Random(f"{seed} {cycle}").shuffle(order)
        return self._prompts[order[place]]


def trajectory_seed(seed: int, number: int) -> int:
    """The seed of a trajectory's noise. number: of the prompt, or of the trajectory."""
    return seed * 100_003 + number
