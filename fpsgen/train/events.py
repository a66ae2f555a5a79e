"""Who is told how a run gets on."""

from __future__ import annotations

from typing import Protocol


class Events(Protocol):
    def step(self, index: int, total: int, note: str) -> None:
        """Step `index` of `total` has ended."""


class Silent:
    def step(self, index: int, total: int, note: str) -> None:
        pass
