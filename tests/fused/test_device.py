"""Kernels start on the device of their tensors, whichever is the current one."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fpsgen.fused import gelu_rows, launch, norm_rows, pixels, residual_rows, rms_norm_rows
from fpsgen.fused.pixels import Sum

SHAPE = (1, 2, 4, 4, 8)


class OnSecond(torch.Tensor):
    """Says that it lies on the second GPU."""

    is_cuda = True
    device = torch.device("cuda:1")


def second(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape).as_subclass(OnSecond)


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (launch, "quantize", lambda: gelu_rows(second(1, 3, 8), False)),
        (launch, "norm", lambda: norm_rows(second(1, 3, 8), torch.ones(1, 8), torch.ones(1, 8), 1e-6, True, False)),
        (launch, "norm", lambda: residual_rows(second(1, 3, 8), second(1, 3, 8), None)),
        (launch, "rms_norm", lambda: rms_norm_rows(second(1, 3, 8), torch.ones(8), 1e-6)),
        (pixels, "launch_norm_silu", lambda: pixels.norm_silu(Sum(second(*SHAPE)), torch.ones(8))),
        (pixels, "launch_upsample", lambda: pixels.upsample(Sum(second(*SHAPE)))),
    ],
)
@pytest.mark.parametrize("now", [0, 1])
def test_launches_are_on_the_device_of_the_tensors(monkeypatch, module, name, call, now):
    current, at_launch = [now], []

    @contextmanager
    def device(wanted: torch.device):
        current.append(wanted.index)
        yield
        current.pop()

    def launched(*args, **kwargs):
        at_launch.append(current[-1])
        return (torch.zeros(3, 8),) * (2 if name == "quantize" else 3)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(module, name, launched)
    call()
    assert at_launch == [1] and current == [now]
