"""Launches of kernels.py: how many warps read a row. No autotuning in user runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fpsgen.fused import kernels, reference


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
    x: torch.Tensor,
    gelu: bool,
    fp8: bool,
    config: RowConfig | None = None,
    gain: torch.Tensor | None = None,
    peaks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K], its rows contiguous, each times gain [K], to (out [M, K], scale fp32 [M, 1]), which is empty unless
    fp8, and [1], one for all rows, with peaks fp32 [K], the largest magnitudes of x's channels.
    """
    rows, size = x.shape
    config = config or row_config(size)
    out, scale = _outputs(x, fp8, peaks is not None)
    kernels.quantize_kernel[(rows,)](
        *(x, x if gain is None else gain, x if peaks is None else peaks, out, scale, x.stride(0)),
        **_row(size, config),
        GELU=gelu,
        GAIN=gain is not None,
        FP8=fp8,
        ONE_SCALE=peaks is not None,
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
    y_scale: torch.Tensor | None = None,
    y_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y [B, L, K] contiguous; gate, mul, add [B or 1, K], or [B, L, K] for one a token, their rows contiguous.
    y_scale fp32 [B, L, 1], y_bias [K]: y counts as y * y_scale + y_bias. Returns (x + gate * y, its LayerNorm *
    (one + mul) + add, scale [1] if reference.one_scale(mul), else [B*L, 1]): the first is empty without y, the others
    without mul.
    """
    batch, length, size = x.shape
    rows, modulation = batch * length, [p for p in (gate, mul, add) if p is not None]
    a_token = any(p.dim() == 3 for p in modulation)
    config = config or row_config(size)
    total = torch.empty_like(x) if y is not None else x.new_empty(0)
    one_scale = mul is not None and reference.one_scale(mul)
    out, scale = _outputs(x.view(-1, size), fp8, one_scale) if mul is not None else (x.new_empty(0), x.new_empty(0))
    steps = [0 if p is None or p.shape[:-1].numel() == 1 else p.stride(-2) for p in (gate, mul, add)]
    kernels.norm_kernel[(rows,)](
        *(x if operand is None else operand for operand in (x, y, y_scale, y_bias, gate, mul, add)),
        *(total, out, scale, *steps, 1 if a_token else length, eps),
        **_row(size, config),
        RESIDUAL=y is not None,
        SCALED=y_scale is not None,
        BIASED=y_bias is not None,
        GATED=gate is not None,
        NORM=mul is not None,
        ONE=one,
        FP8=fp8,
        ONE_SCALE=one_scale,
        GROUPS=1 if mul is None or add is None else max(len(mul), len(add)),
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


def _outputs(x: torch.Tensor, fp8: bool, one_scale: bool) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn if fp8 else x.dtype, device=x.device)
    scales = (1,) if one_scale else (len(x), 1)
    return out, torch.empty(scales if fp8 else (0,), dtype=torch.float32, device=x.device)
