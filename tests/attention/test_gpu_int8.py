"""INT8 queries and keys, key blocks left out, and online choices on a CUDA device."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fpsgen.attention import AttentionPlan, Profile, attend, kept_density, select_lists
from fpsgen.attention.kernels.launch_config import HEAD_DIMS, Sm90Config, choose_portable

from .cases import CASES, HOPPER_CASES, Case
from .gpu import hopper_marks, needs_gpu, run
from .numerics import check_norm_rope, faults, measure, truth

pytestmark = needs_gpu
HOPPER = [Sm90Config(3, stages=2, pingpong=True), Sm90Config(2, poly=8)]
GRID = (9, 20, 26)


def hopper(test):
    for mark in hopper_marks:
        test = mark(test)
    return test


# The sm_90 kernel takes the offset of INT8 scores off with a block's maximum, which shifts all P of the block by up to
# 2^-13: such a P falls to the other side of a rounding boundary twice as often as one that fp32's rounding alone moves.
SM90_SHARE = 0.2  # see numerics.NOISE_SHARE


def contract(case, config=None, inputs=None):
    inputs, laid, (out, lse) = run(case, True, inputs=inputs, config=config, int8_qk=True)
    true = truth(*inputs, laid.layout, laid.tile_lists, True, case.granularity, int8=True)
    figures = measure(out, lse, true)
    if isinstance(config, Sm90Config):
        figures["share"] = SM90_SHARE
    broken = faults(figures)
    assert not broken, f"{case.name}: {'; '.join(broken)}"
    return figures


@hopper
@pytest.mark.parametrize("config", HOPPER, ids=str)
@pytest.mark.parametrize("case", HOPPER_CASES, ids=lambda case: case.name)
def test_hopper_keeps_the_contract(case, config):
    print(case.name, config, contract(case, config))


@hopper
@pytest.mark.parametrize("config", HOPPER, ids=str)
@pytest.mark.parametrize("length", [65, 127, 128, 129, 193, 257, 385])
def test_every_tail_on_hopper(length, config):
    contract(Case("line", (1, 1, 2 * length - 1), (1, 1, length), dim=128, heads=3, batch=2), config)


@hopper
@pytest.mark.parametrize("config", HOPPER, ids=str)
def test_the_largest_sums_are_exact(config):
    case = HOPPER_CASES[2]
    q, _, v = case.inputs(device="cuda")
    sign = torch.sign(torch.randn(q.shape, generator=torch.Generator().manual_seed(1))).cuda()
    contract(case, config, (sign.abs() * 0.1, sign * 0.1, v))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_portable_keeps_the_contract(case):
    dim, block = max(64, case.dim), case.lay().layout.block
    config = choose_portable(dim, block, True, torch.cuda.get_device_capability())
    contract(case, config)


@pytest.mark.parametrize("smooth_k", [False, True])
@pytest.mark.parametrize("case", [c for c in HOPPER_CASES if c.dim in HEAD_DIMS], ids=lambda case: case.name)
def test_norm_and_rope_on_the_way_into_int8(case, smooth_k):
    from fpsgen.attention.kernels import quantize

    laid, (q, k, v) = case.lay("cuda"), case.inputs(torch.bfloat16, "cuda")
    norm_rope = case.norm_rope(torch.bfloat16, "cuda")
    ready = quantize(q, k, v, laid.tables, case.granularity, True, norm_rope, smooth_k, int8_qk=True)
    check_norm_rope(ready, q, k, laid.layout, case.granularity, norm_rope, ready.k_mean if smooth_k else None)


def test_nan_is_not_hidden():
    case = HOPPER_CASES[1]
    q, k, v = case.inputs(device="cuda")
    k[0, 0, 0, 0] = math.nan
    _, _, (out, _) = run(case, True, inputs=(q, k, v), int8_qk=True)
    assert out[0, 0, 0].isnan().any() and out[0, :, 1].isfinite().all()


@pytest.mark.parametrize("threshold", [2.0, 50.0])
def test_blocks_left_out(threshold):
    """Every other block is far behind the first: at 2 its values count nothing, at 50 not a bit changes."""
    case = Case("far", (9, 11, 13), (4, 5, 6), dim=128)
    laid = case.lay("cuda")
    q, k, v = case.inputs(device="cuda")
    behind = (laid.layout.token_block % 2).cuda()[:, None, None]
    inputs = 1.0 + 0.1 * q, 3.0 / 128**0.5 * (1.0 - 1.1 * behind) + 0.02 * k, v + 5 * behind
    config = choose_portable(128, laid.layout.block, True, torch.cuda.get_device_capability())
    _, _, (plain, _) = run(case, True, inputs=inputs, config=config, int8_qk=True)
    _, _, (out, _) = run(case, True, inputs=inputs, config=config, int8_qk=True, pv_threshold=threshold)
    if threshold == 50.0:
        assert torch.equal(out, plain)
        return
    seen = [x[:, behind.flatten() == 0] for x in inputs]
    near = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (inputs[0], *seen[1:]))).transpose(1, 2)
    far, apart = (float((x - near).norm() / near.norm()) for x in (plain, out))
    assert apart < 0.1 < 0.5 < far


def video_like():
    random = torch.Generator().manual_seed(4)
    size = (1, GRID[0] * GRID[1] * GRID[2], 4, 128)
    block = AttentionPlan(GRID, "blocks", method="sparge").layout.token_block
    centre = torch.randn(5, 4, 128, generator=random)[block % 5]
    q, k, v = (torch.randn(size, generator=random) for _ in range(3))
    return [x.cuda().bfloat16() for x in (centre + 0.5 * q, centre + 0.5 * k + 2, v)]


@pytest.mark.parametrize("method", ["sparge", "svg"])
def test_choices_are_those_of_a_cpu(method):
    inputs = video_like()
    plan = AttentionPlan.of(Profile("p", method), GRID)
    lists = select_lists(*inputs, plan)
    same = select_lists(*(x.cpu() for x in inputs), plan)
    assert torch.equal(lists.list_count.cpu(), same.list_count)
    assert (
        float(kept_density(lists, plan)) == pytest.approx(float(kept_density(same, plan))) and lists.list_index.is_cuda
    )
    out, true = attend(*inputs, plan), attend(*(x.cpu() for x in inputs), plan)
    assert float((out.cpu().float() - true.float()).norm() / true.float().norm()) < 0.05


@pytest.mark.parametrize("method", ["sparge", "svg"])
def test_a_choice_does_not_wait_for_the_device(method):
    inputs, plan = video_like(), AttentionPlan.of(Profile("p", method), GRID)
    kept_density(select_lists(*inputs, plan), plan)  # tables are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        kept_density(select_lists(*inputs, plan), plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("smooth_v", [False, True])
def test_sage_is_near_dense_attention(smooth_v):
    """Its LSE is off by what INT8 costs some scores, as the reference's is."""
    q, k, v = video_like()
    plan = AttentionPlan(GRID, "blocks", method="sage", options={"smooth_v": smooth_v})
    out, lse = attend(q, k, v + 2, plan, return_lse=True)
    wide = [x.double().transpose(1, 2) for x in (q, k, v + 2)]
    score = wide[0] @ wide[1].mT * 128**-0.5
    true = (score.softmax(-1) @ wide[2]).transpose(1, 2)
    assert float((out - true).norm() / true.norm()) < 0.02
    torch.testing.assert_close(lse.double(), score.logsumexp(-1), atol=0.1, rtol=0)
    plan = AttentionPlan(GRID, "blocks", method="sage", impl="reference")
    _, same = attend(*(x.cpu().float() for x in (q, k, v)), plan, return_lse=True)
    apart = (lse.cpu() - same).abs()
    assert apart.mean() < 1e-3 and apart.max() < 0.07  # a P that falls to the other side of a rounding boundary


@pytest.mark.parametrize("package", ["comfy_kitchen", "sageattention"])
def test_sage_errs_little_more_than_others_int8(package):
    """comfy-kitchen's P.V is in INT8, SageAttention's (version 1) in FP16."""
    other = pytest.importorskip(package, reason=f"needs {package}")
    q, k, v = video_like()
    plan = AttentionPlan(GRID, "blocks", method="sage")
    wide = [x.double().transpose(1, 2) for x in (q, k, v)]
    true = ((wide[0] @ wide[1].mT * 128**-0.5).softmax(-1) @ wide[2]).transpose(1, 2)
    if package == "sageattention":
        theirs = other.sageattn(q, k.clone(), v, tensor_layout="NHD")
    else:
        theirs = other.int8_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    defined = attend(*(x.cpu() for x in (q, k, v)), replace(plan, impl="reference")).cuda()
    own, defined, least = (float((x - true).norm() / true.norm()) for x in (attend(q, k, v, plan), defined, theirs))
    assert own < 1.1 * defined and least < 0.05 and own < 4 * least
