"""Prompts that nano's training never saw, and whether a clip shows what its prompt says."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import product

import numpy as np
import torch

from fpsgen.evaluate.nano.captions import plain
from fpsgen.evaluate.nano.meter import Meter, Reading
from fpsgen.evaluate.nano.world import (
    BACKGROUNDS,
    COLOURS,
    FRAMES,
    HEIGHT,
    MOTIONS,
    SUBJECTS,
    WIDTH,
    Scene,
    random_scene,
)


def unseen(count: int, seed: int = 1) -> list[Scene]:
    """Distinct held-out scenes, the same for each seed."""
    rng, scenes = random.Random(seed), dict[Scene, None]()
    while len(scenes) < count:
        scenes[random_scene(rng, held_out=True)] = None
    return list(scenes)


def agreement(prompt: str, frames: np.ndarray) -> dict[str, bool] | None:
    """What of a scene the clip shows as its prompt says, by axis; None for a prompt that is not a plain caption of a
    scene, and for clips of another size or length than nano's.

    frames: uint8 [T, H, W, 3].
    """
    scene = _scenes().get(prompt)
    if scene is None or frames.shape != (FRAMES, HEIGHT, WIDTH, 3):
        return None
    video = torch.from_numpy(frames).permute(3, 0, 1, 2).float()[None] / 127.5 - 1
    reading: Reading = _meter()(video)[0]
    return reading.agrees(scene)


@lru_cache(maxsize=1)
def _scenes() -> dict[str, Scene]:
    """Every scene by its plain caption. A surfing scene's caption does not name the sea, where all of them are."""
    scenes = (Scene(*parts) for parts in product(SUBJECTS, COLOURS, MOTIONS, BACKGROUNDS))
    return {plain(scene): scene for scene in scenes if scene.motion != "surfing" or scene.background == "sea"}


@lru_cache(maxsize=1)
def _meter() -> Meter:
    return Meter()
