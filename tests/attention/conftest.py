import pytest
import torch


@pytest.fixture
def seed():
    torch.manual_seed(7)


@pytest.fixture(scope="module")
def interpreted_kernels():
    """The kernels in Triton's interpreter (on CPU), one patch per test file."""
    pytest.importorskip("triton", reason="triton is not installed")
    from fpsgen.attention.kernels import forward, prepare, prepare_normed

    from .interpreter import interpreted

    with interpreted(forward, prepare, prepare_normed):
        yield forward
