import contextlib

import pytest
import torch


@pytest.fixture
def seed():
    torch.manual_seed(7)


@contextlib.contextmanager
def _interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    from .interpreter import interpreted, kernel_modules

    with interpreted(*kernel_modules()):
        yield


@pytest.fixture(scope="module")
def interpreted_kernels():
    """The kernels in Triton's interpreter (on CPU), one patch per test file: of files that run nothing on a GPU."""
    with _interpreted():
        yield


@pytest.fixture
def interpreted_here():
    """The same for one test."""
    with _interpreted():
        yield
