"""The ends of denoising steps on a device that runs behind the host: latents judged and times taken without waiting.

A step's verdict is read when the host has queued the step after it, so the device always has work. The host is one
step ahead at the most: a signal, and latents that are no numbers, end the run one step late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fpsgen.pipeline.checks import check_latents, latents_spread
from fpsgen.pipeline.events import Timing


@dataclass(frozen=True)
class _Ended:
    """One step. spread: of its latents, in pinned memory on a GPU. event: recorded behind it, None on a CPU."""

    index: int
    note: str
    spread: torch.Tensor
    event: Any


class StepEnds:
    """Reports every step to `timing` once it has ended. total: number of steps."""

    def __init__(self, device: torch.device, total: int, timing: Timing) -> None:
        self._on_gpu = device.type == "cuda"
        self._total, self._timing = total, timing
        self._start = self._event(device) if self._on_gpu else None
        self._waiting: _Ended | None = None

    def queued(self, index: int, latents: torch.Tensor, note: str) -> None:
        """All of a step's work has been queued. Raises FpsgenError NUMERIC for the latents of this step (on a GPU, of
        the one before).
        """
        spread = latents_spread(latents)
        if not self._on_gpu:
            self._report(_Ended(index, note, spread, None))
            return
        pinned = torch.empty_like(spread, device="cpu", pin_memory=True).copy_(spread, non_blocking=True)
        before, self._waiting = self._waiting, _Ended(index, note, pinned, self._event(latents.device))
        if before is not None:
            self._report(before)

    def finish(self) -> None:
        """Wait for the last step."""
        if self._waiting is not None:
            self._report(self._waiting)
            self._waiting = None

    def _report(self, ended: _Ended) -> None:
        seconds = None
        if ended.event is not None and self._start is not None:
            ended.event.synchronize()
            seconds = self._start.elapsed_time(ended.event) / 1e3
            self._start = ended.event
        check_latents(float(ended.spread), f"step {ended.index + 1} of {self._total}")
        self._timing.step(ended.index, self._total, ended.note, seconds)

    @staticmethod
    def _event(device: torch.device) -> Any:
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
