"""The backward kernels on a GPU, through the operator and alone, against fp64 autograd."""

import pytest
import torch

from fpsgen.attention import AttentionPlan, attend

from .cases import CASES, HOPPER_CASES, Case
from .gpu import needs_gpu
from .gradients import case_mask, check, check_rows, of_case, row_noise

pytestmark = needs_gpu
LARGE = [
    Case("over_4096_tokens", (9, 20, 32), (3, 5, 8), (3, 3, 3), heads=2, dim=128),
    Case("three_blocks_in_a_tile", (21, 18, 12), (21, 9, 2), (1, 1, 3), batch=2, heads=2, dim=128),
]


def gradients(case: Case, fp8: bool, dtype=torch.bfloat16):
    from fpsgen.attention.kernels.backward_portable import attention_backward

    given, true = of_case(case, case.lay(), dtype, fp8)
    laid = case.lay("cuda")
    got = [attention_backward(*(x.cuda() for x in given), laid.tables, laid.lists, fp8, case.granularity) for _ in "12"]
    for a, b in zip(*got, strict=True):
        assert torch.equal(a, b), "not deterministic"
    given, mask = [x.cuda() for x in given], case_mask(case, case.lay()).cuda()
    noise = row_noise(given, mask, laid.layout, case.granularity, fp8)
    return [x.cpu() for x in got[0]], true, [x.cpu() for x in noise]


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("case", [*CASES, *HOPPER_CASES, *LARGE], ids=lambda case: f"{case.name}-{case.dim}")
def test_gradients_are_those_of_masked_softmax(case, fp8):
    got, true, noise = gradients(case, fp8)
    check(got, true, 5e-3)
    check_rows(got, true, noise)


def test_fp16():
    got, true, noise = gradients(HOPPER_CASES[1], False, torch.float16)
    check(got, true, 2e-3)
    check_rows(got, true, noise)


@pytest.mark.parametrize("method", ["fps", "sta"])
def test_through_the_operator(method):
    """Forward and backward as training runs them; the saved output has P's cast in it."""
    case = LARGE[0]
    (grad, q, k, v, *_), true = of_case(case, case.lay(), torch.bfloat16, method == "fps")
    plan = AttentionPlan(case.grid, case.tile, case.lists, method=method)
    leaves = [x.cuda().requires_grad_() for x in (q, k, v)]
    attend(*leaves, plan).backward(grad.cuda())
    check([x.grad.cpu() for x in leaves], true, 3e-2 if method == "fps" else 6e-3)
