"""Launches of kernels.py: how many warps read a row. No autotuning in user runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fpsgen.fused import kernels


@dataclass(frozen=True)
class RowConfig:
    """num_warps: of a program, whose threads hold 8 neighbouring channels each, several times."""

    num_warps: int

    @property
    def span(self) -> int:
        return 8 * 32 * self.num_warps

    def parts(self, size: int) -> tuple[int, ...]:
        """Powers of 2, largest first, that cover a row of `size` channels in steps of span."""
        left = -(-size // self.span)
        return tuple(1 << bit for bit in reversed(range(left.bit_length())) if left >> bit & 1)


def row_config(size: int) -> RowConfig:
    """The choice for rows of `size` channels: 20 to 60 of them in a thread."""
    if size <= 2048:
        return RowConfig(2)
    return RowConfig(4) if size <= 10240 else RowConfig(8)


def quantize(
    x: torch.Tensor, gelu: bool, fp8: bool, config: RowConfig | None = None, gain: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K], its rows contiguous, each times gain [K], to (out [M, K], scale fp32 [M, 1]), which is empty unless
    fp8.
    """
    rows, size = x.shape
    config = config or row_config(size)
    out, scale = _outputs(x, fp8)
    kernels.quantize_kernel[(rows,)](
        *(x, x if gain is None else gain, out, scale, x.stride(0)),
        **_row(size, config),
        GELU=gelu,
        GAIN=gain is not None,
        FP8=fp8,
        num_warps=config.num_warps,
    )
    return out, scale


def norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor | None,
    mul: torch.Tensor | None,
    add: torch.Tensor | None,
    eps: float,
    one: bool,
    fp8: bool,
    config: RowConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y [B, L, K] contiguous; gate, mul, add [B or 1, K], or [B, L, K] for one a token, their rows contiguous.
    Returns (x + gate * y, its LayerNorm * (one + mul) + add, scale [B*L, 1]): the first is empty without y, the others
    without mul.
    """
    batch, length, size = x.shape
    rows, modulation = batch * length, [p for p in (gate, mul, add) if p is not None]
    a_token = any(p.dim() == 3 for p in modulation)
    config = config or row_config(size)
    total = torch.empty_like(x) if y is not None else x.new_empty(0)
    out, scale = _outputs(x.view(-1, size), fp8) if mul is not None else (x.new_empty(0), x.new_empty(0))
    steps = [0 if p is None or p.shape[:-1].numel() == 1 else p.stride(-2) for p in (gate, mul, add)]
    kernels.norm_kernel[(rows,)](
        *(x, y if y is not None else x, gate if gate is not None else x),
        *((mul, add) if mul is not None else (x, x)),
        *(total, out, scale, *steps, 1 if a_token else length, eps),
        **_row(size, config),
        RESIDUAL=y is not None,
        GATED=gate is not None,
        NORM=mul is not None,
        ONE=one,
        FP8=fp8,
        num_warps=config.num_warps,
    )
    return total, out.view(x.shape) if mul is not None else out, scale


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, config: RowConfig | None = None) -> torch.Tensor:
    """x [M, K], its rows contiguous, normed in place and returned."""
    rows, size = x.shape
    config = config or row_config(size)
    kernels.rms_norm_kernel[(rows,)](
        *(x, weight, x, x.stride(0), eps), **_row(size, config), num_warps=config.num_warps
    )
    return x


def inverse_rms(x: torch.Tensor, eps: float, config: RowConfig | None = None) -> torch.Tensor:
    """1 / root mean square of the rows of x [M, K], contiguous each: fp32 [M]."""
    rows, size = x.shape
    config, out = config or row_config(size), torch.empty(rows, dtype=torch.float32, device=x.device)
    kernels.inverse_rms_kernel[(rows,)](x, out, x.stride(0), eps, **_row(size, config), num_warps=config.num_warps)
    return out


def _row(size: int, config: RowConfig) -> dict:
    return {"SIZE": size, "PARTS": config.parts(size), "SPAN": config.span}


def _outputs(x: torch.Tensor, fp8: bool) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn if fp8 else x.dtype, device=x.device)
    return out, torch.empty((len(x), 1) if fp8 else (0,), dtype=torch.float32, device=x.device)
