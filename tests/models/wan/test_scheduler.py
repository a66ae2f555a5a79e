"""Schedulers are made from data, predict flow, and draw their noise from the request's generator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fpsgen.models.catalog.choice import choose
from fpsgen.models.catalog.configs import KEPT_SCHEDULERS, REPLACED_SCHEDULERS
from fpsgen.models.wan.load import load
from fpsgen.models.wan.scheduler import noise_from


def with_scheduler(tiny_dir: Path, tmp_path: Path, name: str, **config) -> Path:
    folder = Path(shutil.copytree(tiny_dir, tmp_path / name))
    text = json.dumps({"_class_name": name, "num_train_timesteps": 1000} | config)
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": ["diffusers", name]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


STOCHASTIC = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 5.0, "stochastic_sampling": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "flow_shift": 5.0}),
    ("SASolverScheduler", {"flow_shift": 5.0}),
]
SETTLED = [(name, {}) for name in KEPT_SCHEDULERS if name != "SASolverScheduler"]


@pytest.mark.parametrize(("name", "config"), STOCHASTIC + SETTLED)
def test_the_same_seed_gives_the_same_video(tiny_dir, tmp_path, name, config):
    pipe = load(with_scheduler(tiny_dir, tmp_path, name, **config))
    assert type(pipe.scheduler).__name__ == name

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.seed())  # the global generator is somewhere else each time
        generator = torch.Generator().manual_seed(seed)
        with noise_from(pipe.scheduler, generator):
            return pipe(
                "a cat", height=32, width=32, num_frames=5, num_inference_steps=4, guidance_scale=1.0,
                generator=generator, output_type="latent", max_sequence_length=16,
            ).frames  # fmt: skip

    first = run(3)
    assert torch.equal(first, run(3)) and not torch.equal(first, run(4))
    assert bool(first.isfinite().all())
    assert "step" not in vars(pipe.scheduler)


def test_the_step_is_put_back_after_an_error(tiny_dir):
    scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(KeyError), noise_from(scheduler, torch.Generator()):
        raise KeyError
    assert "step" not in vars(scheduler)


def test_wans_scheduler_is_set_to_flow(tiny_dir, tmp_path):
    config = load(with_scheduler(tiny_dir, tmp_path, "UniPCMultistepScheduler", flow_shift=4.0)).scheduler.config
    assert (config.prediction_type, config.use_flow_sigmas, config.flow_shift) == ("flow_prediction", True, 4.0)
    euler = load(with_scheduler(tiny_dir, tmp_path, "FlowMatchEulerDiscreteScheduler", shift=7.0)).scheduler
    assert euler.config.shift == 7.0
    euler.set_timesteps(10)
    assert float(euler.sigmas.max()) <= 1


@pytest.mark.parametrize("name", REPLACED_SCHEDULERS)
def test_a_scheduler_that_is_replaced_is_said(tiny_dir, tmp_path, name):
    choice = choose(str(with_scheduler(tiny_dir, tmp_path, name, shift=7.0)))
    assert choice.replaced_scheduler == name
    with pytest.warns(UserWarning, match=f"UniPCMultistepScheduler .* {name}"):
        pipe = load(choice)
    assert type(pipe.scheduler) is UniPCMultistepScheduler and pipe.scheduler.config.flow_shift == 7.0


def test_a_scheduler_that_is_kept_is_not_said(tiny_dir, recwarn):
    assert choose(str(tiny_dir)).replaced_scheduler is None
    load(tiny_dir)
    assert not [warning for warning in recwarn if "Scheduler" in str(warning.message)]
