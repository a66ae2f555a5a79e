"""How long self-attention takes, measured around each call: what a speed-up of attention can and cannot change."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch


class AttentionClock:
    """Adds up the time of the blocks it is entered around: CUDA events on a GPU, the wall clock on a CPU.

    A block is the attention operator alone (quantization included), without projections, norms and rotary embedding.
    """

    def __init__(self) -> None:
        self._wall = 0.0
        self._calls = 0
        self._begun = 0.0
        self._events: list[tuple[Any, Any]] = []

    def __call__(self, device: torch.device) -> AttentionClock:
        """Name the device of the block that is entered next."""
        self._cuda = device.type == "cuda"
        return self

    def __enter__(self) -> None:
        self._calls += 1
        if self._cuda:
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()
        else:
            self._begun = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._wall += time.perf_counter() - self._begun

    def seconds(self) -> float | None:
        """Time of all calls so far; None where there were none (compiled code is not seen). Waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
            self._wall += sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
            self._events.clear()
        return self._wall if self._calls else None
