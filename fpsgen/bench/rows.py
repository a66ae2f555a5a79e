"""A bench's row: everything that was measured of one method, and where the figures come from. JSON-ready."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fpsgen.bench.provenance import spread
from fpsgen.evaluate.quality import QUALITY
from fpsgen.files import make_folder
from fpsgen.logs import append_line
from fpsgen.pipeline.events import peak_rss
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.run import mean_density

SCHEMA = "fpsgen.bench/2"


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
    quality: dict[str, float | None] = field(default_factory=dict)  # see evaluate.quality


def bench_row(runs: Runs, baseline: Runs, base: GenerateRequest, common: dict[str, Any]) -> dict[str, Any]:
    """stages_s, step_s, total_s, attention_s: spread over the repeats. steps_s: median time of each step. speedup_*:
    the baseline's median over this one's. Quality: see evaluate.quality.
    """
    denoise = statistics.median(runs.stages["denoise"])
    attention = [seconds for seconds in runs.attention if seconds is not None]
    return {
        "schema": SCHEMA,
        **common,
        **setting_of(base),
        "method": runs.method,
        "linear": linear_of(runs.report),
        "cache": runs.recipe["cache"],
        "cfg_until": runs.recipe["cfg_until"],
        "fused": not runs.recipe.get("exact"),
        "schedule": runs.report["schedule"],
        "baseline": baseline.method,
        "strict": True,
        "repeats": len(runs.totals),
        "stages_s": {name: spread(values) for name, values in runs.stages.items()},
        "step_s": spread([seconds for repeat in runs.steps for seconds in repeat]),
        "steps_s": [round(statistics.median(times), 4) for times in zip(*runs.steps, strict=True)],
        "profiles": _profiles(runs),
        "total_s": spread(runs.totals),
        "attention_s": spread(attention) if attention else None,
        "attention_share": round(statistics.median(attention) / denoise, 4) if attention else None,
        "density": mean_density(runs.report),
        "kernels": runs.report["kernels"],
        "bf16_backend": runs.report["bf16_backend"],
        "peak_memory": {"rss_bytes_of_process": peak_rss(), "cuda_bytes": runs.cuda_bytes},
        "speedup_denoise": round(statistics.median(baseline.stages["denoise"]) / denoise, 3),
        "speedup_total": round(statistics.median(baseline.totals) / statistics.median(runs.totals), 3),
        **(dict.fromkeys(QUALITY) | runs.quality),
        "video": str(runs.path) if runs.path else None,
    }


def linear_of(report: dict[str, Any]) -> str:
    """What the blocks' linear layers ran in, whoever chose it. report: the handle's."""
    return "fp8" if "linear" in report["components"] else "bf16"


def setting_of(base: GenerateRequest) -> dict[str, Any]:
    """What every row of a bench says of the video."""
    video, sampling = base.video, base.sampling
    grid = base.model.geometry.token_grid(video.width, video.height, video.frames)
    return {
        "model": base.model.spec.name,
        "prompt": base.prompt.text,
        "seed": sampling.seed,
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
        "token_grid": list(grid),
        "tokens": grid[0] * grid[1] * grid[2],
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "shift": sampling.shift,
    }


def _profiles(runs: Runs) -> list[dict[str, Any]]:
    """Per profile of the schedule: its steps, their density, and their time over all repeats."""
    table: dict[str, dict[str, Any]] = {}
    for index, step in enumerate(runs.report["steps"]):
        entry = table.setdefault(step["profile"], {"profile": step["profile"], "steps": 0, "times": []})
        entry["steps"] += 1
        density = step["density"]
        entry |= {"method": step["method"], "kernel": step["kernel"], "density": density and round(density, 4)}
        entry |= {"tile": step.get("tile"), "window": step.get("window")}
        entry["times"] += [repeat[index] for repeat in runs.steps]
    return [{"step_s": spread(entry.pop("times")), **entry} for entry in table.values()]


def append_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Add rows to a JSON-lines file. Raises FpsgenError DISK."""
    make_folder(path.parent)
    for row in rows:
        append_line(path, json.dumps(row))
