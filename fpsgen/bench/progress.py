"""Many single runs as one line of progress."""

from __future__ import annotations

from fpsgen.pipeline.events import Timing


class Progress:
    """Counts the steps of all single runs on one scale. Events of those runs; their stages are not shown."""

    def __init__(self, timing: Timing, total: int) -> None:
        self._timing = timing
        self._done, self._total = 0, total
        self._name = ""

    def named(self, name: str) -> Progress:
        """From here on, steps are of this method."""
        self._name = name
        return self

    def step(self, index: int, total: int, seconds: float, note: str) -> None:
        self._timing.step(self._done, self._total, f"{self._name}: {note}")
        self._done += 1

    def warn(self, text: str) -> None:
        self._timing.warn(text)

    def stage_start(self, name: str) -> None: ...

    def stage_end(self, name: str, seconds: float) -> None: ...
