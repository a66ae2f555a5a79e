"""The gradient of attention on CPUs, and through the operator, against fp64 autograd through masked softmax."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fpsgen.attention import AttentionPlan, attend, backward
from fpsgen.attention.norm_rope import apply_norm_rope
from fpsgen.attention.plan import BlockLists

from .cases import BY_NAME, CASES, Case
from .gradients import check, exact, of_case, window_mask
from .mutant import load

LONG = Case("long", (5, 30, 32), (3, 10, 4), (1, 3, 3), heads=1, dim=64)  # 4,800 tokens, lists that overlap
WIDE = Case("wide", (5, 6, 7), (2, 4, 4), (3, 1, 1), batch=2, heads=2, dim=128, granularity=2)


def gathered(module, case: Case, fp8: bool, dtype=torch.float32):
    laid = case.lay()
    given, true = of_case(case, laid, dtype, fp8)
    groups = module.token_groups(laid.layout, *laid.lists)
    return module.gathered_gradient(*given[:4], laid.layout, groups, fp8, case.granularity), true


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "plain"])
@pytest.mark.parametrize("case", [*CASES, WIDE, LONG], ids=lambda case: case.name)
def test_gathered_gradients_are_those_of_masked_softmax(case, fp8):
    check(*gathered(backward, case, fp8), 1e-5, 1e-4)


def test_gathered_gradients_in_bf16():
    check(*gathered(backward, WIDE, False, torch.bfloat16), 8e-3, 3e-2)


def test_only_a_plan_s_own_lists_are_transposed_once():
    pytest.importorskip("triton", reason="triton is not installed")
    plan = AttentionPlan((4, 6, 10), (2, 3, 5), (1, 1, 1), method="sta")
    index, count = plan.lists("cpu")
    own = backward._query_blocks(plan, plan.lists("cpu"))
    assert own is not None and own is backward._query_blocks(plan, plan.lists("cpu"))
    assert backward._query_blocks(plan, BlockLists(index.clone(), count)) is None


MISTAKES = {
    "sums assigned, not added, where lists overlap": ("head] += some", "head] = some.to(total.dtype)"),
    "the first head's list for all": (
        "served_by(g, len(groups), heads)",
        "served_by(g, len(groups), heads)[0], slice(0, 1)",
    ),
    "the first batch's list for all": (
        "served_by(g, len(groups), heads)",
        "slice(0, 1), served_by(g, len(groups), heads)[1]",
    ),
    "keys in the place of queries": ("places[1:]", "places[:3]"),
    "gradient at the unquantized inputs": ("if fp8:", "if not fp8:"),
    "scales of single blocks": ("layout, granularity, int8_qk=int8_qk", "layout, int8_qk=int8_qk"),
    "the last list forgotten": ("for rows, keys in lists:", "for rows, keys in lists[:-1]:"),
}
BATTERY = [
    BY_NAME[name] for name in ("ragged_window", "per_head", "per_batch_head", "shared_scales", "tile_of_three_blocks")
]


@pytest.mark.parametrize("change", MISTAKES.values(), ids=MISTAKES)
def test_planted_mistakes_are_caught(change, tmp_path):
    mutant = load(backward, tmp_path, change)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        for case in BATTERY:
            check(*gathered(mutant, case, True), 1e-5, 1e-4)


def leaves_of(case: Case, dtype=torch.float32):
    return [x.requires_grad_() for x in case.inputs(dtype)]


def plan_of(case: Case, method: str, impl: str = "auto") -> AttentionPlan:
    return AttentionPlan(case.grid, case.tile, case.lists, case.granularity, method, impl)


def true_gradients(case: Case, plan: AttentionPlan, inputs, grad):
    """At the de-quantized inputs."""
    from fpsgen.attention.quantize import fake_quantize

    tables = plan.tables("cpu")
    inputs = [x.detach() for x in inputs]
    seen = fake_quantize(*inputs, tables.layout, plan.granularity) if plan.fp8 else inputs
    mask = window_mask(case.grid, case.tile, case.lists)[tables.order][:, tables.order][None]
    return exact(*seen, grad, mask)[2]


@pytest.mark.parametrize("method", ["fps", "sta"])
@pytest.mark.parametrize("kind", ["plain", "checkpoint", "compile"])
def test_through_the_operator(method, kind):
    plan = plan_of(WIDE, method)
    leaves = leaves_of(WIDE)
    grad = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(4))

    def layer(q, k, v):
        return attend(q, k, v, plan)

    if kind == "checkpoint":
        out = checkpoint(layer, *leaves, use_reentrant=False)
    elif kind == "compile":
        torch._dynamo.reset()
        out = torch.compile(layer, fullgraph=True, backend="aot_eager")(*leaves)
    else:
        out = layer(*leaves)
    out.backward(grad)
    check([x.grad for x in leaves], true_gradients(WIDE, plan, leaves, grad), 1e-5, 1e-4)


def test_through_norm_and_rope():
    """A kernel that norms and rotates has no gradient; with gradients on, torch does that first."""
    plan = plan_of(WIDE, "sta")
    fused = WIDE.norm_rope()
    leaves = leaves_of(WIDE)
    grad = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(4))
    attend(*leaves, plan, norm_rope=fused).backward(grad)
    q, k, v = (x.detach().double().requires_grad_() for x in leaves)
    normed = [apply_norm_rope(x, w, fused.table, fused.eps) for x, w in ((q, fused.norm_q), (k, fused.norm_k))]
    tables = plan.tables("cpu")
    mask = window_mask(WIDE.grid, WIDE.tile, WIDE.lists)[tables.order][:, tables.order][None]
    inner = exact(*normed, v, grad, mask)[2]
    true = (*torch.autograd.grad(normed, (q, k), inner[:2]), inner[2])
    check([x.grad for x in leaves], true, 1e-5, 1e-4)


@pytest.mark.parametrize("method", ["fps", "sta"])
def test_kernels_through_the_operator(method, interpreted_here):
    """Forward and backward kernels, in Triton's interpreter: the saved output has P's cast in it."""
    plan = plan_of(WIDE, method, "triton")
    leaves = leaves_of(WIDE, torch.bfloat16)
    grad = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    attend(*leaves, plan).backward(grad)
    got = [x.grad for x in leaves]
    assert all(g.dtype == torch.bfloat16 for g in got)
    bound = 3e-2 if plan.fp8 else 6e-3
    check(got, true_gradients(WIDE, plan, leaves, grad), bound, 5 * bound)
