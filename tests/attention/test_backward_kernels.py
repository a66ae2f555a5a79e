"""The backward kernels in Triton's interpreter against fp64 autograd through masked softmax."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fpsgen.attention.kernels import backward_portable
from fpsgen.attention.kernels.backward_config import BackwardConfig, PassConfig, select_backward
from fpsgen.attention.kernels.backward_lists import transpose_lists
from fpsgen.attention.tiles import mask_from_lists

from .cases import BY_NAME, CASES, Case
from .gradients import case_mask, check, check_rows, of_case, relative, row_noise
from .interpreter import interpreted, kernel_modules

BOUND, ROW = 5e-3, 3e-2  # products of values with 8 bits of mantissa
MORE = [
    Case("small_steps", (6, 8, 9), (6, 8, 8), (1, 1, 1), heads=2, dim=128, batch=2),
    Case("blocks_of_120", (6, 10, 16), (3, 5, 8), (1, 1, 1), dim=64),
]


@pytest.fixture(scope="module")
def kernels():
    with interpreted(*kernel_modules()):
        yield backward_portable.attention_backward


def gradients(attention_backward, case: Case, fp8: bool, config=None, bias=0.0, dtype=torch.bfloat16):
    laid = case.lay()
    given, true = of_case(case, laid, dtype, fp8, bias)
    return attention_backward(*given, laid.tables, laid.lists, fp8, case.granularity, config), true


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("case", [*CASES, *MORE], ids=lambda case: case.name)
def test_gradients_are_those_of_masked_softmax(kernels, case, fp8):
    laid = case.lay()
    given, true = of_case(case, laid, torch.bfloat16, fp8)
    got = kernels(*given, laid.tables, laid.lists, fp8, case.granularity)
    check(got, true, BOUND)
    check_rows(got, true, row_noise(given, case_mask(case, laid), laid.layout, case.granularity, fp8))


@pytest.mark.parametrize(("own", "step"), [(128, 32), (64, 128), (32, 64)])
def test_any_launch_configuration_gives_the_same(kernels, own, step):
    one = PassConfig(own, step, 4, 2)
    for fp8 in (True, False):
        check(*gradients(kernels, MORE[0], fp8, BackwardConfig(one, one)), BOUND, ROW)


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
def test_a_bias_of_the_keys_does_not_reach_the_queries(kernels, fp8):
    """Output and dS are rounded, so rows of dS do not sum to 0; that times the bias would be an error of 2 to 3 %."""
    got, true = gradients(kernels, BY_NAME["ragged_window"], fp8, bias=8.0)
    assert relative(got[0], true[0]) < BOUND


def test_other_types(kernels):
    for dtype, bound in ((torch.float16, 2e-3), (torch.float32, 8e-3)):  # fp32 is rounded to bf16 first
        got, true = gradients(kernels, BY_NAME["ragged_window"], False, dtype=dtype)
        check(got, true, bound, ROW)
        assert all(g.dtype == dtype for g in got)
    got, true = gradients(kernels, BY_NAME["ragged_window"], True, dtype=torch.float32)
    check(got, true, BOUND, ROW)


def test_strides_do_not_matter(kernels):
    case = BY_NAME["ragged_window"]
    laid = case.lay()
    (grad, q, k, v, out, lse), _ = of_case(case, laid, torch.bfloat16, True)
    plain = kernels(grad, q, k, v, out, lse, laid.tables, laid.lists, True)
    q, k, v = torch.stack((q, k, v), 2).unbind(2)
    grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
    strided = kernels(grad, q, k, v, out, lse, laid.tables, laid.lists, True)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))


@pytest.mark.parametrize("name", ["unsorted", "empty_rows", "per_batch_head", "tile_of_three_blocks", "ragged_window"])
def test_transposed_lists_hold_every_query_block_once(name):
    laid = BY_NAME[name].lay()
    index, count = transpose_lists(*laid.lists, laid.tables.block_tile)
    mask = mask_from_lists(laid.tile_lists, laid.layout)
    first = laid.tables.block_start.long()
    for g in range(index.shape[0]):
        seen = mask[g][first][:, first]  # query block, key block
        for n in range(len(first)):
            assert index[g, n, : count[g, n]].tolist() == seen[:, n].nonzero().flatten().tolist()
            assert (index[g, n, count[g, n] :] == -1).all()


def test_every_choice_divides_the_block():
    for block in (64, 128):
        for capability in ((8, 0), (8, 9), (9, 0), (12, 0)):
            for one in vars(select_backward(block, capability)).values():
                assert block % one.own == 0 and block % one.step == 0
