"""The model of Hopper's FP8 sums against what an H100 made of the same matrices, kept and, on a Hopper GPU, anew."""

from pathlib import Path

import numpy as np
import pytest
import torch

from .gpu import needs_hopper
from .tensor_core import BITS, product

FOUND = Path(__file__).with_name("tensor_core.npz")
NAMES = ["normal", "positive", "one large channel", "of a trained model", "one large product"]


def found(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with np.load(FOUND) as file:
        a, b = (torch.from_numpy(file[f"{name} {x}"]).view(torch.float8_e4m3fn).float() for x in "ab")
        return a, b, torch.from_numpy(file[f"{name} o"])


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_what_was_measured(name):
    a, b, wanted = found(name)
    known = wanted.isfinite()
    assert known.float().mean() > 0.9 and torch.equal(product(a, b)[known], wanted[known])
    exact = (a.double() @ b.double().T).float()
    assert (exact[known] != wanted[known]).float().mean() > 0.5  # so it says something


@pytest.mark.parametrize(
    ("change", "name"), [("BITS", "normal"), ("STEP", "positive"), ("STEP", "of a trained model")], ids=str
)
def test_another_model_is_not(change, name, monkeypatch):
    from . import tensor_core

    a, b, wanted = found(name)
    monkeypatch.setattr(tensor_core, change, {"BITS": BITS + 1, "STEP": 16}[change])
    assert not torch.equal(product(a, b), wanted)


def test_the_cubic_is_as_near_as_it_says():
    pytest.importorskip("triton", reason="triton is not installed")
    from fpsgen.attention.kernels.softmax import CUBIC

    x = torch.linspace(-0.5, 0.5, 100001)
    got = ((CUBIC[3] * x + CUBIC[2]) * x + CUBIC[1]) * x + CUBIC[0]
    assert (got.double() / torch.exp2(x.double()) - 1).abs().max() < 7.6e-5


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["normal", "one large channel"])
@needs_hopper
def test_this_gpu_adds_alike(scale):
    import triton
    import triton.language as tl

    @triton.jit
    def dot(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
        left = tl.load(a + tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :])
        right = tl.load(b + tl.arange(0, N)[:, None] * K + tl.arange(0, K)[None, :])
        tl.store(out + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], tl.dot(left, right.T))

    a, b = torch.randn(64, 128, device="cuda"), torch.randn(128, 128, device="cuda") + 0.2
    a[:, 3] *= scale
    b[:, 3] *= scale
    a, b = ((x * (448 / x.abs().max())).to(torch.float8_e4m3fn) for x in (a, b))
    out = torch.full((64, 128), float("nan"), device="cuda")
    dot[(1,)](a, b, out, 64, 128, 128, num_warps=4)
    assert torch.equal(out, product(a, b))
