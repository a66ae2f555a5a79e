"""Reports must be true: each test plants a mistake or a mixture and looks for it."""

from __future__ import annotations

import json

import pytest
import torch
import wan_cases as case
from tiny import tiny_transformer

from fpsgen import apply
from fpsgen.attention import METHODS, Profile, preset
from fpsgen.attention.methods import Method, Selection
from fpsgen.attention.tiles import TileLists, make_tiling
from fpsgen.models.patch import attention as processor_module
from fpsgen.models.wan.load import load


@pytest.fixture
def calls(monkeypatch):
    """Every attention call as it really happens: (method, density)."""
    made = []
    right = processor_module.attend

    def attend(query, key, value, plan, *rest, **others):
        made.append((plan.method, plan.density))
        return right(query, key, value, plan, *rest, **others)

    monkeypatch.setattr(processor_module, "attend", attend)
    return made


def test_a_report_tells_what_ran_and_why_it_was_dense(tiny_dir, calls):
    pipe = load(tiny_dir)
    schedule = case.mixed(case.SPARSE, case.DENSE, case.FP8, dense_layers=(1,))
    handle = apply(pipe, schedule)
    case.video(pipe, steps=8)
    report = json.loads(json.dumps(handle.report()))

    assert report["schedule"] == "mixed" and report["asked_method"] is None and report["grid"] == list(case.GRID)
    assert [step["index"] for step in report["steps"]] == list(range(8))
    assert report["layers_dense"] == [1] and report["fallbacks"] == []
    expected = []
    for step in report["steps"]:
        assert step["calls"] == 4 and step["counted"] == "run"
        by_layer = {layer: group for group in step["layers"] for layer in group["layers"]}
        assert set(by_layer) == {0, 1} and by_layer[1]["reason"] == "dense_layer" and by_layer[1]["kernel"] == "sdpa"
        assert by_layer[0]["reason"] == {"sparse": None, "fp8": None, "dense": "dense_by_schedule"}[step["profile"]]
        assert by_layer[0]["kernel"] == ("sdpa" if step["profile"] == "dense" else "cpu")
        assert step["density"] == pytest.approx((by_layer[0]["density"] + by_layer[1]["density"]) / 2)
        expected += [(step["method"], by_layer[0]["density"]), ("bf16", 1.0)] * 2
    assert calls == expected
    assert report["kernels"] == {
        name: sum(group["calls"] for step in report["steps"] for group in step["layers"] if group["kernel"] == name)
        for name in ("cpu", "sdpa")
    }
    sparse = next(step for step in report["steps"] if step["profile"] == "sparse")
    mask = case.window_mask(case.RAGGED, (1, 1, 3))
    assert sparse["layers"][0]["density"] == pytest.approx(mask.double().mean().item())


@pytest.mark.parametrize(
    ("profile", "method", "reason"),
    [
        (case.DENSE, None, "dense_by_schedule"),
        (Profile("p", "fp8", case.RAGGED), None, "dense_by_schedule"),
        (case.SPARSE, "bf16", "method_bf16"),
        (case.SPARSE, "fp8", "method_fp8"),
        (Profile("p", "fps", case.RAGGED, (1.0, 1.0, 1.0)), None, "window_covers_grid"),
        (case.SPARSE, "sta", None),
    ],
)
def test_reasons(transformer, profile, method, reason):
    with apply(transformer, case.one(profile), method) as handle:
        case.forward(transformer)
        (step,) = handle.report()["steps"]
    (group,) = step["layers"]
    assert group["reason"] == reason and (group["density"] == 1) == (reason is not None)


def test_density_is_a_mean_over_layers_and_not_over_groups(transformer):
    """One dense layer and two sparse ones; then two dense ones and one sparse."""
    sparse = case.window_mask(case.RAGGED, (1, 1, 3)).double().mean().item()
    for dense_layers, layers in (((1,), 2), ((0, 2), 1)):
        with apply(transformer, case.one(case.SPARSE, dense_layers=dense_layers)) as handle:
            case.forward(transformer)
            report = handle.report()
        mean = (layers * sparse + (3 - layers)) / 3
        assert report["density"] == report["steps"][0]["density"] == pytest.approx(mean)
        assert abs(mean - (sparse + 1) / 2) > 0.1


def test_two_transformers_of_unequal_depth(tiny_dir):
    """The first serves high noise with two layers, the second low noise with three; layer 2 exists in one of them."""
    pipe = load(tiny_dir)
    torch.manual_seed(5)
    pipe.register_modules(transformer_2=tiny_transformer(layers=3))
    pipe.register_to_config(boundary_ratio=0.8)
    sparse = case.window_mask(case.RAGGED, (1, 1, 3)).double().mean().item()
    with apply(pipe, case.one(case.SPARSE, dense_layers=(1, 2)), strict=True) as handle:
        case.video(pipe, steps=6)
        report = handle.report()
    shallow = [step for step in report["steps"] if step["calls"] == 4]
    deep = [step for step in report["steps"] if step["calls"] == 6]
    assert len(shallow) + len(deep) == 6 and shallow and deep and not report["fallbacks"]
    assert all(step["density"] == pytest.approx((sparse + 1) / 2) for step in shallow)
    assert all(step["density"] == pytest.approx((sparse + 2) / 3) for step in deep)
    assert report["kernels"] == {"cpu": 2 * 6, "sdpa": 2 * len(shallow) + 4 * len(deep)}


class FirstTiles(Selection):
    """An online selection: in its n-th call every query tile sees the first n key tiles."""

    online = True

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def select(self, q, k, v, plan):
        self.calls += 1
        tiles = plan.tiling.num_tiles
        keys = torch.arange(self.calls, dtype=torch.int32, device=q.device).expand(1, tiles, -1)
        return TileLists(keys.contiguous(), torch.full((1, tiles), self.calls, dtype=torch.int32, device=q.device))


def test_densities_that_only_the_device_knows_are_read_by_a_report(transformer, monkeypatch):
    """An online method: each call has a density of its own. Nothing is read of it before the report."""
    method = Method("first", "the first tiles", "none", "#000000", FirstTiles())
    monkeypatch.setitem(METHODS, "first", method)
    handle = apply(transformer, case.one(Profile("p", "first", case.RAGGED), dense_layers=(2,)))
    reads, to_list = [], torch.Tensor.tolist

    def tolist(x):
        if x.dtype == torch.float64:
            reads.append(x.shape)
        return to_list(x)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    with handle.fixed_sigma(0.5):
        for _ in range(2):
            case.forward(transformer)
    assert handle.latest_step()["density"] is None and not reads
    report = json.loads(json.dumps(handle.report()))
    assert reads == [torch.Size([2, 2])] and method.selection.calls == 4
    sizes = make_tiling(case.GRID, case.RAGGED).sizes().double()
    kept = [float(sizes[:n].sum() / sizes.sum()) for n in (1, 2, 3, 4)]
    means = [(kept[0] + kept[2]) / 2, (kept[1] + kept[3]) / 2]
    chosen, dense = report["steps"][0]["layers"]
    assert chosen["layers"] == [0, 1] and chosen["densities"] == pytest.approx(means, abs=1e-4)
    assert chosen["density"] == pytest.approx(sum(means) / 2) and (dense["layers"], dense["density"]) == ([2], 1.0)
    assert report["density"] == report["steps"][0]["density"] == pytest.approx((sum(means) + 1) / 3)
    assert (chosen["calls"], dense["calls"]) == (4, 2) and "densities" not in dense


def test_a_handle_prints_as_what_ran(tiny_dir):
    pipe = load(tiny_dir)
    handle = apply(pipe, case.mixed(case.SPARSE, case.DENSE), "sta")
    assert "nothing has run" in str(handle) and "mixed" in repr(handle) and "1 transformer" in repr(handle)
    case.video(pipe, steps=8)
    text = str(handle)
    for part in ("mixed", "run as sta", "8 steps", "5 x 6 x 7", "sparse", "cpu", "sdpa"):
        assert part in text
    assert handle.summary() == text and len(text.splitlines()) < 10
    handle.remove()
    assert "removed" in repr(handle)


def test_a_layer_that_did_not_run_is_not_reported_as_run(transformer):
    """Planted: a block that never calls its attention."""
    block = transformer.blocks[1]
    block.attn1.forward = lambda hidden_states, *rest: hidden_states
    with apply(transformer, case.one(case.SPARSE)) as handle:
        case.forward(transformer)
        report = handle.report()
    assert report["steps"][0]["calls"] == 2 and report["kernels"] == {"cpu": 2}
    assert report["fallbacks"][0]["layers"] == [1]


def test_a_new_loop_starts_a_new_report(tiny_dir):
    pipe = load(tiny_dir)
    handle = apply(pipe, case.mixed(case.SPARSE, case.FP8))
    for steps in (5, 3, 1, 1):
        for guidance in (3.0, 1.0):
            case.video(pipe, steps=steps, guidance=guidance)
            report = handle.report()
            assert [step["index"] for step in report["steps"]] == list(range(steps))
            assert all(step["calls"] == (4 if guidance > 1 else 2) for step in report["steps"])
    handle.clear_report()
    assert handle.report()["steps"] == []


def test_a_report_survives_remove_and_is_a_copy(transformer):
    handle = apply(transformer, case.one(case.SPARSE))
    case.forward(transformer)
    handle.report()["steps"].clear()
    handle.remove()
    case.forward(transformer)
    assert handle.report()["steps"][0]["calls"] == 3
    assert handle.schedule.name == "sparse" and handle.method is None


def test_the_presets_run_on_a_grid_like_nanos(transformer):
    """The grid of a 256x160 video of 33 frames: the paper's preset must be sparse on it."""
    latents = torch.randn(1, 4, 9, 20, 32)
    for name, most in (("safe", 0.8), ("balanced", 0.8), ("paper", 0.5)):
        with pytest.warns() if name == "paper" else _nothing(), apply(transformer, preset(name)) as handle:
            for sigma in (1.0, 0.8, 0.3):
                with handle.fixed_sigma(sigma):
                    assert case.forward(transformer, **small(latents)).isfinite().all()
            density = {step["profile"]: step["layers"][0]["density"] for step in handle.report()["steps"]}
            assert min(density.values()) < most


def small(latents: torch.Tensor) -> dict[str, torch.Tensor]:
    return case.inputs(batch=1) | {"hidden_states": latents}


def _nothing():
    from contextlib import nullcontext

    return nullcontext()
