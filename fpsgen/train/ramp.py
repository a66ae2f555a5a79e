"""A schedule that starts dense and becomes sparser while a model is trained."""

from __future__ import annotations

from dataclasses import replace

from fpsgen.attention.profile import Profile
from fpsgen.attention.schedule import Schedule
from fpsgen.attention.windows import Size3

STAGES = 8  # each has windows, lists and kernels' tables of its own


def ramp_stage(step: int, steps: int) -> int:
    """0 (dense) to STAGES (as scheduled) at a step of a ramp over `steps`; 0 steps: no ramp."""
    return STAGES if step >= steps else step * STAGES // steps


def ramped(schedule: Schedule, stage: int, grid: Size3) -> Schedule:
    """The schedule with windows that lie `stage` of STAGES from all keys to what it says, in density. grid: tokens."""
    if stage == STAGES:
        return schedule
    return replace(schedule, profiles=tuple(_profile(profile, stage / STAGES, grid) for profile in schedule.profiles))


def _profile(profile: Profile, share: float, grid: Size3) -> Profile:
    if profile.sees_all:
        return profile
    final = profile.resolve(grid)[3]
    density = 1.0 + share * (final - 1.0)
    return replace(profile, window="all", density=density) if final < 1.0 else profile
