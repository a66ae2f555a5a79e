"""The same prompt, seed and noise through several methods: what each costs, how far its video is from the baseline's.

Always strict: a step that does not run by the plan is an error, not a figure. Every method has its own warm-up; the
repeats go round the methods, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fpsgen.bench.provenance import provenance, spread
from fpsgen.errors import DISK, FpsgenError
from fpsgen.evaluate.metrics import psnr, ssim
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.generate import mean_density, peak_rss, render, write_video
from fpsgen.pipeline.loaded_model import Opened, open_model
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.size import token_grid

SCHEMA = "fpsgen.bench/1"
OURS = "fps"
WARM_STEPS = {"cuda": 3, "cpu": 1}  # kernels are compiled in the first step of each kind


@dataclass
class Runs:
    """What the repeats of one method gave. Times in seconds."""

    method: str
    stages: dict[str, list[float]] = field(default_factory=dict)
    totals: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    attention: list[float | None] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    frames: np.ndarray | None = None
    path: Path | None = None
    cuda_bytes: int | None = None


def methods_to_run(compare: tuple[str, ...]) -> list[str]:
    """The baseline first: bf16 if it is named, else the first; then the others, fps last."""
    named = list(dict.fromkeys(compare))
    others = sorted((name for name in named if name != OURS), key=lambda name: name != "bf16")
    return [*others, OURS]


def run(base: GenerateRequest, compare: tuple[str, ...], repeats: int, random: bool, timing: Timing) -> list[dict]:
    """One row per method, baseline first; see README, "Bench", for what the keys mean.

    base: the video; its output names the folder for MP4s (none with random weights). Raises as generate.run does.
    """
    opened = open_model(base, timing, random)
    names = methods_to_run(compare)
    runs = {name: Runs(name) for name in names}
    for name in names:
        with _told(timing, f"{name} warm-up"):
            _measure(opened, base, Runs(name), warm=True)
    for turn in range(repeats):
        for name in names:
            with _told(timing, name if repeats == 1 else f"{name} {turn + 1}/{repeats}"):
                _measure(opened, base, runs[name])
    if not random:
        for name in names:
            runs[name].path = _save(runs[name], base)
    facts = provenance(opened.device)
    baseline = runs[names[0]]
    return [_row(runs[name], baseline, base, opened, facts) for name in names]


@contextmanager
def _told(timing: Timing, name: str) -> Iterator[None]:
    with timing.stage(name):
        yield


def _measure(opened: Opened, base: GenerateRequest, runs: Runs, warm: bool = False) -> None:
    """One video by one method, added to `runs`. Warming up, it is a short one that is thrown away."""
    steps = min(base.steps, WARM_STEPS[opened.device.type]) if warm else base.steps
    method = None if runs.method == OURS else runs.method
    request = replace(base, method=method, strict=True, steps=steps)
    timing = Timing(_Silent())
    made = render(opened, request, timing)
    for stage, seconds in timing.stages.items():
        runs.stages.setdefault(stage, []).append(seconds)
    runs.totals.append(sum(timing.stages.values()))
    runs.steps += timing.steps
    runs.attention.append(made.attention_s)
    runs.report, runs.frames = made.attention, made.frames
    if opened.device.type == "cuda":
        import torch

        runs.cuda_bytes = torch.cuda.max_memory_allocated(opened.device)
    runs.report["recipe"] = made.recipe


def _save(runs: Runs, base: GenerateRequest) -> Path:
    assert runs.frames is not None
    path = base.output.parent / f"{runs.method}.mp4"
    return write_video(runs.frames, replace(base, output=path, numbered=False, overwrite=True), runs.report["recipe"])


def _row(runs: Runs, baseline: Runs, base: GenerateRequest, opened: Opened, facts: dict[str, Any]) -> dict[str, Any]:
    denoise = statistics.median(runs.stages["denoise"])
    attention = [seconds for seconds in runs.attention if seconds is not None]
    grid = token_grid(base.frames, base.height, base.width)
    row = {
        "schema": SCHEMA,
        **facts,
        "model": base.model.name,
        "random_weights": opened.random,
        "prompt": base.prompt,
        "seed": base.seed,
        "width": base.width,
        "height": base.height,
        "frames": base.frames,
        "tokens": grid[0] * grid[1] * grid[2],
        "steps": base.steps,
        "guidance": base.guidance,
        "shift": base.shift,
        "dtype": str(opened.dtype).removeprefix("torch."),
        "method": runs.method,
        "schedule": runs.report["schedule"],
        "baseline": baseline.method,
        "strict": True,
        "repeats": len(runs.totals),
        "stages_s": {name: spread(values) for name, values in runs.stages.items()},
        "step_s": spread(runs.steps),
        "profiles": _profiles(runs),
        "total_s": spread(runs.totals),
        "attention_s": spread(attention) if attention else None,
        "attention_share": round(statistics.median(attention) / denoise, 4) if attention else None,
        "density": mean_density(runs.report),
        "kernels": runs.report["kernels"],
        "peak_memory": {"rss_bytes_of_process": peak_rss(), "cuda_bytes": runs.cuda_bytes},
        "speedup_denoise": round(statistics.median(baseline.stages["denoise"]) / denoise, 3),
        "speedup_total": round(statistics.median(baseline.totals) / statistics.median(runs.totals), 3),
        "psnr_db": None,
        "ssim": None,
        "video": str(runs.path) if runs.path else None,
    }
    if runs is not baseline and runs.frames is not None and baseline.frames is not None:
        peak = float(np.median(psnr(runs.frames, baseline.frames)))
        row["psnr_db"] = round(peak, 2) if np.isfinite(peak) else None  # JSON has no infinity; ssim is 1 then
        row["ssim"] = round(float(np.median(ssim(runs.frames, baseline.frames))), 4)
    return row


def _profiles(runs: Runs) -> list[dict[str, Any]]:
    """Per profile of the schedule: its steps, their density and their time."""
    table: dict[str, dict[str, Any]] = {}
    count = len(runs.report["steps"])
    for index, step in enumerate(runs.report["steps"]):
        entry = table.setdefault(step["profile"], {"profile": step["profile"], "steps": 0, "times": []})
        entry["steps"] += 1
        entry |= {"method": step["method"], "kernel": step["kernel"], "density": round(step["density"], 4)}
        entry["times"] += runs.steps[index::count]
    return [{"step_s": spread(entry.pop("times")), **entry} for entry in table.values()]


def append_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Add rows to a JSON-lines file, each in one write. Raises FpsgenError DISK."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise FpsgenError(
            f"{path} cannot be written: {error.strerror}", "choose another folder with -o", DISK
        ) from error


class _Silent:
    """Events of the single runs; the bench reports whole runs as its stages."""

    def stage_start(self, name: str, note: str = "") -> None: ...

    def stage_end(self, name: str, seconds: float) -> None: ...

    def step(self, index: int, total: int, seconds: float, note: str) -> None: ...

    def warn(self, text: str) -> None: ...
