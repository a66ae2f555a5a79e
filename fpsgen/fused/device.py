"""Triton starts a kernel on the current device, wherever its tensors lie."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def device_of(x: torch.Tensor) -> AbstractContextManager[object]:
    """A context in which x's device is the current one."""
    current = not x.is_cuda or x.device.index == torch.cuda.current_device()
    return nullcontext() if current else torch.cuda.device(x.device)
