"""One allocation for all tensors of a call that the caller does not see: it costs the host less than one for each."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from fpsgen.attention.plan import DeviceTables

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shape and dtype by name
ALIGNMENT = 256  # bytes


class WorkspaceLayout:
    """Where tensors lie in an allocation of `size` bytes; those that must hold zeros in its first `zeros` bytes."""

    def __init__(self, zeroed: Shapes, others: Shapes) -> None:
        self.places: dict[str, tuple[torch.dtype, tuple[int, ...], list[int], int]] = {}
        self.size = self.zeros = 0
        for name, (shape, dtype) in (zeroed | others).items():
            strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
            self.places[name] = dtype, shape, strides, self.size // dtype.itemsize
            self.size += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
            self.zeros = self.size if name in zeroed else self.zeros


class Workspace:
    """The tensors of a layout, as attributes."""

    def __init__(self, device: torch.device, layout: WorkspaceLayout) -> None:
        self._places = layout.places
        memory = torch.empty(layout.size, dtype=torch.uint8, device=device)
        if layout.zeros:
            memory[: layout.zeros].zero_()
        self._memory = {torch.uint8: memory}  # by dtype

    def __getattr__(self, name: str) -> torch.Tensor:
        if name.startswith("_") or name not in self._places:
            raise AttributeError(name)
        dtype, shape, strides, offset = self._places[name]
        if dtype not in self._memory:
            self._memory[dtype] = self._memory[torch.uint8].view(dtype)
        tensor = self._memory[dtype].as_strided(shape, strides, offset)
        self.__dict__[name] = tensor  # found before __getattr__ next time
        return tensor


@lru_cache(maxsize=64)
def workspace_layout(
    batch: int, tokens: int, heads: int, dim: int, blocks: int, rows: int, fp8: bool, lse: bool, int8_qk: bool = False
) -> WorkspaceLayout:
    """fp8: what quantize() makes: q, k float8_e4m3fn (int8 with int8_qk) [B, H, P, D], v float8_e4m3fn [B, H, D, P],
    scales fp32 q_scale, k_scale [B, H, N], v_scale [B, H, D], means fp32 k_mean, v_mean [B, H, D], and what its kernels
    leave for each other. lse: fp32 [B, H, L] for a caller who asks for none. blocks, rows: N, P.
    """
    line, e4m3, fp32, int32 = (batch, heads), torch.float8_e4m3fn, torch.float32, torch.int32
    zeroed: Shapes = {
        **dict.fromkeys(("q_amax", "k_amax"), ((*line, blocks), fp32)),
        **dict.fromkeys(("k_sum", "v_sum"), ((*line, dim), torch.int64)),
        "v_amax": ((*line, dim), fp32),
        "v_largest": ((*line, 2, dim), int32),
        "finished": ((2, batch, blocks), int32),
        "next_unit": ((1,), int32),
    }
    others: Shapes = {
        **dict.fromkeys(("q", "k"), ((*line, rows, dim), torch.int8 if int8_qk else e4m3)),
        "v": ((*line, dim, rows), e4m3),
        **dict.fromkeys(("q_scale", "k_scale"), ((*line, blocks), fp32)),
        **dict.fromkeys(("v_scale", "k_mean", "v_mean"), ((*line, dim), fp32)),
        "norms": ((2, batch, tokens), fp32),
    }
    own: Shapes = {"lse": ((*line, tokens), fp32)} if lse else {}
    return WorkspaceLayout(zeroed, others | own) if fp8 else WorkspaceLayout({}, own)


def make_workspace(
    q: torch.Tensor, tables: DeviceTables, fp8: bool = True, lse: bool = False, int8_qk: bool = False
) -> Workspace:
    """A new one for a call with q [B, L, H, D], see workspace_layout."""
    blocks = tables.layout.num_blocks
    return Workspace(q.device, workspace_layout(*q.shape, blocks, blocks * tables.layout.block, fp8, lse, int8_qk))
