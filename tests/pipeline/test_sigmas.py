"""Noise levels in plain Python are those of diffusers' schedulers, to the last bit, and so are the steps by profile."""

from __future__ import annotations

import json
import shutil

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fpsgen.attention.presets import PRESETS
from fpsgen.models.catalog.choice import choose
from fpsgen.pipeline.sigmas import EULER, UNIPC, scheduler_of, step_sigmas

STEPS = (1, 2, 3, 4, 5, 7, 8, 10, 12, 16, 20, 25, 30, 33, 40, 50, 64, 77, 100, 1000)
SHIFTS = (0.01, 0.5, 1.0, 1.5, 2.0, 3.0, 4.7, 5.0, 7.0, 8.0, 12.0, 17.3, 100.0)


def scheduler(kind: str, shift: float):
    if kind == EULER:
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


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


def test_the_scheduler_of_a_model(tiny_dir, tmp_path):
    assert scheduler_of(choose("wan2.1-14b", missing_ok=True)) == scheduler_of(choose(str(tiny_dir))) == (UNIPC, 1000)
    other = tmp_path / "other"
    shutil.copytree(tiny_dir, other)
    index = json.loads((other / "model_index.json").read_text())
    file = other / "scheduler" / "scheduler_config.json"
    for name, wanted in ((EULER, (EULER, 500)), ("DDIMScheduler", (UNIPC, 1000))):  # the second is replaced
        (other / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
        file.write_text(json.dumps({"_class_name": name, "num_train_timesteps": 500}))
        assert scheduler_of(choose(str(other))) == wanted
