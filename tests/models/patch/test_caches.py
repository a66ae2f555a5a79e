"""diffusers' step caches with tokens in tile order: what they keep from step to step stays in place."""

from __future__ import annotations

import pytest
import torch
import wan_cases as case
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)

from fpsgen import apply
from fpsgen.errors import FpsgenError
from fpsgen.models.catalog.registry import find_spec
from fpsgen.models.patch.step_cache import cache_config
from fpsgen.models.wan.load import load
from fpsgen.settings.groups.speed import CACHES

LIMIT = 1e-5
ORDER = pytest.mark.parametrize("first", ["apply", "feature"])


@pytest.mark.parametrize("schedule", [case.one(case.TILED), case.mixed(case.TILED, case.DENSE)], ids=["one", "mixed"])
@ORDER
def test_first_block_cache(tiny_dir, schedule, first):
    """What a cache keeps from step to step stays in place: schedules with one tile give one order to all steps."""
    config = FirstBlockCacheConfig(threshold=0.7)
    stock_pipe = load(tiny_dir)
    plain = case.video(stock_pipe, steps=6)
    stock_pipe.transformer.enable_cache(config)
    stock = case.video(stock_pipe, steps=6)
    assert case.difference(stock, plain) > 100 * LIMIT

    pipe = load(tiny_dir)
    if first == "feature":
        pipe.transformer.enable_cache(config)
    handle = apply(pipe, schedule)
    if first == "apply":
        pipe.transformer.enable_cache(config)
    assert case.difference(case.video(pipe, steps=6), stock) <= LIMIT
    skipped = handle.report()["fallbacks"]
    assert skipped and skipped[0]["reason"] == "skipped_by_cache" and skipped[0]["layers"] == [1]
    pipe.transformer.disable_cache()
    assert case.difference(case.video(pipe, steps=6), plain) <= LIMIT and not handle.report()["fallbacks"]


def mag_cache() -> MagCacheConfig:
    return MagCacheConfig(threshold=0.5, num_inference_steps=6, mag_ratios=[1.0] * 6, retention_ratio=0.2)


def taylor_seer() -> TaylorSeerCacheConfig:
    """Factors in fp32: in bf16, their default, a rounding of 1e-7 elsewhere becomes one of 1e-2."""
    return TaylorSeerCacheConfig(2, 1, max_order=1, taylor_factors_dtype=torch.float32, use_lite_mode=True)


@pytest.mark.parametrize("config", [mag_cache, taylor_seer])
@ORDER
def test_caches_that_skip_steps(tiny_dir, config, first):
    stock_pipe = load(tiny_dir)
    plain = case.video(stock_pipe, steps=6)
    stock_pipe.transformer.enable_cache(config())
    stock = case.video(stock_pipe, steps=6)
    assert case.difference(stock, plain) > 100 * LIMIT

    pipe = load(tiny_dir)
    if first == "feature":
        pipe.transformer.enable_cache(config())
    handle = apply(pipe, case.mixed(case.TILED, case.DENSE))
    if first == "apply":
        pipe.transformer.enable_cache(config())
    assert case.difference(case.video(pipe, steps=6), stock) <= 3 * LIMIT  # 2 a - b triples a rounding
    report = handle.report()
    assert report["kernels"]["sdpa"] < 24 and report["fallbacks"][0]["reason"] == "skipped_by_cache"
    handle.remove()
    pipe.transformer.disable_cache()
    assert case.difference(case.video(pipe, steps=6), plain) <= LIMIT


def test_attention_broadcast(tiny_dir):
    pipe = load(tiny_dir)
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    pipe.transformer.enable_cache(config)
    stock = case.video(pipe, steps=6)
    pipe.transformer.disable_cache()
    handle = apply(pipe, case.one(case.TILED))
    pipe.transformer.enable_cache(config)
    assert case.difference(case.video(pipe, steps=6), stock) <= LIMIT
    assert handle.report()["kernels"]["sdpa"] < 24


def test_caches_that_would_go_wrong_are_refused(transformer, tiny_dir):
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with apply(transformer, case.mixed(case.SPARSE, case.OTHER)), pytest.raises(FpsgenError, match="order"):
        case.forward(transformer)
    transformer.disable_cache()
    for config in (SeaCacheConfig(threshold=0.5), FasterCacheConfig(current_timestep_callback=lambda: 500)):
        pipe = load(tiny_dir)
        pipe.transformer.enable_cache(config)
        with apply(pipe, case.one(case.SPARSE)), pytest.raises(FpsgenError, match=type(config).__name__):
            case.video(pipe)


def test_a_cache_that_was_asked_for_is_no_deviation(tiny_dir):
    stock_pipe = load(tiny_dir)
    stock_pipe.transformer.enable_cache(mag_cache())
    stock = case.video(stock_pipe, steps=6)
    pipe = load(tiny_dir)
    plain = case.video(pipe, steps=6)
    handle = apply(pipe, case.one(case.TILED), strict=True, cache=mag_cache())
    assert case.difference(case.video(pipe, steps=6), stock) <= LIMIT
    report = handle.report()
    assert report["fallbacks"] == [] and report["skipped_by_cache"] > 0
    assert report["skipped_by_cache"] + report["kernels"]["sdpa"] == 6 * 2 * 2 and "skipped" in str(handle)
    handle.remove()
    assert not pipe.transformer.is_cache_enabled and case.difference(case.video(pipe, steps=6), plain) <= LIMIT
    pipe.transformer.enable_cache(mag_cache())
    with pytest.raises(FpsgenError, match="MagCacheConfig"):
        apply(pipe, case.one(case.TILED), cache=mag_cache())


@pytest.mark.parametrize("name", CACHES[1:])
@pytest.mark.parametrize("model", ["wan2.1-1.3b", "wan2.1-14b"])
def test_caches_by_name(name, model):
    spec = find_spec(model)
    config = cache_config(name, 20, spec.mag_ratios)
    assert name.replace("-", "") in type(config).__name__.lower()
    if name == "magcache":
        assert len(config.mag_ratios) == 20 and min(config.mag_ratios) > 0.8 and max(config.mag_ratios) < 1.1


def test_strict_does_not_let_a_cache_skip(tiny_dir):
    pipe = load(tiny_dir)
    apply(pipe, case.one(case.TILED), strict=True)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.7))
    with pytest.raises(FpsgenError, match="skipped"):
        case.video(pipe, steps=6)
