"""Noise levels in plain Python are those of diffusers' schedulers, to the last bit, and so are the steps by profile."""

from __future__ import annotations

import json

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fpsgen.attention.schedule import PRESETS
from fpsgen.models.wan.load import flow_scheduler
from fpsgen.pipeline.sigmas import EULER, UNIPC, scheduler_of, step_sigmas

STEPS = (1, 2, 3, 4, 5, 7, 8, 10, 12, 16, 20, 25, 30, 33, 40, 50, 64, 77, 100, 1000)
SHIFTS = (0.01, 0.5, 1.0, 1.5, 2.0, 3.0, 4.7, 5.0, 7.0, 8.0, 12.0, 17.3, 100.0)


def scheduler(kind: str, shift: float):
    if kind == EULER:
        return flow_scheduler(FlowMatchEulerDiscreteScheduler(), shift)
    return flow_scheduler(UniPCMultistepScheduler(flow_shift=1.0), shift)


@pytest.mark.parametrize("kind", [UNIPC, EULER])
@pytest.mark.parametrize("shift", SHIFTS)
def test_every_level_is_the_schedulers(kind, shift):
    theirs = scheduler(kind, shift)
    for steps in STEPS:
        theirs.set_timesteps(steps)
        wanted = theirs.sigmas[:-1].tolist()
        got = step_sigmas(steps, shift, kind)
        assert got == wanted, (kind, shift, steps)
        for schedule in PRESETS.values():
            profiles = [schedule.profile_at(min(sigma, 1)).name for sigma in wanted]
            assert [schedule.profile_at(min(sigma, 1)).name for sigma in got] == profiles


def test_the_scheduler_of_a_folder(tmp_path):
    assert scheduler_of(None) == scheduler_of(tmp_path) == (UNIPC, 1000)
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": EULER, "num_train_timesteps": 500, "shift": 3.0}))
    assert scheduler_of(tmp_path) == (EULER, 500)
    file.write_text(json.dumps({"_class_name": "DDIMScheduler"}))  # replaced when it is loaded
    assert scheduler_of(tmp_path) == (UNIPC, 1000)
