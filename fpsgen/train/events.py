"""Receives the progress of a run."""

from __future__ import annotations

from typing import Protocol


class Events(Protocol):
    def step(self, index: int, total: int, note: str) -> None:
        """Step `index` of `total` has ended."""


class Silent:
    def step(self, index: int, total: int, note: str) -> None:
        pass
