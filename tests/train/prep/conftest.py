"""Small videos with motion, and a settled configuration for the tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fpsgen.video import write_mp4


def moving(seed: int, frames: int = 20, width: int = 96, height: int = 80, speed: float = 1.0) -> np.ndarray:
    """A coloured texture that drifts to the right by `speed` pixels a frame: uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 215, (height // 8 + 1, (width + 80) // 8 + 1, 3))
    texture = np.kron(coarse, np.ones((8, 8, 1)))
    for axis in (0, 1):  # soft edges, which flow can follow
        texture = sum(np.roll(texture, shift, axis) for shift in range(-3, 4)) / 7
    parts = [texture[:height, (start := round(40 - speed * t) % 80) : start + width] for t in range(frames)]
    return np.stack(parts).astype(np.uint8)


def write_clip(path: Path, seed: int = 0, caption: str | None = "a cat", fps: float = 16, **given) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(moving(seed, **given), path, fps)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


@pytest.fixture
def clip():
    """write_clip: a video of a moving texture and its caption."""
    return write_clip


@pytest.fixture(scope="session")
def tiny_choice(tiny_dir):
    from fpsgen.models.catalog.choice import choose

    return choose(str(tiny_dir))
