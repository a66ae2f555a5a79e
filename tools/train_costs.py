"""What a training step costs: seconds and memory beside the same step with dense attention, on random weights.

    python -m tools.train_costs --out training.jsonl [--cases 1.3b-480p-distill,...] [--steps 3]

For each case a model of the true shape is made on the GPU, and every profile of the schedule "paper" is trained for a
warm-up step and `--steps` more; then one with dense bf16 attention and linear layers, where all are alike. One row a
case is appended, as soon as it is measured; cases that have a row are passed over. `--figures figures/training.json`
makes the file that docs/training.md and the estimate before a run read.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fpsgen.attention.presets import PRESETS
from fpsgen.errors import FpsgenError
from fpsgen.models.catalog.registry import find_spec
from fpsgen.models.wan.random_weights import random_pipeline
from fpsgen.pipeline.recipe import versions
from fpsgen.train.clips import noised
from fpsgen.train.config import TrainConfig
from fpsgen.train.data import Batch
from fpsgen.train.loop import Trainer
from fpsgen.train.objective import Objective
from fpsgen.train.parallel import Processes
from tools.command_line import parser_of
from tools.speed_tables import SHARES

COLUMNS = {  # what docs/training.md shows of a row
    "case": "Step of one sample",
    "seconds": "Seconds",
    "dense_seconds": "Dense attention, seconds",
    "speedup": "Faster",
    "peak_gb": "Memory, GB",
    "dense_peak_gb": "Dense attention, GB",
}
TEXT = 512  # tokens of a prompt's embedding


@dataclass(frozen=True)
class Case:
    """width, height: pixels. lora_rank: 0 for all weights."""

    model: str
    width: int
    height: int
    frames: int
    objective: str
    lora_rank: int = 0


CASES = {  # the first ones tell most
    "1.3b-480p-distill": Case("wan2.1-1.3b", 832, 480, 81, "distill"),
    "1.3b-480p-lora": Case("wan2.1-1.3b", 832, 480, 81, "distill", 64),
    "14b-480p-lora": Case("wan2.1-14b", 832, 480, 81, "distill", 32),
    "1.3b-720p-distill": Case("wan2.1-1.3b", 1280, 720, 81, "distill"),
    "1.3b-480p-flow": Case("wan2.1-1.3b", 832, 480, 81, "flow"),
    "1.3b-720p-flow": Case("wan2.1-1.3b", 1280, 720, 81, "flow"),
    "nano": Case("nano", 256, 160, 33, "distill"),
}


class RandomBatch:
    """One sample of a profile, the same each time. Its objective decides only what the velocity is."""

    def __init__(self, case: Case, transformer: Any, profile: str, sigma: float) -> None:
        spec = find_spec(case.model)
        assert spec is not None
        geometry, model = spec.geometry, transformer.config
        frames = (case.frames - 1) // geometry.temporal + 1
        shape = (1, model.in_channels, frames, case.height // geometry.spatial, case.width // geometry.spatial)
        make = torch.Generator().manual_seed(0)
        clean, velocity = (torch.randn(shape, generator=make) for _ in range(2))
        text = torch.randn(1, TEXT, model.text_dim, generator=make)
        sigmas = torch.tensor([sigma])
        self.profiles = (profile,)
        self._batch = Batch(clean, velocity, clean, sigmas, 1000 * sigmas, text, profile)
        self._flow = case.objective == "flow"

    def __len__(self) -> int:
        return 1

    def draw(self, step: int, seed: int, batch: int, null_share: float) -> Batch:
        return noised(self._batch, torch.Generator().manual_seed(step)) if self._flow else self._batch

    def every(self, profile: str, batch: int, limit: int = 1):
        yield self._batch


def measure(case: Case, device: torch.device, steps: int, dense: bool, folder: Path) -> dict[str, Any]:
    """Seconds of a step by profile, their mean as inference visits the profiles, and peak memory."""
    spec = find_spec(case.model)
    assert spec is not None
    plan = PRESETS["paper"]
    plan = replace(plan.with_method("bf16"), fp8_linear=()) if dense else plan
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    transformer = random_pipeline(spec, device, dtype).transformer
    config = TrainConfig(
        name="costs",
        model=case.model,
        schedule=plan.to_toml(),
        width=case.width,
        height=case.height,
        frames=case.frames,
        steps=1 << 20,
        prompts=("a",),
        lora_rank=case.lora_rank,
        dense_every=0,
    )
    grid = spec.geometry.token_grid(case.width, case.height, case.frames)
    trainer = Trainer(transformer, config, folder, grid, Processes(0, 1, device))
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds, densities = {}, {}
    for low, high, profile in plan.windows[:1] if dense else plan.windows:
        source = RandomBatch(case, transformer, profile, (low + high) / 2)
        objective = Objective(case.objective, 1.0, source, source)
        times = []
        for _ in range(steps + 1):
            started = time.monotonic()
            row = trainer._one([objective])
            if on_gpu:
                torch.cuda.synchronize(device)
            times.append(time.monotonic() - started)
        seconds[profile], densities[profile] = times[1:], row["density"]
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    trainer.close()
    mean = sum(SHARES[name] * statistics.median(times) for name, times in seconds.items())
    mean /= sum(SHARES[name] for name in seconds)
    by_profile = {
        name: {
            "median": statistics.median(times),
            "min": min(times),
            "max": max(times),
            "density": densities[name],
        }
        for name, times in seconds.items()
    }
    return {"seconds": mean, "by_profile": by_profile, "peak_bytes": peak}


def free_memory(device: torch.device) -> None:
    """Models that were measured go: patches make cycles, which only the collector frees."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def cost_row(name: str, case: Case, device: torch.device, steps: int, folder: Path, commit: str) -> dict[str, Any]:
    """The row of a case, as estimate.py reads it."""
    sparse = measure(case, device, steps, False, folder)
    free_memory(device)
    dense = measure(case, device, steps, True, folder)
    return {
        "kind": "step",
        "case": name,
        "model": case.model,
        "width": case.width,
        "height": case.height,
        "frames": case.frames,
        "objective": case.objective,
        "lora_rank": case.lora_rank,
        "fp8_linear": True,
        "schedule": "paper",
        "random_weights": True,
        "batch": 1,
        "steps": steps,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "seconds": round(sparse["seconds"], 4),
        "peak_bytes": sparse["peak_bytes"],
        "by_profile": sparse["by_profile"],
        "dense_seconds": round(dense["seconds"], 4),
        "dense_peak_bytes": dense["peak_bytes"],
        "speedup": round(dense["seconds"] / sparse["seconds"], 3),
        "peak_gb": round((sparse["peak_bytes"] or 0) / 1e9, 1),
        "dense_peak_gb": round((dense["peak_bytes"] or 0) / 1e9, 1),
        "versions": versions(),
        "commit": commit,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure the cases that have no row yet; the exit code."""
    parser = parser_of("train_costs", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", default=",".join(name for name in CASES if name != "nano"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--commit", default="")
    parser.add_argument("--figures", type=Path, help="write the rows that there are as a file of figures/; no more")
    chosen = parser.parse_args(arguments)
    if chosen.figures:
        rows = [json.loads(line) for line in chosen.out.read_text(encoding="utf-8").splitlines() if line]
        chosen.figures.write_text(json.dumps({"columns": COLUMNS, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = chosen.out.read_text(encoding="utf-8").splitlines() if chosen.out.exists() else []
    done = {json.loads(line)["case"] for line in lines if line}
    failed = 0
    for name in chosen.cases.split(","):
        if name in done:
            continue
        started = time.monotonic()
        free_memory(device)
        try:
            row = cost_row(name, CASES[name], device, chosen.steps, chosen.out.parent / "costs", chosen.commit)
        except (RuntimeError, FpsgenError) as error:  # out of memory, for one; the other cases can still be measured
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
            failed = 1
            continue
        with chosen.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        spent = time.monotonic() - started
        print(
            f"{name}: {row['seconds']:.2f} s a step, dense {row['dense_seconds']:.2f} s ({row['speedup']:.2f}x), "
            f"{(row['peak_bytes'] or 0) / 1e9:.1f} GB; measured in {spent:.0f} s",
            flush=True,
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())
