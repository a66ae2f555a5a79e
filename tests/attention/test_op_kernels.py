"""The operator over the GPU kernels, in Triton's interpreter."""

import pytest
import torch

from fpsgen.attention import AttentionPlan, attend

from .cases import BY_NAME

pytest.importorskip("triton", reason="triton is not installed")
from fpsgen.attention import kernels

pytestmark = pytest.mark.usefixtures("interpreted_kernels")


@pytest.mark.parametrize("qk", ["e4m3", "int8"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "norm_rope"])
def test_gpu_kernels_smooth_keys_themselves(fused, qk, monkeypatch):
    """In the interpreter: out and LSE are those of keys without their mean, which torch takes off on a CPU."""
    calls = []
    right = kernels.attention_kernel
    monkeypatch.setattr(kernels, "attention_kernel", lambda *a, **o: calls.append(a) or right(*a, **o))
    case = BY_NAME["ragged_window"]
    q, k, v = case.inputs()
    k = k + torch.randn(case.dim, generator=torch.Generator().manual_seed(2)) * 5
    norm_rope = case.norm_rope() if fused else None
    options = {"smooth_k": True, "options": {"qk": qk}}
    plans = [AttentionPlan(case.grid, case.tile, case.lists, impl=impl, **options) for impl in ("triton", "reference")]
    assert plans[0].fuses_norm_rope("cpu", case.dim)
    (out, lse), (true, height) = (attend(q, k, v, plan, True, norm_rope) for plan in plans)
    assert float((out - true).norm() / true.norm()) < 5e-3
    torch.testing.assert_close(lse, height, atol=5e-3, rtol=1e-4)
    assert calls[0][9] and (calls[0][7] is not None) == fused
