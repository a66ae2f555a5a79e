"""Schedules by name. Imports no torch."""

from __future__ import annotations

from fpsgen.attention.profile import Profile
from fpsgen.attention.schedule import LINEAR_PARTS, Schedule, windows_from_fractions


def _preset(
    name: str,
    cuts: tuple[float, float],
    profiles: tuple[Profile, ...],
    dense_layers: tuple[int, ...] = (),
    fp8_linear: tuple[str, ...] = (),
) -> Schedule:
    return Schedule(name, profiles, windows_from_fractions(*cuts), dense_layers, fp8_linear=fp8_linear)


PRESETS = {
    schedule.name: schedule
    for schedule in (
        # for untuned weights: layout is decided in the first steps and layers, so these stay dense; queries and keys in
        # INT8 err less than in E4M3 (docs/numerics.md)
        _preset(
            "safe",
            (0.3, 0.9),
            (
                Profile("early", "bf16", tile="blocks"),
                Profile("middle", "fps", density=0.45, smooth_k=True, options={"qk": "int8"}),
                Profile("late", "fps", density=0.35, smooth_k=True, options={"qk": "int8"}),
            ),
            dense_layers=(0, 1),
        ),
        _preset(
            "balanced",
            (0.2, 0.8),
            (
                Profile("early", "fp8", tile="blocks", smooth_k=True),
                Profile("middle", "fps", density=0.35, smooth_k=True),
                Profile("late", "fps", density=0.25, granularity=2, smooth_k=True),
            ),
            dense_layers=(0,),
        ),
        # the paper's pattern, at the densities that its speed-ups imply, and linear layers in FP8: for checkpoints
        # trained with it
        _preset(
            "paper",
            (0.2, 0.8),
            (
                Profile("early", "fps", density=0.12, granularity=8),
                Profile("middle", "fps", density=0.25),
                Profile("late", "fps", density=0.18, granularity=2),
            ),
            fp8_linear=LINEAR_PARTS,
        ),
    )
}


def preset(name: str) -> Schedule:
    """A preset by name. Raises ValueError naming the choices."""
    if name not in PRESETS:
        raise ValueError(
            f"there is no schedule preset {name!r}.\nGive one of {', '.join(PRESETS)}, or a path to a TOML file."
        )
    return PRESETS[name]
