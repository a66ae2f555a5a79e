"""An output in E4M3 with a scale per channel: what kernels and plain torch give is the wide output, rounded once."""

import pytest
import torch

from fpsgen.attention import AttentionPlan, attend
from fpsgen.attention.quantize import FP8Output, output_scale, quantize_output

from .cases import BY_NAME
from .test_op import GRID, TILE, inputs

CASES = ["ragged_window", "empty_rows", "per_batch_head", "small_head_dim"]


def steps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many E4M3 values lie between two of them."""
    codes = [x.view(torch.int8).short() for x in (a, b)]
    return torch.where((codes[0] < 0) == (codes[1] < 0), (codes[0] - codes[1]).abs(), 999 * (a.float() != b.float()))


def unlike(v: torch.Tensor) -> torch.Tensor:
    """Values whose channels, heads and samples differ in size, and have a mean."""
    batch, _, heads, dim = v.shape
    size = torch.logspace(-2, 2, heads * dim, device=v.device).view(heads, dim)
    return (v + 0.5) * size * torch.logspace(0, 1, batch, device=v.device)[:, None, None, None]


def check(output: FP8Output, wide: torch.Tensor, v: torch.Tensor, center: bool) -> None:
    """output is `wide`, rounded once, in E4M3's whole range."""
    assert output.values.dtype == torch.float8_e4m3fn and output.values.is_contiguous()
    scale = output_scale(v) if not center else output.scale
    torch.testing.assert_close(output.scale, scale, rtol=1e-6, atol=0)
    apart = steps(output.values, quantize_output(wide, scale).values)
    assert apart.max() <= 1 and (apart > 0).float().mean() < 0.01
    back = output.values.float() * output.scale
    assert ((back - wide).norm(dim=(0, 1)) <= 0.04 * wide.norm(dim=(0, 1))).all()  # in every channel


@pytest.mark.parametrize("center_v", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_stores_it(name, center_v, interpreted_here):
    from fpsgen.attention.kernels import attention_kernel

    case = BY_NAME[name]
    laid, (q, k, v) = case.lay(), case.inputs()
    v = unlike(v)
    given = (q, k, v, laid.tables, laid.lists, True, case.granularity)
    wide, lse = attention_kernel(*given, center_v=center_v)
    output, same = attention_kernel(*given, center_v=center_v, fp8_out=True)
    assert torch.equal(lse, same)
    check(output, wide, v, center_v)
    if center_v:  # no more than a mean of values can be
        assert (output.scale < 2.1 * output_scale(v)).all() and (output.scale > 0.3 * output_scale(v)).all()


def test_the_largest_value_is_not_clipped(interpreted_here):
    """Rows that see one value alone give it back."""
    from fpsgen.attention.kernels import attention_kernel

    case = BY_NAME["ragged_window"]
    laid, (q, k, v) = case.lay(), case.inputs()
    v = torch.zeros_like(v) - torch.linspace(1, 300, case.heads * case.dim).view(case.heads, case.dim)
    for center_v in (False, True):
        output, _ = attention_kernel(q, k, v, laid.tables, laid.lists, True, center_v=center_v, fp8_out=True)
        torch.testing.assert_close(output.values.float() * output.scale, v, rtol=2**-4, atol=0)
    output, _ = attention_kernel(q, k, v, laid.tables, laid.lists, True, fp8_out=True)
    assert (output.values.float() == -448).all()


@pytest.mark.parametrize("method", ["fps", "fp8", "sage", "sparge"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_plain_torch_gives_it(method, impl):
    q, k, v = inputs()
    plan = AttentionPlan(GRID, TILE, method=method, impl=impl, smooth_k=True)
    wide, lse = attend(q, k, unlike(v), plan, return_lse=True)
    output, same = attend(q, k, unlike(v), plan, return_lse=True, fp8_out=True)
    assert torch.equal(lse, same)
    check(output, wide, unlike(v), False)
    assert torch.equal(attend(q, k, unlike(v), plan, fp8_out=True).values.float(), output.values.float())


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("smooth_v", [False, True])
def test_compiled_code_gives_it(impl, smooth_v, interpreted_here):
    q, k, v = inputs(dim=64)
    plan = AttentionPlan(GRID, TILE, method="sage", impl=impl, options={"smooth_v": smooth_v})
    v = unlike(v)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: attend(*x, plan, fp8_out=True), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(attend(q, k, v, plan, fp8_out=True), compiled(q, k, v), strict=True):
        assert torch.equal(ours.float(), theirs.float()) and ours.dtype == theirs.dtype


@pytest.mark.parametrize("fp8_out", [False, True])
def test_the_operator_is_registered_as_it_is(fp8_out, interpreted_here):
    q, k, v = inputs(dim=64, heads=2, batch=1)
    plan = AttentionPlan(GRID, TILE, (3, 1, 1), impl="triton")
    given = (q, k, v, None, None, *plan.fields, None, None, None, 0.0, False, False, fp8_out)
    given = [list(x) if isinstance(x, tuple) else x for x in given]
    torch.library.opcheck(torch.ops.fpsgen.attention_inference.default, given, test_utils="test_faketensor")


def test_where_it_makes_no_sense_it_is_refused():
    q, k, v = inputs(grad=True)
    for plan in (AttentionPlan(GRID, TILE), AttentionPlan(GRID, TILE, method="sta")):
        with pytest.raises(ValueError) as caught:
            attend(q, k, v, plan, fp8_out=True)
        assert str(caught.value).count("\n") == 1
    with torch.no_grad(), pytest.raises(ValueError):
        attend(q, k, v, AttentionPlan(GRID, TILE, method="sta"), fp8_out=True)
