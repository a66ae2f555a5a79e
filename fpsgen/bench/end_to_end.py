"""The same prompt, seed and noise through several methods: what each costs, and how far its video is from the
baseline's.

Always strict: a step that does not run by the plan is an error, not a figure. Every method is warmed up on its own.
Repeats are interleaved in random order, so that a machine that slows down slows all methods.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fpsgen.bench.provenance import provenance
from fpsgen.bench.rows import bench_row
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.generate import render, write_video
from fpsgen.pipeline.loaded_model import Opened, open_model
from fpsgen.pipeline.request import GenerateRequest

OURS = "fps"
WARM_STEPS = {"cuda": 3, "cpu": 1}  # kernels are compiled in the first step of each kind


@dataclass
class Runs:
    """What the repeats of one method gave. Times in seconds; steps: one list of step times per repeat."""

    method: str
    stages: dict[str, list[float]] = field(default_factory=dict)
    totals: list[float] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)
    attention: list[float | None] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    frames: np.ndarray | None = None
    path: Path | None = None
    cuda_bytes: int | None = None


def methods_to_run(compare: tuple[str, ...]) -> list[str]:
    """The baseline first: bf16 if it is named, else the first; then the others, fps last."""
    named = list(dict.fromkeys(compare))
    others = sorted((name for name in named if name != OURS), key=lambda name: name != "bf16")
    return [*others, OURS]


def run(
    base: GenerateRequest,
    compare: tuple[str, ...],
    repeats: int,
    random_weights: bool,
    timing: Timing,
    command: str = "",
) -> list[dict[str, Any]]:
    """One row per method, baseline first; rows.bench_row says what the keys mean.

    base: the video; its output names the folder for MP4s (none with random weights). command: what repeats the bench.
    Raises as generate.run does.
    """
    opened = open_model(base, timing, random_weights)
    names = methods_to_run(compare)
    runs = {name: Runs(name) for name in names}
    order = [name for _ in range(repeats) for name in names]
    random.Random(base.seed).shuffle(order)
    warm = min(base.steps, WARM_STEPS[opened.device.type])
    progress = _Progress(timing, len(names) * warm + len(order) * base.steps)
    with timing.stage("bench"):
        for name in names:
            progress.name = f"{name}, warm-up"
            _measure(opened, replace(base, steps=warm), Runs(name), progress)
        for name in order:
            progress.name = name
            _measure(opened, base, runs[name], progress)
    if not random_weights:
        for name in names:
            runs[name].path = _save(runs[name], base)
    facts = {**provenance(opened.device), "command": command}
    return [bench_row(runs[name], runs[names[0]], base, opened, facts) for name in names]


def _measure(opened: Opened, base: GenerateRequest, runs: Runs, progress: _Progress) -> None:
    """One video by one method, added to `runs`."""
    request = replace(base, method=None if runs.method == OURS else runs.method, strict=True)
    timing = Timing(progress)
    made = render(opened, request, timing)
    for stage, seconds in timing.stages.items():
        runs.stages.setdefault(stage, []).append(seconds)
    runs.totals.append(sum(timing.stages.values()))
    runs.steps.append(list(timing.steps))
    runs.attention.append(made.attention_s)
    runs.report, runs.recipe, runs.frames = made.attention, made.recipe, made.frames
    if opened.device.type == "cuda":
        import torch

        runs.cuda_bytes = torch.cuda.max_memory_allocated(opened.device)


def _save(runs: Runs, base: GenerateRequest) -> Path:
    assert runs.frames is not None
    path = base.output.parent / f"{runs.method}.mp4"
    return write_video(runs.frames, replace(base, output=path, numbered=False, overwrite=True), runs.recipe)


class _Progress:
    """Events of the single videos, shown as steps of the whole bench: so many of so many, and the time left."""

    def __init__(self, timing: Timing, total: int) -> None:
        self.name = ""
        self._timing, self._total, self._done = timing, total, 0

    def stage_start(self, name: str, note: str = "") -> None: ...

    def stage_end(self, name: str, seconds: float) -> None: ...

    def step(self, index: int, total: int, seconds: float, note: str) -> None:
        self._timing.step(self._done, self._total, self.name)
        self._done += 1

    def warn(self, text: str) -> None:
        self._timing.warn(text)
