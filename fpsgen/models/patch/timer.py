"""How long the calls of a component take: what a speed-up of attention, or of linear layers, can and cannot change."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Timer:
    """Adds up the time of calls by component: CUDA events on a GPU, the wall clock elsewhere. Threads may share it.

    For "attention" a call is the attention operator alone (quantization included), without projections, norms and
    rotary embedding. Calls in compiled code are not seen.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def measure(self, component: str, device: torch.device) -> Iterator[None]:
        """Time the block, on `device`'s current stream if it is a GPU, whichever device is the current one."""
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record(stream)
            yield
            end.record(stream)
            with self._lock:
                self._events.append((component, begin, end))
                self._add(component, 0.0, 1)
        else:
            start = time.perf_counter()
            yield
            with self._lock:
                self._add(component, time.perf_counter() - start, 1)

    def calls(self, component: str = "attention") -> int:
        """Number of calls that were measured so far."""
        return self._calls.get(component, 0)

    def seconds(self, component: str = "attention") -> float | None:
        """Time of all calls so far; None where there were none. Waits for the device."""
        with self._lock:
            for name, begin, end in self._events:
                end.synchronize()
                self._add(name, begin.elapsed_time(end) / 1e3, 0)
            self._events.clear()
            return self._seconds.get(component)

    def _add(self, component: str, seconds: float, calls: int) -> None:
        self._seconds[component] = self._seconds.get(component, 0.0) + seconds
        self._calls[component] = self._calls.get(component, 0) + calls
