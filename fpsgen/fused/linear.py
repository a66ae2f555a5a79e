"""Linear layers on FP8 tensor cores: one scale for a weight, and for activations one, or one per row.

Products with one scale for each operand are faster, since cuBLAS has larger tiles for them: 9 to 14 % on an H100 at
its limit of power, in the shapes of Wan2.1-14B at 720p. A scale per row is for activations whose range nobody knows
before they are there; where the next pass takes it, it stays outside of the product (RowProduct). One scale errs as
many do: E4M3 is floating point, and values err alike until they are 2^15 below the largest.

forward: E4M3 x E4M3, sums in fp32, result in bf16. backward: straight-through, in the type of the weights as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fpsgen.fused.rows import FP8Channels, FP8Rows, RowProduct, quantize_rows


class FP8Weight(NamedTuple):
    """values E4M3 [N, K], scale fp32 [1, N], the same number N times: the weight is values * scale.T. peaks fp32 [K]:
    the largest magnitudes of the weight's columns.
    """

    values: torch.Tensor
    scale: torch.Tensor
    peaks: torch.Tensor


def fp8_supported(device: torch.device) -> bool:
    """Whether the device multiplies FP8 with a scale per row: compute capability 8.9, or 9.0 and higher."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def quantize_weight(
    weight: torch.Tensor, gain: torch.Tensor | None = None, peaks: torch.Tensor | None = None
) -> FP8Weight:
    """weight [N, K] in E4M3; each row is multiplied by gain [K] first, if given. peaks: of the weight without gain,
    measured if not given. No gradient.
    """
    weight = weight.detach()
    if peaks is None:
        peaks = weight.abs().amax(0).float()
    values, scale = quantize_rows(weight, gain, peaks)
    return FP8Weight(values, scale.expand(1, len(weight)).contiguous(), peaks)


def fold_channels(x: FP8Channels, weight: torch.Tensor, peaks: torch.Tensor | None = None) -> tuple[FP8Rows, FP8Weight]:
    """The operands of x @ weight.T with x's scales moved to the weight [N, K], which costs one reading of it; peaks as
    quantize_weight takes it. What a channel counts in the product decides how well it is rounded, whatever its size in
    x.
    """
    one = torch.ones(1, dtype=torch.float32, device=x.values.device)
    return FP8Rows(x.values, one), quantize_weight(weight, x.scale, peaks)


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
    one_scale = rows.scale.dim() == 1
    # row-wise scales come with bf16 results only
    out = torch._scaled_mm(
        values,
        weight.values.t(),
        scale_a=rows.scale if one_scale else scale,
        scale_b=weight.scale[0, :1] if one_scale else weight.scale,
        bias=bias if dtype == torch.bfloat16 else None,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    if dtype != torch.bfloat16:
        out = out.to(dtype) if bias is None else out.to(dtype) + bias
    return out.view(shape)


def fp8_product(
    x: FP8Rows, weight: FP8Weight, bias: torch.Tensor | None, dtype: torch.dtype = torch.bfloat16
) -> RowProduct:
    """fp8_linear of rows with a scale each, which are left to the pass that takes the result, as is the bias."""
    one = torch.ones(1, dtype=torch.float32, device=x.values.device)
    return RowProduct(fp8_linear(FP8Rows(x.values, one), weight, None, dtype), x.scale, bias)


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
