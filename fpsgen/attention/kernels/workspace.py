"""One allocation for all tensors of a call that the caller does not see: it costs the host less than one for each."""

from __future__ import annotations

import math

import torch

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shape and dtype by name
ALIGNMENT = 256  # bytes


class Workspace:
    """Tensors by name, as attributes, in one allocation. Those of `zeroed` hold zeros, those of `others` anything."""

    def __init__(self, device: torch.device, zeroed: Shapes, others: Shapes) -> None:
        self._places: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {}
        end = zeros = 0
        for name, (shape, dtype) in (zeroed | others).items():
            self._places[name] = end, shape, dtype
            size = math.prod(shape) * dtype.itemsize
            zeros = end + size if name in zeroed else zeros
            end += -(-size // ALIGNMENT) * ALIGNMENT
        memory = torch.empty(end, dtype=torch.uint8, device=device)
        if zeros:
            memory[:zeros].zero_()
        self._memory = {torch.uint8: memory}  # by dtype

    def __getattr__(self, name: str) -> torch.Tensor:
        if name.startswith("_") or name not in self._places:
            raise AttributeError(name)
        begin, shape, dtype = self._places[name]
        if dtype not in self._memory:
            self._memory[dtype] = self._memory[torch.uint8].view(dtype)
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        tensor = self._memory[dtype].as_strided(shape, strides, begin // dtype.itemsize)
        self.__dict__[name] = tensor  # found before __getattr__ next time
        return tensor
