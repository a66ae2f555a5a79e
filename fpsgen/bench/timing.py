"""Times of single calls, on a GPU or a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch


class Timings(NamedTuple):
    """milliseconds of single calls; host_us: median time that the CPU needs for one, None where it does the work."""

    milliseconds: list[float]
    host_us: float | None


def measure(call: Callable[[], object], seconds: float, device: torch.device) -> Timings:
    """At least three calls, for about `seconds`; warmed up before.

    On a GPU they are queued behind each other in runs of about 10 ms; before a run of short ones go two that do not
    count, for they wait for the CPU.
    """
    times: list[float] = []
    if device.type != "cuda":
        call()
        limit = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < limit:
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3)
        return Timings(times, None)
    call()
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    once = time.perf_counter() - begin
    run = min(32, max(1, round(0.01 / once)))
    lead = 2 if once < 0.02 else 0
    host: list[float] = []
    limit = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < limit:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(run + 1)]
        for _ in range(lead):
            call()
        begin = time.perf_counter()
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        host.append((time.perf_counter() - begin) / run * 1e6)
        torch.cuda.synchronize(device)
        times += [a.elapsed_time(b) for a, b in pairwise(events)]
    return Timings(times, statistics.median(host))


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph, which costs the CPU one launch."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # torch's own stays on the first device captured on
        call()
    return graph.replay
