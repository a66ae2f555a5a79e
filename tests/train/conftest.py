"""A run on a tiny random model: 17 frames of 64x64, seconds on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

SCHEDULE = """
name = "tiny"
windows = [
  { low = 0.0, high = 0.9, profile = "late" },
  { low = 0.9, high = 1.0, profile = "early" },
]

[[profiles]]
name = "early"
method = "fps"
tile = [1, 2, 4]
window = [1, 1, 1]

[[profiles]]
name = "late"
method = "fps"
tile = [1, 2, 4]
window = [3, 1, 1]
"""


@pytest.fixture(scope="session")
def make_config(tiny_dir: Path):
    """A TrainConfig of the tiny model, with changes."""
    from fpsgen.train.config import TrainConfig

    def make(**changes):
        values = {
            "name": "tiny",
            "model": str(tiny_dir),
            "schedule": SCHEDULE,
            "prompts": ("a", "b", "c"),
            "held_out": 1,
        }
        values |= {"width": 64, "height": 64, "frames": 9, "teacher_steps": 4, "guidance": 3.0, "shift": 3.0}
        values |= {"steps": 6, "batch": 2, "lr": 1e-3, "warmup": 2, "save_every": 2, "keep": 2, "ema": 0.5}
        return TrainConfig(**values | changes)

    return make
