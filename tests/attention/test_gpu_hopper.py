"""The Hopper kernels, FP8 and 16 bit, in every configuration that ships, on a GPU of that kind."""

import math

import pytest
import torch
import torch.nn.functional as F

from fpsgen.attention import AttentionPlan, attend
from fpsgen.attention.kernels.launch_config import Sm90Config

from .cases import HOPPER_CASES, Case
from .gpu import hopper_marks, run
from .numerics import check, half_check, measure, truth
from .test_fp8_output import check as check_output
from .test_fp8_output import unlike

pytestmark = hopper_marks
HOPPER = [
    Sm90Config(3, stages=2, pingpong=True),
    Sm90Config(2, poly=8),
    Sm90Config(3, poly=8),
    Sm90Config(2, poly=4, pingpong=True),
]
HOPPER16 = [Sm90Config(3, stages=2), Sm90Config(2, stages=2)]
NANO = (9, 10, 16)


@pytest.mark.parametrize("config", HOPPER, ids=str)
@pytest.mark.parametrize("case", HOPPER_CASES, ids=lambda case: case.name)
def test_hopper_keeps_the_contract(case, config):
    assert case.lay().layout.block == 128
    inputs, laid, (out, lse) = run(case, True, config=config)
    print(
        case.name,
        config,
        check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True, case.granularity), case.name),
    )


@pytest.mark.parametrize("config", HOPPER, ids=str)
@pytest.mark.parametrize("length", [65, 66, 127, 128, 129, 191, 192, 193, 255, 256, 257, 320, 383, 384, 385])
def test_every_tail_on_hopper(length, config):
    case = Case("line", (1, 1, 2 * length - 1), (1, 1, length), dim=128, heads=3, batch=2)  # the second tile is shorter
    inputs, laid, (out, lse) = run(case, True, config=config)
    check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True), f"{length} keys")


@pytest.mark.parametrize("config", HOPPER, ids=str)
@pytest.mark.parametrize("tile", [(4, 8, 4), (6, 8, 8), (5, 8, 9)], ids=["one", "three", "even"])
def test_constant_values_come_back_on_hopper(config, tile):
    """V = 1 gives O = 1 to the last bit of an fp32 division: both sums are made alike."""
    case = Case("ones", (10, 16, 18), tile, (3, 3, 3), batch=2, heads=2, dim=128)
    q, k, v = case.inputs(device="cuda")
    _, _, (out, _) = run(case, True, inputs=(q * 2, k, torch.ones_like(v)), config=config)
    torch.testing.assert_close(out, torch.ones_like(out), atol=1e-6, rtol=0)


@pytest.mark.parametrize("promote", [True, False])
def test_error_of_the_accumulator_on_hopper(promote):
    """What it is worth to add P.V up in fp32 registers after every block of 128 keys."""
    plan = AttentionPlan((21, 45, 80), method="fp8")
    case = Case("sums", plan.grid, plan.tile, "all", 1, 1, 128)
    for offset in (0.0, 1.0):
        q, k, v = case.inputs(device="cuda")
        inputs, laid, (out, lse) = run(
            case, True, inputs=(q, k, v + offset), config=Sm90Config(2, poly=8, promote=promote)
        )
        true = truth(*inputs, laid.layout, laid.tile_lists, True, tiles=[0, plan.tiling.num_tiles - 1])
        got = out.double()[:, true.tokens]
        error = float((got - true.out).norm() / true.out.norm())
        print(f"promote={promote}, V + {offset}: {error:.2e}, P's cast {measure(out, lse, true)['noise']:.2e}")
        assert error < 2e-3 if promote else error > 5e-2  # a fifth was measured at 10,000 keys


@pytest.mark.parametrize("config", HOPPER, ids=str)
@pytest.mark.parametrize("key", [0, 7, 15, 40, 100])
def test_nan_of_a_key_is_not_hidden_on_hopper(config, key):
    case = Case("nan", (6, 8, 16), (6, 8, 8), "all", heads=1, dim=128)
    q, k, v = case.inputs(device="cuda")
    v[0, key, 0, 5] = math.nan
    _, _, (out, _) = run(case, True, inputs=(q, k, v), config=config)
    assert out[0, :, 0, 5].isnan().all() and out[0, :, 0, 6].isfinite().all()
    q, k, v = case.inputs(device="cuda")
    k[0, key] = math.nan
    _, _, (out, _) = run(case, True, inputs=(q, k, v), config=config)
    assert out.isnan().all()


@pytest.mark.parametrize("config", HOPPER16, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("case", HOPPER_CASES, ids=lambda case: case.name)
def test_hopper16_keeps_the_contract(case, dtype, config):
    inputs, laid, (out, lse) = run(case, False, dtype, config=config)
    half_check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, False), f"{case.name} {config}")


@pytest.mark.parametrize("config", HOPPER16, ids=str)
@pytest.mark.parametrize("length", [65, 66, 127, 128, 129, 191, 192, 193, 255, 256, 257, 320, 383, 384, 385])
def test_every_tail_on_hopper16(length, config):
    case = Case("line", (1, 1, 2 * length - 1), (1, 1, length), dim=128, heads=3, batch=2)
    inputs, laid, (out, lse) = run(case, False, torch.bfloat16, config=config)
    half_check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, False), f"{length} keys")


@pytest.mark.parametrize("config", HOPPER16, ids=str)
@pytest.mark.parametrize("tile", [(4, 8, 4), (6, 8, 8), (5, 8, 9), (3, 7, 6)], ids=["one", "three", "even", "126"])
def test_values_of_another_tile_stay_there_on_hopper16(config, tile):
    """NaN in the keys and values of one tile spoils the rows that see it, and no other."""
    case = Case("nan", (2 * tile[0], 2 * tile[1] - 1, 4 * tile[2]), tile, (1, 1, 1), dim=128, heads=2)
    q, k, v = case.inputs(torch.bfloat16, "cuda")
    _, laid, (clean, _) = run(case, False, inputs=(q, k, v), config=config)
    for bad, value in ((v, math.nan), (v, math.inf), (k, math.nan)):
        start = int(laid.layout.tiling.sizes()[:3].sum())
        rows = slice(start, start + int(laid.layout.tiling.sizes()[3]))
        kept = bad[:, rows].clone()
        bad[:, rows] = value
        _, _, (out, _) = run(case, False, inputs=(q, k, v), config=config)
        bad[:, rows] = kept
        assert out[:, rows].isnan().any() or out[:, rows].isinf().all()
        out[:, rows] = clean[:, rows]
        assert torch.equal(out, clean)


def test_any_strides_on_hopper16():
    case = Case("strides", (9, 11, 13), (4, 5, 6), (3, 1, 3), batch=2, heads=3, dim=128)
    q, k, v = case.inputs(torch.bfloat16, "cuda")
    _, _, (out, lse) = run(case, False, inputs=(q, k, v))
    odd = torch.zeros(q.numel() + 1, device="cuda", dtype=q.dtype)[1:].view_as(q)  # 2 bytes past a boundary
    odd.copy_(q)
    for same in (
        torch.stack((q, k, v), 2).unbind(2),
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
        [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)],
        (odd, k, v),
        (F.pad(q, (0, 3))[..., :128], k, F.pad(v, (0, 8))[..., :128]),
    ):
        _, _, (again, again_lse) = run(case, False, inputs=same)
        assert torch.equal(out, again) and torch.equal(lse, again_lse)


@pytest.mark.parametrize("config", HOPPER16, ids=str)
def test_hopper16_is_the_portable_kernel_to_the_bit(config):
    """Both add and round alike."""
    from fpsgen.attention.kernels import choose_portable

    plan = AttentionPlan((21, 30, 26), window=(0.5, 0.5, 0.5), method="sta")
    case = Case("same", plan.grid, plan.tile, plan.window, 1, 4, 128)
    inputs, _, (out, lse) = run(case, False, torch.bfloat16, config=choose_portable(128, 128, False))
    _, _, (again, again_lse) = run(case, False, inputs=inputs, config=config)
    assert torch.equal(out, again) and torch.equal(lse, again_lse)


@pytest.mark.parametrize("center_v", [False, True], ids=["", "center_v"])
@pytest.mark.parametrize("config", [*HOPPER[:2], None], ids=str)
@pytest.mark.parametrize("case", HOPPER_CASES, ids=lambda case: case.name)
def test_an_output_in_fp8(case, config, center_v):
    """The wide output, rounded once, by the Hopper kernel and the portable one (None)."""
    from fpsgen.attention.kernels import attention_kernel, choose_portable

    config = config or choose_portable(128, 128, True)
    laid, (q, k, v) = case.lay("cuda"), case.inputs(device="cuda")
    v = unlike(v)
    given = (q, k, v, laid.tables, laid.lists, True, case.granularity)
    wide, lse = attention_kernel(*given, config=config, center_v=center_v)
    pool = torch.full((3, *q.shape), math.nan, device="cuda").to(torch.float8_e4m3fn)
    out = pool[1] if case.dim == 128 else None
    output, same = attention_kernel(*given, config=config, center_v=center_v, fp8_out=True, out=out)
    assert torch.equal(lse, same)
    check_output(output, wide, v, center_v)
    assert pool[0].float().isnan().all() and pool[2].float().isnan().all()  # nothing is written outside


def test_an_output_in_fp8_keeps_its_largest_value_and_nan():
    case = Case("ones", (10, 16, 18), (6, 8, 8), (3, 3, 3), batch=2, heads=2, dim=128)
    laid, (q, k, v) = case.lay("cuda"), case.inputs(device="cuda")
    v = -torch.linspace(1, 300, 256, device="cuda").view(2, 128).expand_as(v)
    given = (laid.tables, laid.lists, True)
    from fpsgen.attention.kernels import attention_kernel

    output, _ = attention_kernel(q, k, v, *given, fp8_out=True)
    assert (output.values.float() == -448).all()
    torch.testing.assert_close(output.values.float() * output.scale, v, rtol=1e-6, atol=0)
    v = v.clone()
    v[0, :, 0, 5] = math.nan
    output, _ = attention_kernel(q, k, v, *given, fp8_out=True)
    assert output.values.float()[0, :, 0, 5].isnan().all() and output.values.float()[0, :, 1].isfinite().all()


def test_hopper_runs_where_the_plan_says_so(monkeypatch):
    from fpsgen.attention.kernels import attend_16bit_sm90, attend_fp8_sm90

    calls = []
    for module, name in ((attend_fp8_sm90, "launch_fp8_sm90"), (attend_16bit_sm90, "launch_16bit_sm90")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real: calls.append(1) or real(*a))
    for grid, dim, method in (
        ((9, 20, 32), 128, "fps"),
        ((9, 20, 32), 64, "fps"),
        ((9, 20, 32), 128, "sta"),
        (NANO, 128, "fps"),
    ):
        calls.clear()
        plan = AttentionPlan(grid, window=(0.5, 0.5, 0.5), method=method)
        q, k, v = (torch.randn(1, math.prod(grid), 2, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        attend(q, k, v, plan)
        assert bool(calls) == (plan.kernel("cuda", dim) == "hopper") == ((grid, dim) == ((9, 20, 32), 128))


@pytest.mark.parametrize("smooth_k", [False, True])
def test_hopper_can_be_captured_in_a_graph(smooth_k):
    plan = AttentionPlan((21, 30, 26), window=(0.5, 0.5, 0.5), smooth_k=smooth_k)
    q, k, v = (torch.randn(1, 21 * 30 * 26, 2, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    wanted = attend(q, k, v, plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(q, k, v, plan)
    graph.replay()
    assert torch.equal(out, wanted)
    q.mul_(0.5)
    graph.replay()
    assert torch.equal(out, attend(q, k, v, plan)) and not torch.equal(out, wanted)
