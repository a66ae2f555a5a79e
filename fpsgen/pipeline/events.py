"""What work reports while it runs, and where time and memory went. Needs no torch: its import is timed too."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from fpsgen.signals import check_stop


class Events(Protocol):
    """Receives the events of work while it runs. Times are in seconds."""

    def stage_start(self, name: str) -> None: ...

    def stage_end(self, name: str, seconds: float) -> None: ...

    def step(self, index: int, total: int, seconds: float, note: str) -> None: ...

    def warn(self, text: str) -> None: ...


class Timing:
    """Stage and step times in seconds on a monotonic clock, reported to `events` as they happen."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.stages: dict[str, float] = {}
        self.steps: list[float] = []
        self.warnings: list[str] = []
        self.running = ""  # the stage at work
        self._said = self.warnings  # with those of other parts of the same work
        self._part: Timing | None = None
        self._start = self._last = time.monotonic()

    @contextmanager
    def part(self, events: Events) -> Iterator[Timing]:
        """A Timing of one part of the work, such as a video of a batch. Warnings of the block are its own, whoever
        gives them; what was said before is not shown again.
        """
        part = Timing(events)
        part._said = self._said
        self._part = part
        try:
            yield part
        finally:
            self._part = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one stage. A signal that came meanwhile ends the work here."""
        check_stop()
        self.running = name
        self.events.stage_start(name)
        self._last = start = time.monotonic()
        yield
        self.stages[name] = time.monotonic() - start
        self.events.stage_end(name, self.stages[name])

    def step(self, index: int, total: int, note: str, seconds: float | None = None) -> None:
        """A denoising step has ended. seconds: what it took, None for the time since the one before. A signal that came
        meanwhile ends the work here.
        """
        check_stop()
        now = time.monotonic()
        self.steps.append(now - self._last if seconds is None else seconds)
        self._last = now
        self.events.step(index, total, self.steps[-1], note)

    def warn(self, text: str) -> None:
        """Something that a person should know, said once."""
        if self._part is not None:
            self._part.warn(text)
            return
        new = text not in self._said
        for texts in (self.warnings, self._said):
            if text not in texts:
                texts.append(text)
        if new:
            self.events.warn(text)

    @property
    def total(self) -> float:
        """Seconds since this timer was made."""
        return time.monotonic() - self._start

    def as_json(self) -> dict:
        """Rounded to milliseconds."""
        return {
            "total_s": round(self.total, 3),
            "stages_s": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "steps_s": [round(seconds, 4) for seconds in self.steps],
        }


def peak_rss() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
