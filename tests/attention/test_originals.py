"""sage beside SageAttention's own kernels (version 1, as PyPI has it: P.V in FP16), in Triton's interpreter."""

import pytest
import torch

from fpsgen.attention import AttentionPlan, attend

from .interpreter import interpreted
from .test_sparse_sdpa import exact

GRID = (5, 8, 8)
LENGTH = 320


def inputs(bias=4.0):
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, LENGTH, 2, 64, generator=random) for _ in range(3))
    return q, k + bias * torch.randn(2, 64, generator=random), v


def original(q, k, v, smooth_k):
    """sageattn of the package, which takes CUDA tensors alone."""
    quantizing = pytest.importorskip("sageattention.quant_per_block", reason="needs sageattention 1")
    attending = pytest.importorskip("sageattention.attn_qk_int8_per_block", reason="needs sageattention 1")
    k = k - k.mean(1, keepdim=True) if smooth_k else k
    with interpreted(quantizing, attending):
        q8, q_scale, k8, k_scale = quantizing.per_block_int8(q.half(), k.half(), tensor_layout="NHD")
        return attending.forward(q8, k8, v.half(), q_scale, k_scale, tensor_layout="NHD", output_dtype=torch.float32)


def ours(q, k, v, smooth_k, values):
    """In raster order. values: what P.V gets, "E4M3" or as they are."""
    plan = AttentionPlan(GRID, "fit", method="sage", smooth_k=None if smooth_k else False)
    tables = plan.tables("cpu")
    q, k, v = (x.index_select(1, tables.order) for x in (q, k, v))
    if values == "E4M3":
        out = attend(q, k, v, plan)
    else:
        q8, k8, _ = plan.quantized(q, k, v)
        out, _ = exact(q8, k8, v, torch.ones(1, LENGTH, LENGTH, dtype=torch.bool))
    return out.index_select(1, tables.inverse).double()


def error(out, true):
    return float((out - true).norm() / true.norm())


@pytest.mark.parametrize("smooth_k", [True, False])
def test_queries_and_keys_err_as_the_originals_do(smooth_k):
    """Blocks differ in shape, so the roundings do, and their size is the same."""
    q, k, v = inputs()
    true, _ = exact(q, k, v, torch.ones(1, LENGTH, LENGTH, dtype=torch.bool))
    theirs, own = (error(f, true) for f in (original(q, k, v, smooth_k), ours(q, k, v, smooth_k, "as they are")))
    assert 0.7 < own / theirs < 1.3
    assert (theirs < 0.02) == smooth_k


def test_what_e4m3_values_cost_beside_fp16():
    """As the paper says of them: more than FP16, a few per cent in all."""
    q, k, v = inputs()
    true, _ = exact(q, k, v, torch.ones(1, LENGTH, LENGTH, dtype=torch.bool))
    theirs, own = error(original(q, k, v, True), true), error(ours(q, k, v, True, "E4M3"), true)
    assert theirs < own < 0.04
