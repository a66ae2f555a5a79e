"""Linear layers on FP8 tensor cores: weights with a scale per output channel, activations with a scale per row.

forward: E4M3 x E4M3, sums in fp32, result in bf16. backward: straight-through, in the type of the weights as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fpsgen.fused.rows import FP8Channels, FP8Rows, quantize_rows


class FP8Weight(NamedTuple):
    """values E4M3 [N, K], scale fp32 [1, N]: the weight is values * scale.T."""

    values: torch.Tensor
    scale: torch.Tensor


def fp8_supported(device: torch.device) -> bool:
    """Whether the device multiplies FP8 with a scale per row: compute capability 8.9, or 9.0 and higher."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def quantize_weight(weight: torch.Tensor, gain: torch.Tensor | None = None) -> FP8Weight:
    """weight [N, K] in E4M3 with a scale per output channel; each row is multiplied by gain [K] first, if given. No
    gradient.
    """
    values, scale = quantize_rows(weight.detach(), gain)
    return FP8Weight(values, scale.view(1, -1))


def fold_channels(x: FP8Channels, weight: torch.Tensor) -> tuple[FP8Rows, FP8Weight]:
    """The operands of x @ weight.T with x's scales moved to the weight [N, K], which costs one reading of it. What a
    channel counts in the product decides how well it is rounded, whatever its size in x.
    """
    ones = torch.ones((*x.values.shape[:-1], 1), dtype=torch.float32, device=x.values.device)
    return FP8Rows(x.values, ones), quantize_weight(weight, x.scale)


def fp8_linear(
    x: torch.Tensor | FP8Rows, weight: FP8Weight, bias: torch.Tensor | None, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """x [..., K] @ weight.T + bias, [..., N] in dtype. K and N are multiples of 16.

    On a device without FP8 tensor cores the same product of the same rounded numbers is computed in fp32: exact, slow,
    for tests.
    """
    rows = x if isinstance(x, FP8Rows) else quantize_rows(x)
    shape = (*rows.values.shape[:-1], len(weight.values))
    values, scale = rows.values.flatten(0, -2), rows.scale.view(-1, 1)
    if not values.is_cuda:
        out = F.linear(values.float() * scale, weight.values.float() * weight.scale.t())
        return (out if bias is None else out + bias.float()).to(dtype).view(shape)
    if bias is not None and bias.dtype != dtype:
        bias = bias.to(dtype)
    # row-wise scales come with bf16 results only
    out = torch._scaled_mm(
        values,
        weight.values.t(),
        scale_a=scale,
        scale_b=weight.scale,
        bias=bias if dtype == torch.bfloat16 else None,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    if dtype != torch.bfloat16:
        out = out.to(dtype) if bias is None else out.to(dtype) + bias
    return out.view(shape)


class StraightThrough(torch.autograd.Function):
    """fp8_linear whose gradient is that of F.linear at the weight as it is: casts count as the identity."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, quantized: FP8Weight):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return fp8_linear(x, quantized, bias, x.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        flat = grad.flatten(0, -2)
        return (
            grad @ weight if need_x else None,
            flat.t() @ x.flatten(0, -2) if need_weight else None,
            flat.sum(0) if need_bias and ctx.has_bias else None,
            None,
        )
