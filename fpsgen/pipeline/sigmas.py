"""The noise levels of a denoising loop, as diffusers' schedulers have them, in plain Python: plans need no torch.

Schedules cut at noise levels, so the last digit decides which profile a step runs by: every operation below rounds as
the scheduler's does.
"""

from __future__ import annotations

import struct

from fpsgen.attention.schedule import flow_sigma
from fpsgen.models.catalog.choice import ModelChoice

UNIPC, EULER = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"  # others are close to the first
_TRAIN_TIMESTEPS = 1000


def step_sigmas(
    steps: int, shift: float, scheduler: str = UNIPC, train_timesteps: int = _TRAIN_TIMESTEPS
) -> list[float]:
    """Noise level of each step, falling, in [0, 1]. shift: flow shift. Values are fp32's."""
    if scheduler == EULER:
        return _euler(steps, shift, train_timesteps)
    levels = [flow_sigma(level, shift) for level in _spaced(1.0, 1 / train_timesteps, steps + 1)[:-1]]
    if abs(levels[0] - 1) < 1e-6:  # as diffusers does, so that log(1 - sigma) stays finite
        levels[0] -= 1e-6
    return [_fp32(level) for level in levels]


def scheduler_of(choice: ModelChoice) -> tuple[str, int]:
    """(class, train timesteps) of the scheduler that a model will run by; Wan's where its folder is not here."""
    if choice.pipeline is None or choice.replaced_scheduler is not None:
        return UNIPC, _TRAIN_TIMESTEPS
    config = choice.pipeline.configs["scheduler"]["config"]
    return choice.pipeline.scheduler, int(config.get("num_train_timesteps", _TRAIN_TIMESTEPS))


def _euler(steps: int, shift: float, train_timesteps: int) -> list[float]:
    """The scheduler shifts its first and last level when it is made, and all of them once more for a loop."""
    ends = [_shifted_fp32(_fp32(number / train_timesteps), shift) for number in (train_timesteps, 1)]
    spaced = _spaced(ends[0] * train_timesteps, ends[1] * train_timesteps, steps)
    return [_fp32(flow_sigma(value / train_timesteps, shift)) for value in spaced]


def _spaced(start: float, stop: float, count: int) -> list[float]:
    """numpy.linspace."""
    if count == 1:
        return [start]
    step = (stop - start) / (count - 1)
    return [index * step + start for index in range(count - 1)] + [stop]


def _shifted_fp32(level: float, shift: float) -> float:
    above = _fp32(_fp32(shift) * level)
    return _fp32(above / _fp32(1 + _fp32(_fp32(shift - 1) * level)))


def _fp32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
