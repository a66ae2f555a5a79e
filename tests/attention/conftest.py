import contextlib

import pytest
import torch


@pytest.fixture
def seed():
    torch.manual_seed(7)


@contextlib.contextmanager
def _interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    from fpsgen.attention.kernels import attend_portable, norm_rope_quantize, quantize_qkv

    from .interpreter import interpreted

    with interpreted(attend_portable, quantize_qkv, norm_rope_quantize):
        yield attend_portable


@pytest.fixture(scope="module")
def interpreted_kernels():
    """The kernels in Triton's interpreter (on CPU), one patch per test file: of files that run nothing on a GPU."""
    with _interpreted() as attend_portable:
        yield attend_portable


@pytest.fixture
def interpreted_here():
    """The same for one test."""
    with _interpreted() as attend_portable:
        yield attend_portable
