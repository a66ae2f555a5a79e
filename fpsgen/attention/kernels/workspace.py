"""One allocation for all tensors of a call that the caller does not see: it costs the host less than one for each."""

from __future__ import annotations

import math

import torch

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shape and dtype by name
ALIGNMENT = 256  # bytes


class Workspace:
    """Tensors by name, as attributes, in one allocation. Those of `zeroed` hold zeros, those of `others` anything."""

    def __init__(self, device: torch.device, zeroed: Shapes, others: Shapes) -> None:
        self._places: dict[str, tuple[int, int, tuple[int, ...], torch.dtype]] = {}
        end = zeros = 0
        for name, (shape, dtype) in (zeroed | others).items():
            size = math.prod(shape) * dtype.itemsize
            self._places[name] = end, end + size, shape, dtype
            zeros = end + size if name in zeroed else zeros
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self._memory = torch.empty(end, dtype=torch.uint8, device=device)
        if zeros:
            self._memory[:zeros].zero_()

    def __getattr__(self, name: str) -> torch.Tensor:
        if name.startswith("_") or name not in self._places:
            raise AttributeError(name)
        begin, end, shape, dtype = self._places[name]
        return self._memory[begin:end].view(dtype).view(shape)
