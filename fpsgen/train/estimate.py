"""What a run takes, said before it starts: memory of what is trained, by arithmetic; time and the rest of the memory by
committed rows of the same GPU, model, size and schedule, or unknown. Unknown time is said once steps were measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from fpsgen.assets import figures_dir
from fpsgen.attention.presets import PRESETS as SCHEDULES
from fpsgen.models.catalog.choice import ModelChoice
from fpsgen.report.lines import duration
from fpsgen.text import plural
from fpsgen.train.config import LIVE, TrainConfig
from fpsgen.train.events import Events
from fpsgen.train.lora import adapter_size
from fpsgen.train.parallel import Processes

UNKNOWN = "unknown, no measured row for this model, size and device"


def estimate(config: TrainConfig, choice: ModelChoice, shared: Processes) -> list[tuple[str, str]]:
    """(name, text) of memory and time."""
    assert choice.pipeline is not None
    model = choice.pipeline.configs["transformer"]
    total, on_gpu = parameters(model), shared.device.type == "cuda"
    trained = adapter_size(model, config.lora_rank) if config.lora_rank else total
    gb = state_bytes(total, trained, on_gpu) / shared.count / 1e9
    if config.uses_teacher and config.teacher == LIVE:
        gb += (2 if on_gpu else 4) * total / 1e9  # a copy that is not trained, in each process
    device = torch.cuda.get_device_name(shared.device) if on_gpu else "cpu"
    row = measured(config, choice.spec.name, device)
    rest = f"activations: {UNKNOWN}"
    if row and row["peak_bytes"]:
        rest = f"{row['peak_bytes'] / 1e9:.1f} GB were measured in all, one sample at a time"
    size = f"{trained / 1e6:.4g} M of {total / 1e6:.4g} M weights"
    memory = f"{gb:.1f} GB for {size}, gradients, optimizer and average (computed); {rest}"
    if row is None:
        return [("memory", memory), ("time", UNKNOWN)]
    seconds = row["seconds"] * config.batch * config.steps / shared.count
    return [("memory", memory), ("time", f"{cost(seconds, shared)} (estimated)")]


def cost(seconds: float, shared: Processes) -> str:
    """Seconds of a run for people, and as GPU hours of all its processes."""
    gpu = f", {seconds * shared.count / 3600:.3g} GPU hours" if shared.device.type == "cuda" else ""
    return duration(seconds) + gpu


class MeasuredCost:
    """Passes the steps of a run on, and says once by the first ones what all that are left will take."""

    STEPS = 10  # after one that compiles

    def __init__(self, events: Events, note: Callable[[str, str], None], shared: Processes) -> None:
        self._events, self._note, self._shared = events, note, shared
        self._first: tuple[int, float] | None = None

    def step(self, index: int, total: int, note: str) -> None:
        now = time.monotonic()
        self._first = self._first or (index, now)
        done, left = index - self._first[0], total - 1 - index
        if done == self.STEPS and left:
            seconds = (now - self._first[1]) / done * left
            self._note("time", f"{cost(seconds, self._shared)} for {plural(left, 'step')} more, by {done} steps")
        self._events.step(index, total, note)


def state_bytes(total: int, trained: int, on_gpu: bool) -> int:
    """Bytes of weights in the model's dtype, and fp32 master, gradient, two moments and average of those trained."""
    weight = 2 if on_gpu else 4  # bf16 with a master beside it, or fp32 that is its own
    return weight * total + trained * (4 * 4 + (4 if on_gpu else 0))


def parameters(model: dict[str, Any]) -> int:
    """Weights of the linear layers of a Wan transformer's blocks, by its config."""
    width = model["num_attention_heads"] * model["attention_head_dim"]
    return model["num_layers"] * (8 * width * width + 2 * width * model["ffn_dim"])


def measured(config: TrainConfig, model: str, device: str) -> dict[str, Any] | None:
    """The row of a step like the run's: seconds for a sample, peak_bytes."""
    wanted = {
        "model": model,
        "device": device,
        "width": config.width,
        "height": config.height,
        "frames": config.frames,
        "lora_rank": config.lora_rank,
        "objective": "distill" if config.distill else "flow",
        "fp8_linear": bool(config.parsed_schedule().fp8_linear),
    }
    rows = (row for row in cost_rows() if SCHEDULES[row["schedule"]].to_toml() == config.schedule)
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


@cache
def cost_rows() -> tuple[dict[str, Any], ...]:
    """The committed rows of training steps; none where they were not installed."""
    path = figures_dir() / "training.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else ()
    return tuple(row for row in rows if row.get("kind") == "step")
