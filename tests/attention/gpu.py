"""What the tests on a CUDA device share."""

import math

import pytest
import torch

from .cases import Case

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
        reason="FP8 needs compute capability 8.9",
    ),
]
hopper_marks = [
    *needs_gpu,
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]


def needs_hopper(test):
    """For one test what hopper_marks are for a file."""
    for mark in hopper_marks:
        test = mark(test)
    return test


def run(case: Case, fp8: bool, dtype=torch.float32, inputs=None, config=None, **settings):
    """The kernel on outputs that were NaN before. settings: of attention_kernel."""
    from fpsgen.attention.kernels import attention_kernel

    laid = case.lay("cuda")
    q, k, v = inputs or case.inputs(dtype, "cuda")
    out = torch.full(q.shape, math.nan, dtype=q.dtype, device="cuda") if case.dim in (64, 128) else None
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), math.nan, device="cuda")
    given = (q, k, v, laid.tables, laid.lists, fp8, case.granularity)
    return (q, k, v), laid, attention_kernel(*given, config=config, out=out, lse=lse, **settings)
