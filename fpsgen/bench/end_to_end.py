"""The same prompt, seed and noise through several methods: what each costs, how far its video is from the baseline's.

Always strict: a step that does not run by the plan is an error, not a figure. Every method has its own warm-up; the
repeats go round the methods, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fpsgen.bench.plan import OURS, methods_to_run
from fpsgen.bench.provenance import provenance, spread
from fpsgen.errors import DISK, FpsgenError
from fpsgen.evaluate.metrics import psnr, ssim
from fpsgen.files import write_text
from fpsgen.pipeline.events import Events, Timing
from fpsgen.pipeline.loaded_model import LoadedModel, load_model
from fpsgen.pipeline.output import write_output
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.run import mean_density, peak_rss, render
from fpsgen.pipeline.size import token_grid
from fpsgen.report.bench import page

SCHEMA = "fpsgen.bench/1"
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
    psnr_db: float | None = None  # to the baseline's video
    ssim: float | None = None


def run(
    base: GenerateRequest, compare: tuple[str, ...], repeats: int, random: bool, timing: Timing, command: str = ""
) -> list[dict]:
    """One row per method, baseline first; docs/figures says what the keys mean.

    base: the video; its output names the folder for MP4s (none with random weights). command: the line that was
    typed, kept in the rows. Raises as pipeline.run.run does.
    """
    model = load_model(base, timing, random)
    names = methods_to_run(compare)
    runs = {name: Runs(name) for name in names}
    warm = min(base.sampling.steps, WARM_STEPS[model.device.type])
    progress = _Steps(timing, len(names) * (warm + repeats * base.sampling.steps))
    with timing.stage("bench"):
        for name in names:
            _measure(model, base.replace(sampling={"steps": warm}), Runs(name), progress.named(f"{name} warm-up"))
        for repeat in range(repeats):
            for name in names:
                count = "" if repeats == 1 else f" {repeat + 1}/{repeats}"
                _measure(model, base, runs[name], progress.named(name + count))
    if not random:
        with timing.stage("compare"):
            for name in names:
                runs[name].path = _save(runs[name], base)
            _compare_videos([runs[name] for name in names])
    facts = {"schema": SCHEMA, **provenance(model.device), "command": command, "random_weights": model.random}
    facts["dtype"] = str(model.dtype).removeprefix("torch.")
    return [facts | _row(runs[name], runs[names[0]], base) for name in names]


def _measure(model: LoadedModel, base: GenerateRequest, runs: Runs, events: Events) -> None:
    """One video by one method, added to `runs`."""
    method = None if runs.method == OURS else runs.method
    request = base.replace(attention={"method": method, "strict": True})
    timing = Timing(events)
    made = render(model, request, timing)
    for stage, seconds in timing.stages.items():
        runs.stages.setdefault(stage, []).append(seconds)
    runs.totals.append(sum(timing.stages.values()))
    runs.steps += timing.steps
    runs.attention.append(made.attention_s)
    runs.report, runs.frames = made.attention, made.frames
    if model.device.type == "cuda":
        import torch

        runs.cuda_bytes = torch.cuda.max_memory_allocated(model.device)
    runs.report["recipe"] = made.recipe


def _save(runs: Runs, base: GenerateRequest) -> Path:
    assert runs.frames is not None
    path = base.output.path.with_name(f"{runs.method}.mp4")
    request = base.replace(output={"path": path, "numbered": False, "overwrite": True})
    return write_output(runs.frames, request, runs.report["recipe"])


def _compare_videos(runs: list[Runs]) -> None:
    """PSNR and SSIM of each video to the first, medians over its frames."""
    first = runs[0].frames
    for other in runs[1:]:
        assert first is not None and other.frames is not None
        peak = float(np.median(psnr(other.frames, first)))
        other.psnr_db = round(peak, 2) if np.isfinite(peak) else None  # JSON has no infinity; ssim is 1 then
        other.ssim = round(float(np.median(ssim(other.frames, first))), 4)


def _row(runs: Runs, baseline: Runs, base: GenerateRequest) -> dict[str, Any]:
    denoise = statistics.median(runs.stages["denoise"])
    attention = [seconds for seconds in runs.attention if seconds is not None]
    video, sampling = base.video, base.sampling
    grid = token_grid(video.frames, video.height, video.width)
    return {
        "model": base.model.spec.name,
        "prompt": base.prompt.text,
        "seed": sampling.seed,
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
        "tokens": grid[0] * grid[1] * grid[2],
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "shift": sampling.shift,
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
        "psnr_db": runs.psnr_db,
        "ssim": runs.ssim,
        "video": str(runs.path) if runs.path else None,
    }


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


def save(rows: list[dict[str, Any]], root: Path, place: Path) -> Path:
    """Append the rows to bench.jsonl in `root`, write the page in `place` if there are videos; the path to print."""
    append_rows(rows, root / "bench.jsonl")
    if rows[0]["video"] is None:
        return root / "bench.jsonl"
    return write_text(page(rows), place / "index.html", overwrite=True)


class _Steps:
    """Counts the steps of all single runs on one scale. Events of those runs; their stages are not shown."""

    def __init__(self, timing: Timing, total: int) -> None:
        self._timing = timing
        self._done, self._total = 0, total
        self._name = ""

    def named(self, name: str) -> _Steps:
        """From here on, steps are of this method."""
        self._name = name
        return self

    def step(self, index: int, total: int, seconds: float, note: str) -> None:
        self._timing.step(self._done, self._total, f"{self._name}: {note}")
        self._done += 1

    def warn(self, text: str) -> None:
        self._timing.warn(text)

    def stage_start(self, name: str, note: str = "") -> None: ...

    def stage_end(self, name: str, seconds: float) -> None: ...
