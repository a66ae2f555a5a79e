"""The list of methods, and a made-up one that is in it for a test."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fpsgen.attention import (
    METHODS,
    AttentionPlan,
    Precision,
    Profile,
    Schedule,
    attend,
    fps_attention,
    kept_density,
    select_lists,
)
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import TileLists, mask_from_lists

from .made_up_method import METHOD
from .test_sparse_sdpa import exact

GRID = (4, 10, 12)


@pytest.fixture
def name(monkeypatch):
    monkeypatch.setitem(METHODS, METHOD.name, METHOD)
    return METHOD.name


def inputs(grad=False):
    random = torch.Generator().manual_seed(9)
    return tuple(torch.randn(2, 480, 3, 16, generator=random).requires_grad_(grad) for _ in range(3))


def mask_of(lists, plan):
    """Of kernel blocks, which are the units of a small grid."""
    assert plan.layout.num_blocks == plan.layout.num_units
    return mask_from_lists(TileLists(*lists), plan.layout)


def test_every_method_tells_about_itself():
    for name, method in METHODS.items():
        assert name == method.name and method.citation and "\n" not in method.summary
        assert re.fullmatch("#[0-9a-f]{6}", method.colour)
    assert len({m.colour for m in METHODS.values()}) == len(METHODS)
    traits = {name: (m.quantized, m.windowed, m.online, m.dense, m.tiled) for name, m in METHODS.items()}
    assert traits["bf16"] == (False, False, False, True, False)
    assert traits["fp8"] == (True, False, False, True, True)
    assert traits["sta"] == (False, True, False, False, True)
    assert traits["fps"] == (True, True, False, False, True)


def test_names_are_known_before_torch_is():
    code = "import sys\nfrom fpsgen.attention import METHODS, Profile, preset\nassert METHODS and preset('safe')\n"
    code += "assert not {'torch', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_method_of_one_file_runs_through_schedule_and_plan(name):
    profile = Profile("p", name, tile="blocks", granularity=2, options={"topk": 0.5})
    schedule = Schedule("s", (profile, Profile("d", "fps", density=0.3)), ((0.0, 0.5, "p"), (0.5, 1.0, "d")))
    assert Schedule.from_toml(schedule.to_toml()) == schedule and schedule.tiles == ("blocks",)
    adapted = schedule.with_method(name)
    assert adapted.profiles == (Profile("p", name, tile="even", granularity=2), Profile("d", name, tile="even"))
    assert schedule.with_method("sta").profiles[0].method == "bf16"
    plan = AttentionPlan.of(profile, GRID)
    assert plan.option("topk") == 0.5 and AttentionPlan.of(adapted.profiles[0], GRID).option("topk") == 0.25
    assert plan.density is None and not plan.dense and plan.needs_order and plan.kernel("cpu") == "cpu"
    assert not plan.fuses_norm_rope("cpu")


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_its_keys_are_those_that_it_chose_at_this_call(name, impl):
    plan = AttentionPlan.of(Profile("p", name, tile="blocks"), GRID, impl)
    q, k, v = inputs()
    for call in range(2):
        lists = select_lists(q, k, v, plan)
        assert lists.list_index.shape[0] == 6 and lists.list_index.dtype == torch.int32
        out, lse = attend(q, k, v, plan, return_lse=True)
        true, height = exact(*fake_quantize(q, k, v, plan.layout), mask_of(lists, plan))
        assert float((out - true).norm() / true.norm()) < 0.03, call
        torch.testing.assert_close(lse.double(), height, atol=0.03, rtol=0.01)
        assert float(kept_density(lists, plan)) == pytest.approx(mask_of(lists, plan).double().mean().item())
        q = q.flip(1)


def test_a_given_list_takes_the_place_of_its_choice(name):
    plan = AttentionPlan.of(Profile("p", name, tile="blocks"), GRID)
    q, k, v = inputs()
    lists = select_lists(q.flip(1), k, v, plan)
    out = attend(q, k, v, plan, lists=lists)
    true, _ = exact(*fake_quantize(q, k, v, plan.layout), mask_of(lists, plan))
    assert float((out - true).norm() / true.norm()) < 0.03


def test_it_trains(name):
    plan = AttentionPlan.of(Profile("p", name, tile="blocks"), GRID)
    leaves = inputs(grad=True)
    out = attend(*leaves, plan)
    mask = mask_of(select_lists(*leaves, plan), plan)
    wide = [x.detach().double().requires_grad_() for x in fake_quantize(*(x.detach() for x in leaves), plan.layout)]
    true, _ = exact(*wide, mask)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(out, leaves, grad)
    for a, b in zip(got, torch.autograd.grad(true, wide, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-3)


def test_it_is_traced_whole(name):
    torch._dynamo.reset()
    plan = AttentionPlan.of(Profile("p", name, tile="blocks"), GRID)
    q, k, v = inputs()
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, plan), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(q, k, v), attend(q, k, v, plan))


def test_it_goes_with_prefix_and_smooth_keys(name):
    q, k, v = (torch.cat([x[:, :5], x], 1) for x in inputs())
    plain = fps_attention(q, k, v, grid=GRID, method=name, tile="blocks", prefix=5)
    smooth = fps_attention(q, k + 3, v, grid=GRID, method=name, tile="blocks", prefix=5, smooth_k=True)
    assert plain.shape == q.shape and plain.isfinite().all()
    assert float((plain - smooth).norm() / plain.norm()) < 0.2


def test_a_pair_of_precisions_that_no_kernel_has_is_refused(monkeypatch):
    mixed = replace(METHOD, name="mixed", pv=Precision.BF16)
    monkeypatch.setitem(METHODS, "mixed", mixed)
    assert mixed.quantized
    with pytest.raises(ValueError, match="mixed"):
        AttentionPlan(GRID, method="mixed")


@pytest.mark.parametrize(
    "fields",
    [{"window": (1, 1, 1)}, {"density": 0.2}, {"options": {"top": 0.5}}, {"options": {"topk": 1}}, {"options": 3}],
)
def test_what_it_does_not_take_is_refused_in_two_lines(name, fields):
    with pytest.raises(ValueError) as caught:
        Profile("p", name, tile="blocks", **fields)
    assert str(caught.value).count("\n") == 1


def test_nobody_changes_a_method_s_options():
    for method in METHODS.values():
        for table in (method.options, method.allowed):
            with pytest.raises(TypeError):
                table["more"] = 1
