"""Element-wise passes over the rows of activations, each in one reading: what they read, what they write, and as what.

On CUDA these are Triton kernels (kernels.py), elsewhere the same in plain torch (reference.py). Arithmetic is fp32. A
result for an FP8 linear layer is FP8Rows; otherwise it has the type of the input. All are traceable by torch.compile,
none has a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.compiler import is_compiling

from fpsgen.fused import reference
from fpsgen.fused.device import device_of


class FP8Rows(NamedTuple):
    """Activations in FP8: values E4M3 [..., K]; scale fp32 [..., 1], a row's own, or [1], one for all rows. A row is
    values * scale.
    """

    values: torch.Tensor
    scale: torch.Tensor

    def dequantize(self) -> torch.Tensor:
        """fp32."""
        return self.values.float() * self.scale


class FP8Channels(NamedTuple):
    """Activations with a scale per channel: values E4M3 [..., K], scale fp32 [K]; a row is values * scale."""

    values: torch.Tensor
    scale: torch.Tensor


class RowProduct(NamedTuple):
    """What a linear layer gives before the scales of its rows and its bias: values [..., N], scale fp32 [..., 1], bias
    [N] or None. A row is values * scale + bias.
    """

    values: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None


def quantize_rows(x: torch.Tensor, gain: torch.Tensor | None = None, peaks: torch.Tensor | None = None) -> FP8Rows:
    """x [..., K] in FP8; each row is multiplied by gain [K] first, if given. With a scale per row, or one for all where
    peaks says the largest magnitudes of x's channels: fp32 [K].
    """
    return FP8Rows(*_call("quantize_rows", x, gain, peaks, False, True))


def gelu_rows(x: torch.Tensor, fp8: bool) -> FP8Rows | torch.Tensor:
    """GELU (its tanh form) of x [..., K]: FP8Rows with fp8, else [..., K] in x's dtype."""
    return _result(*_call("quantize_rows", x, None, None, True, fp8), fp8)


def norm_rows(
    x: torch.Tensor, mul: torch.Tensor, add: torch.Tensor, eps: float, one: bool, fp8: bool
) -> FP8Rows | torch.Tensor:
    """LayerNorm(x) * (one + mul) + add, x [B, L, K]: FP8Rows with fp8, else [B, L, K] in x's dtype.

    mul, add: [B or 1, K], or [B, L, K] for one a token: scale and shift of a modulation (one=True), or weight and bias
    of the norm (one=False). The FP8Rows have one scale unless mul is one a token: that of what the norm cannot pass. It
    is some 16 times what rows reach, which costs nothing: E4M3 is floating point and keeps its three bits.
    """
    _, out, scale = _call("norm_rows", x, None, None, None, None, mul, add, eps, one, fp8)
    return _result(out, scale, fp8)


def residual_rows(x: torch.Tensor, y: torch.Tensor | RowProduct, gate: torch.Tensor | None) -> torch.Tensor:
    """x + gate * y in x's dtype, rounded once. x, y [B, L, K]; gate as norm_rows takes mul, None for 1."""
    return _call("norm_rows", x, *_branch(y), gate, None, None, 0.0, False, False)[0]


def residual_norm_rows(
    x: torch.Tensor,
    y: torch.Tensor | RowProduct,
    gate: torch.Tensor | None,
    mul: torch.Tensor,
    add: torch.Tensor,
    eps: float,
    one: bool,
    fp8: bool,
) -> tuple[torch.Tensor, FP8Rows | torch.Tensor]:
    """(residual_rows of x, y and gate; norm_rows of that) in one reading."""
    total, out, scale = _call("norm_rows", x, *_branch(y), gate, mul, add, eps, one, fp8)
    return total, _result(out, scale, fp8)


def rms_norm_rows(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last axis of x [..., K] with weight [K]. It may overwrite x: use the result."""
    return _call("rms_norm_rows", x.contiguous(), weight, eps)


def _branch(y: torch.Tensor | RowProduct) -> tuple[torch.Tensor | None, ...]:
    return y if isinstance(y, RowProduct) else (y, None, None)


def _result(out: torch.Tensor, scale: torch.Tensor, fp8: bool) -> FP8Rows | torch.Tensor:
    return FP8Rows(out, scale) if fp8 else out


def _call(name: str, *args):
    """Straight to the function where nobody traces: an operator costs the host as much as a launch."""
    return getattr(torch.ops.fpsgen, name)(*args) if is_compiling() else _FUNCTIONS[name](*args)


def _quantize(
    x: torch.Tensor, gain: torch.Tensor | None, peaks: torch.Tensor | None, gelu: bool, fp8: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if x.is_cuda:
        from fpsgen.fused import launch

        with device_of(x):
            out, scale = launch.quantize(_matrix(x), gelu, fp8, gain=gain, peaks=peaks)
        return out.view(x.shape), scale.view(*x.shape[:-1], 1) if fp8 and peaks is None else scale
    wide = reference.gelu_tanh(x) if gelu else x
    wide = wide if gain is None else wide.float() * gain
    if not fp8:
        return wide.to(x.dtype), _absent(x)
    amax = None if peaks is None else (peaks if gain is None else peaks * gain.abs()).amax().view(1)
    return reference.quantize(wide, amax)


def _norm(x, y, y_scale, y_bias, gate, mul, add, eps, one, fp8):
    one_scale = mul is not None and reference.one_scale(mul)
    if x.is_cuda:
        from fpsgen.fused import launch

        y = None if y is None else y.contiguous()
        with device_of(x):
            total, out, scale = launch.norm(
                x.contiguous(), y, gate, mul, add, eps, one, fp8, y_scale=y_scale, y_bias=y_bias
            )
        return total, out, scale.view(*x.shape[:-1], 1) if fp8 and not one_scale else scale
    total = _absent(x) if y is None else reference.residual(x, y, gate, y_scale, y_bias)
    if mul is None:
        return total, _absent(x), _absent(x)
    normed = reference.layer_norm(x if y is None else total, mul, add, eps, one)
    if not fp8:
        return total, normed.to(x.dtype), _absent(x)
    return (total, *reference.quantize(normed, reference.norm_bound(mul, add, one) if one_scale else None))


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if x.is_cuda:
        from fpsgen.fused import launch

        with device_of(x):
            launch.rms_norm(_matrix(x), weight, eps)
        return x
    return x.copy_(reference.rms_norm(x, weight, eps))


def _absent(x: torch.Tensor) -> torch.Tensor:
    """A result that was not asked for. Each has its own: results of an operator share no memory."""
    return x.new_empty(0, dtype=torch.float32)


def _matrix(x: torch.Tensor) -> torch.Tensor:
    """x [..., K] as [M, K], its rows contiguous."""
    flat = x.flatten(0, -2)
    return flat if flat.stride(-1) == 1 else flat.contiguous()


_FUNCTIONS = {"quantize_rows": _quantize, "norm_rows": _norm, "rms_norm_rows": _rms_norm}
torch.library.define(
    "fpsgen::quantize_rows", "(Tensor x, Tensor? gain, Tensor? peaks, bool gelu, bool fp8) -> (Tensor, Tensor)"
)
torch.library.define(
    "fpsgen::norm_rows",
    "(Tensor x, Tensor? y, Tensor? y_scale, Tensor? y_bias, Tensor? gate, Tensor? mul, Tensor? add, float eps, "
    "bool one, bool fp8) -> (Tensor, Tensor, Tensor)",
)
torch.library.define("fpsgen::rms_norm_rows", "(Tensor x, Tensor weight, float eps) -> Tensor")
for _name in ("quantize_rows", "norm_rows"):
    torch.library.impl(f"fpsgen::{_name}", ("cpu", "cuda"), _FUNCTIONS[_name])


@torch.library.impl("fpsgen::rms_norm_rows", ("cpu", "cuda"))
def _(x, weight, eps):
    return _rms_norm(x.clone(memory_format=torch.contiguous_format), weight, eps)  # an operator leaves its inputs alone


def _shapes(x: torch.Tensor, fp8: bool, one_scale: bool) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn if fp8 else x.dtype, memory_format=torch.contiguous_format)
    scales = (1,) if one_scale else (*x.shape[:-1], 1)
    return out, x.new_empty(scales if fp8 else (0,), dtype=torch.float32)


@torch.library.register_fake("fpsgen::quantize_rows")
def _(x, gain, peaks, gelu, fp8):
    return _shapes(x, fp8, peaks is not None)


@torch.library.register_fake("fpsgen::norm_rows")
def _(x, y, y_scale, y_bias, gate, mul, add, eps, one, fp8):
    total = _absent(x) if y is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    if mul is None:
        return total, _absent(x), _absent(x)
    return (total, *_shapes(x, fp8, reference.one_scale(mul)))


@torch.library.register_fake("fpsgen::rms_norm_rows")
def _(x, weight, eps):
    return torch.empty_like(x, memory_format=torch.contiguous_format)
