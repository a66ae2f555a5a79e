"""The Triton kernels in the CPU interpreter, against the fp64 contract and against the reference."""

import math
from dataclasses import replace

import pytest
import torch

from fpsgen.attention.reference import attention_reference

from .cases import BY_NAME, CASES, EDGES, IDS, Case, line_case
from .numerics import check, check_norm_rope, check_prepared, truth

pytestmark = [
    pytest.mark.usefixtures("interpreted_kernels"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log2"),  # LSE of rows without a key is -inf
]


def run(case: Case, fp8: bool, dtype=torch.float32, inputs=None, config=None):
    """The kernel on outputs that were NaN before."""
    from fpsgen.attention.kernels import attention_kernel

    laid = case.lay()
    q, k, v = inputs or case.inputs(dtype)
    padded = case.dim in (64, 128)
    out = torch.full(q.shape, math.nan, dtype=q.dtype) if padded else None
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), math.nan)
    return (
        (q, k, v),
        laid,
        attention_kernel(q, k, v, laid.tables, laid.lists, fp8, case.granularity, config=config, out=out, lse=lse),
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_fp8_keeps_the_contract(case):
    inputs, laid, (out, lse) = run(case, True)
    check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True, case.granularity))
    same, same_lse = attention_reference(*inputs, laid.layout, laid.tile_lists, True, case.granularity)
    torch.testing.assert_close(out, same, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse, same_lse, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["ragged_window", "tile_of_three_blocks", "empty_rows", "per_batch_head", "small_head_dim"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_keeps_the_contract(name, dtype):
    case = BY_NAME[name]
    inputs, laid, (out, lse) = run(case, False, dtype)
    true = truth(*inputs, laid.layout, laid.tile_lists, False)
    mean_error = (out.double() - true.out).norm() / true.out.norm().clamp(min=1e-300)
    assert mean_error < 5e-3 and out.dtype == dtype  # P and the output are rounded to 8 or 11 bits
    finite = true.lse.isfinite()
    assert torch.equal(lse == -math.inf, ~finite)
    torch.testing.assert_close(lse[finite].double(), true.lse[finite], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("length", EDGES)
def test_every_tail(length):
    case = line_case(length)
    inputs, laid, (out, lse) = run(case, True)
    check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True))


def test_constant_values_come_back_exactly():
    case = BY_NAME["ragged_window"]
    q, k, v = case.inputs()
    _, _, (out, _) = run(case, True, inputs=(q * 3, k, torch.ones_like(v)))
    torch.testing.assert_close(out, torch.ones_like(out), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 40.0, 1e15])
def test_extreme_logits_stay_finite(scale):
    case = BY_NAME["ragged_window"]
    q, k, v = case.inputs()
    inputs, laid, (out, lse) = run(case, True, inputs=(q * scale, k, v))
    assert out.isfinite().all() and lse.isfinite().all()
    check(out, lse / max(scale, 1.0), _scaled_lse(truth(*inputs, laid.layout, laid.tile_lists, True), max(scale, 1.0)))


def _scaled_lse(true, scale):
    true.lse = true.lse / scale
    return true


def test_nan_is_not_hidden():
    case = BY_NAME["ragged_window"]
    q, k, v = case.inputs()
    k[0, 0, 0, 0] = math.nan
    inputs, laid, (out, _) = run(case, True, inputs=(q, k, v))
    expected, _ = attention_reference(*inputs, laid.layout, laid.tile_lists, True)
    assert out[0, 0, 0].isnan().any() and out[0][expected[0].isfinite()].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["ragged_window", "shared_scales", "per_batch_head", "tile_of_three_blocks"])
def test_norm_and_rope_on_the_way_into_blocks(name, dtype):
    from fpsgen.attention.kernels import attention_kernel, quantize

    case = BY_NAME[name]
    laid, (q, k, v), norm_rope = case.lay(), case.inputs(dtype), case.norm_rope(dtype)
    k, v = torch.stack((k, v), 2).unbind(2)
    check_norm_rope(
        quantize(q, k, v, laid.tables, case.granularity, norm_rope=norm_rope),
        q,
        k,
        laid.layout,
        case.granularity,
        norm_rope,
    )
    out, lse = attention_kernel(q, k, v, laid.tables, laid.lists, True, case.granularity, norm_rope=norm_rope)
    wide = (*norm_rope.apply(q.float(), k.float()), v.float())
    true = truth(*wide, laid.layout, laid.tile_lists, True, case.granularity)
    # an E4M3 value that falls to the other side here and there moves single rows, not the whole
    assert ((out.double() - true.out).norm() / true.out.norm()) < 1e-2
    assert (lse - true.lse).abs().max() < 2e-2


@pytest.mark.parametrize(("heads", "batch", "granularity"), [(1, 1, 1), (3, 2, 2), (12, 1, 3), (7, 2, 1), (20, 1, 100)])
@pytest.mark.parametrize("distance", [0, 1, 12])
def test_norm_and_rope_of_any_heads_and_scale_groups(heads, batch, granularity, distance, monkeypatch):
    """Fewer blocks than casts come behind, more, and none behind."""
    from fpsgen.attention.kernels import quantize_qkv

    case = Case("small", (2, 4, 7), (2, 4, 2), (1, 1, 1), batch=batch, heads=heads)
    monkeypatch.setattr(quantize_qkv, "NORM_ROPE", replace(quantize_qkv.NORM_ROPE, cast_distance=distance))
    laid, (q, k, v), norm_rope = case.lay(), case.inputs(torch.bfloat16), case.norm_rope(torch.bfloat16)
    ready = quantize_qkv.quantize(q, k, v, laid.tables, granularity, norm_rope=norm_rope)
    check_norm_rope(ready, q, k, laid.layout, granularity, norm_rope)
    plain = quantize_qkv.quantize(q, k, v, laid.tables, granularity)
    assert torch.equal(ready.v_scale, plain.v_scale) and torch.equal(ready.v.float(), plain.v.float())


def test_rows_of_nan_leave_the_scale_to_the_others():
    from fpsgen.attention.kernels import quantize

    case = BY_NAME["full_blocks"]
    laid, (q, k, v), norm_rope = case.lay(), case.inputs(torch.bfloat16), case.norm_rope(torch.bfloat16)
    wanted = quantize(q, k, v, laid.tables, 1, norm_rope=norm_rope)
    q, token = q.clone(), laid.layout.rows.flatten()
    row = wanted.q.float().abs().amax((0, 1, 3)).argmin()  # not the largest of its block
    q[:, token[row]] = math.nan
    got = quantize(q, k, v, laid.tables, 1, norm_rope=norm_rope)
    others = torch.arange(len(token)) != row
    assert torch.equal(got.q_scale, wanted.q_scale) and got.q.float()[:, :, row].isnan().all()
    assert torch.equal(got.q.float()[:, :, others], wanted.q.float()[:, :, others])


@pytest.mark.parametrize("kinds", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_queries_and_keys_of_two_types(kinds):
    from fpsgen.attention.kernels import quantize

    case = BY_NAME["ragged_window"]
    laid, (q, k, v), norm_rope = case.lay(), case.inputs(torch.bfloat16), case.norm_rope(torch.bfloat16)
    wanted = quantize(q, k, v, laid.tables, 1, norm_rope=norm_rope)
    got = quantize(
        q.to(kinds[0]), k.to(kinds[1]), v, laid.tables, 1, norm_rope=norm_rope._replace(norm_q=norm_rope.norm_q.float())
    )
    assert torch.equal(got.q.float(), wanted.q.float()) and torch.equal(got.k.float(), wanted.k.float())


@pytest.mark.parametrize(("name", "fp8"), [("small_head_dim", True), ("ragged_window", False)])
def test_norm_and_rope_where_no_pass_does_them(name, fp8):
    from fpsgen.attention.kernels import attention_kernel

    case = BY_NAME[name]
    laid, (q, k, v), norm_rope = case.lay(), case.inputs(torch.bfloat16), case.norm_rope()
    got = attention_kernel(q, k, v, laid.tables, laid.lists, fp8, norm_rope=norm_rope)
    wanted = attention_kernel(*norm_rope.apply(q, k), v, laid.tables, laid.lists, fp8)
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


def test_strided_inputs():
    case = BY_NAME["ragged_window"]
    q, k, v = case.inputs(torch.bfloat16)
    packed = torch.stack((q, k, v), 2)
    _, _, (out, lse) = run(case, True, inputs=packed.unbind(2))
    _, _, (same, same_lse) = run(case, True, inputs=(q, k, v))
    assert torch.equal(out, same) and torch.equal(lse, same_lse)


def test_query_rows_per_program_change_nothing():
    from fpsgen.attention.kernels import PortableConfig

    case = Case("wide", (6, 8, 9), (6, 8, 8), (1, 1, 1), dim=128)
    results = [run(case, True, config=PortableConfig(rows, 4, 2))[2] for rows in (64, 128)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("granularity", [1, 2, 5])
def test_quantize_equals_the_torch_rule_bit_for_bit(granularity):
    from fpsgen.attention.kernels import quantize

    case = BY_NAME["ragged_window"]
    laid = case.lay()
    q, k, v = case.inputs(torch.bfloat16)
    check_prepared(quantize(q, k, v, laid.tables, granularity), q, k, v, laid.layout, granularity, False)
    check_prepared(quantize(q, k, v, laid.tables, granularity, permuted=True), q, k, v, laid.layout, granularity, True)


def test_head_dims_beyond_the_kernels_are_refused():
    case = Case("large", (2, 4, 4), (2, 4, 4), dim=160)
    with pytest.raises(ValueError, match="160"):
        run(case, True)


def less(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """x [B, L, H, D] without a mean [B, H, D]."""
    return x.float() - mean[:, None]


def biased(case: Case, dtype=torch.bfloat16) -> tuple[torch.Tensor, ...]:
    """Keys and values whose channels are far from zero."""
    q, k, v = case.inputs(dtype)
    random = torch.Generator().manual_seed(4)
    shift = 8 * torch.randn(2, case.heads, case.dim, generator=random)
    return q, (k + shift[0]).to(dtype), (v + shift[1]).to(dtype)


@pytest.mark.parametrize(("smooth_k", "center_v"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", ["ragged_window", "shared_scales", "per_batch_head"])
def test_keys_and_values_without_their_means(name, smooth_k, center_v):
    from fpsgen.attention.kernels import quantize

    case = BY_NAME[name]
    laid, (q, k, v) = case.lay(), biased(case)
    ready = quantize(q, k, v, laid.tables, case.granularity, True, smooth_k=smooth_k, center_v=center_v)
    if smooth_k:
        torch.testing.assert_close(ready.k_mean, k.double().mean(1).float(), atol=1e-5, rtol=1e-6)
        k = less(k, ready.k_mean)
    if center_v:
        torch.testing.assert_close(ready.v_mean, v.double().mean(1).float(), atol=1e-5, rtol=1e-6)
        v = less(v, ready.v_mean)
    check_prepared(ready, q, k, v, laid.layout, case.granularity, True)


@pytest.mark.parametrize("name", ["ragged_window", "shared_scales", "per_batch_head"])
def test_normed_keys_without_their_mean(name):
    from fpsgen.attention.kernels import quantize

    case = BY_NAME[name]
    laid, (q, k, v), norm_rope = case.lay(), case.inputs(torch.bfloat16), case.norm_rope(torch.bfloat16)
    k = k + 3
    norm_rope.table[:, : case.dim // 4] = 1  # some pairs hardly rotate, so that a mean is left
    norm_rope.table[:, case.dim // 2 : 3 * case.dim // 4] = 0
    ready = quantize(q, k, v, laid.tables, case.granularity, True, norm_rope, smooth_k=True, center_v=True)
    mean = norm_rope.apply(q.double(), k.double())[1].mean(1)
    assert mean.abs().max() > 1
    torch.testing.assert_close(ready.k_mean, mean.float(), atol=1e-5, rtol=1e-5)
    check_norm_rope(ready, q, k, laid.layout, case.granularity, norm_rope, ready.k_mean)
    v_only = quantize(q, k, v, laid.tables, case.granularity, True, center_v=True)
    assert torch.equal(ready.v.float(), v_only.v.float()) and torch.equal(ready.v_mean, v_only.v_mean)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["ragged_window", "empty_rows", "per_batch_head"])
def test_means_come_back(name, norm):
    """The output and the LSE are those of the keys and values as they were given, with a smaller error."""
    from fpsgen.attention.kernels import attention_kernel

    case = BY_NAME[name]
    laid, (q, k, v), norm_rope = case.lay(), biased(case, torch.float32), case.norm_rope() if norm else None
    options = {"norm_rope": norm_rope, "smooth_k": True, "center_v": True}
    out, lse = attention_kernel(q, k, v, laid.tables, laid.lists, True, case.granularity, **options)
    assert torch.equal(out, attention_kernel(q, k, v, laid.tables, laid.lists, True, return_lse=False, **options)[0])
    plain, plain_lse = attention_kernel(q, k, v, laid.tables, laid.lists, True, norm_rope=norm_rope)
    q, k = norm_rope.apply(q, k) if norm_rope else (q, k)
    true = truth(q, k, v, laid.layout, laid.tile_lists, False)
    seen = true.lse.isfinite()
    assert torch.equal(lse == -math.inf, ~seen) and (out.transpose(1, 2)[~seen] == 0).all()

    def errors(out, lse):
        return float((out - true.out).norm() / true.out.norm()), float((lse - true.lse)[seen].abs().mean())

    for mine, theirs in zip(errors(out, lse), errors(plain, plain_lse), strict=True):
        assert mine < 0.03 and (norm or mine < 0.3 * theirs)
    k_mean, v_mean = k.mean(1), v.mean(1)
    if not norm:  # and they are what the contract asks of the same inputs without their means
        true = truth(q, less(k, k_mean), less(v, v_mean), laid.layout, laid.tile_lists, True, case.granularity)
        true.lse += torch.einsum("blhd,bhd->bhl", q, k_mean).double() * case.dim**-0.5
        out = torch.where(seen.transpose(1, 2)[..., None], less(out, v_mean), out)
        check(out, lse, true)


def test_nan_does_not_spoil_a_mean():
    from fpsgen.attention.kernels import quantize

    case = BY_NAME["ragged_window"]
    laid, (q, k, v) = case.lay(), biased(case)
    k[0, 3, 0, 2] = v[0, 3, 0, 2] = math.nan
    ready = quantize(q, k, v, laid.tables, smooth_k=True, center_v=True)
    assert ready.k_mean.isfinite().all() and ready.v_mean.isfinite().all() and ready.v_scale.isfinite().all()
    assert ready.v.float().isnan().sum() == 1
