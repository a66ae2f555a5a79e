"""diffusers' step caches by name. They skip blocks whose output hardly changes from step to step, at a cost in quality.

What they keep lies in tile order, which a schedule with one tile leaves in place from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fpsgen.errors import USAGE, FpsgenError
from fpsgen.settings.groups.speed import CACHES
from fpsgen.text import show

_, FIRST_BLOCK, MAGCACHE, TAYLORSEER = CACHES


def cache_config(name: str, steps: int, mag_ratios: Sequence[float] = ()) -> Any:
    """The configuration for `enable_cache` or fpsgen.apply(cache=...); name: one of CACHES but "none".

    first-block: diffusers' default threshold 0.05. magcache: threshold 0.12, at most 2 steps skipped in a row, the
    first fifth kept, as its authors run Wan2.1 (arXiv 2506.09045); mag_ratios: what they measured of the model.
    taylorseer: diffusers' defaults (every fifth step is run, first order; arXiv 2503.06923), for the model's output
    alone: for every block it would keep 120 GB at 720p and 14B.
    Raises FpsgenError USAGE as check_cache.
    """
    from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

    check_cache(name, mag_ratios)
    if name == FIRST_BLOCK:
        return FirstBlockCacheConfig()
    if name == TAYLORSEER:
        return TaylorSeerCacheConfig(use_lite_mode=True)
    return MagCacheConfig(0.12, 2, 0.2, steps, list(mag_ratios))


def check_cache(name: str, mag_ratios: Sequence[float]) -> None:
    """Raise FpsgenError USAGE for magcache without ratios."""
    if name == MAGCACHE and not mag_ratios:
        raise FpsgenError(
            "--cache magcache needs ratios that were measured of the model, and of this one none are known",
            f"choose --cache {FIRST_BLOCK} or {TAYLORSEER}",
            USAGE,
        )


def enable(transformer: Any, config: Any) -> None:
    """Raises FpsgenError USAGE where a cache is on already, and for what is no configuration of one."""
    if getattr(transformer, "_cache_config", None) is not None:
        raise FpsgenError(
            f"the transformer has a {type(transformer._cache_config).__name__} already",
            "call its disable_cache() first, or leave cache out",
            USAGE,
        )
    try:
        transformer.enable_cache(config)
    except ValueError as error:
        what = f"cache is no configuration of a step cache: {show(error)}"
        raise FpsgenError(what, "give diffusers' FirstBlockCacheConfig() or another", USAGE) from error
