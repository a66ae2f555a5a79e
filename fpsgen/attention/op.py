"""fps_attention and attend: the operators "fpsgen::attention", which has a straight-through gradient, and
"fpsgen::attention_inference", which has none.

Legend: B batch, L tokens, H heads, D head dim. Public tensors are [B, L, H, D]. The gradient treats every cast as the
identity (straight-through) and is that of exact softmax attention at the de-quantized q, k, v over the same key
tiles, which is how arXiv 2506.04648, section 3 trains. The LSE carries no gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.compiler import is_compiling
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fpsgen.attention.backward import attention_gradient
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.reference import attention_reference
from fpsgen.attention.tiles import Size3, Window


class UnsupportedDeviceError(RuntimeError):
    """This device cannot run the method; two lines: what is wrong, how to mend it."""


_PLAN = "int[] grid, int[] tile, int[] window, int granularity, str method, str impl"
_NORM_ROPE = "Tensor? norm_q, Tensor? norm_k, Tensor? table, float eps"
# without a gradient's formula, which costs the host more than all else here: what inference calls
torch.library.define(
    "fpsgen::attention_inference", f"(Tensor q, Tensor k, Tensor v, {_PLAN}, {_NORM_ROPE}) -> (Tensor, Tensor)"
)


@torch.library.impl("fpsgen::attention_inference", ("cpu", "cuda"))
def _inference(q, k, v, grid, tile, window, granularity, method, impl, norm_q, norm_k, table, eps):
    norm_rope = None if table is None else NormRope(norm_q, norm_k, table, eps)
    return _run(q, k, v, _plan(grid, tile, window, granularity, method, impl), norm_rope, True)


@torch.library.custom_op("fpsgen::attention", mutates_args=())
def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: list[int],
    tile: list[int],
    window: list[int],
    granularity: int,
    method: str,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _run(q, k, v, _plan(grid, tile, window, granularity, method, impl), None, True)


@torch.library.register_fake("fpsgen::attention_inference")
@_attention.register_fake
def _(q, k, v, *_others):
    batch, length, heads, _ = q.shape
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        (batch, heads, length), dtype=torch.float32
    )


def _run(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan, norm_rope: NormRope | None, return_lse: bool
) -> tuple[torch.Tensor, Any]:
    if plan.kernel(q.device) not in ("triton", "hopper"):
        q, k = norm_rope.apply(q, k) if norm_rope else (q, k)
        layout = plan.tables("cpu").layout
        return attention_reference(q, k, v, layout, plan.tile_lists(), plan.fp8, plan.granularity)
    if plan.fp8 and q.is_cuda and _capability(q.device) < (8, 9):
        major, minor = _capability(q.device)
        raise UnsupportedDeviceError(
            f"FP8 attention needs compute capability 8.9; {torch.cuda.get_device_name(q.device)} has {major}.{minor}.\n"
            'Use method="sta" or "bf16" here.'
        )
    try:
        from fpsgen.attention.kernels import attention_kernel
    except ModuleNotFoundError as error:
        raise UnsupportedDeviceError(
            f"the GPU kernels need triton, and it cannot be imported ({error}).\n"
            'Install the triton that belongs to your torch, or use method="bf16".'
        ) from error
    tables, lists = plan.tables(q.device), plan.lists(q.device)
    return attention_kernel(q, k, v, tables, lists, plan.fp8, plan.granularity, norm_rope, return_lse)


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@torch.library.custom_op("fpsgen::attention_backward", mutates_args=())
def _attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: list[int],
    tile: list[int],
    window: list[int],
    granularity: int,
    method: str,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return attention_gradient(grad, q, k, v, _plan(grid, tile, window, granularity, method, impl))


@_attention_backward.register_fake
def _(grad, q, k, v, grid, tile, window, granularity, method, impl):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _plan(grid, tile, window, granularity, method, impl) -> AttentionPlan:
    return _plan_of(tuple(grid), tuple(tile), tuple(window), granularity, method, impl)


@lru_cache(maxsize=256)
def _plan_of(*fields) -> AttentionPlan:
    return AttentionPlan(*fields)


def _save(ctx, inputs, output):
    q, k, v, *ctx.plan = inputs
    ctx.save_for_backward(q, k, v)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_lse):
    nothing = (None,) * 6
    if grad_out is None:
        return (None, None, None, *nothing)
    q, k, v = ctx.saved_tensors
    return (*torch.ops.fpsgen.attention_backward(grad_out, q, k, v, *ctx.plan), *nothing)


torch.library.register_autograd("fpsgen::attention", _backward, setup_context=_save)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    return_lse: bool = False,
    norm_rope: NormRope | None = None,
):
    """Attention by a prepared plan; q, k, v [B, L, H, D] already in tile order, and so is the result.

    Returns out [B, L, H, D] in q's dtype, with return_lse also LSE fp32 [B, H, L] (natural logarithm). Differentiable
    in q, k, v; traceable by torch.compile(fullgraph=True). norm_rope: q and k are what the projections wrote; they are
    normed and rotated first, which FP8 kernels do in the pass that quantizes. Raises ValueError for shapes that do not
    fit the plan's grid and UnsupportedDeviceError for FP8 on GPUs older than compute capability 8.9.
    """
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    # nobody is there to see an operator, which costs the host as much again
    plain = type(q) is type(k) is type(v) is torch.Tensor and not (is_compiling() or is_in_torch_dispatch_mode())
    if q.dim() != 4 or q.shape[1] != plan.tiling.num_tokens or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q, k, v are {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} for the grid {plan.grid}.\n"
            "Give three tensors [B, L, H, D] of one shape with L = T*H*W."
        )
    if norm_rope is not None:
        norm_rope.check(q)
    exact = plan.kernel(q.device) == "sdpa" and not return_lse
    if norm_rope is not None and (trains or exact or plan.smooth_k):
        q, k = norm_rope.apply(q, k)
        norm_rope = None
    mean = None
    if plan.smooth_k:
        mean = k.detach().mean(1, keepdim=True, dtype=torch.float32)  # softmax's gradients of keys add up to 0
        k = (k - mean).to(k.dtype)
    if exact:
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    fields = (plan.grid, plan.tile, plan.window, plan.granularity, plan.method, plan.impl)
    if trains:
        out, lse = torch.ops.fpsgen.attention.default(q, k, v, *fields)
    elif plain:
        out, lse = _run(q, k, v, plan, norm_rope, return_lse)
    else:
        fused = (None, None, None, 0.0) if norm_rope is None else norm_rope
        out, lse = torch.ops.fpsgen.attention_inference.default(q, k, v, *fields, *fused)
    if mean is not None and return_lse:  # that of the keys as they were given
        lse = lse + torch.einsum("blhd,bkhd->bhl", q.float(), mean) * q.shape[-1] ** -0.5
    return (out, lse) if return_lse else out


def fps_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    grid: Size3,
    method: str = "fps",
    tile: str | Size3 = "fit",
    window: Window = "all",
    granularity: int = 1,
    ordered: bool = False,
    return_lse: bool = False,
    impl: str = "auto",
    smooth_k: bool = False,
):
    """FP8 tile-sparse self-attention over a video's token grid.

    q, k, v: [B, L, H, D], L = T*H*W in raster order (tile order with ordered=True), any float dtype, one device.
    grid: (T, H, W) in tokens. method, tile, window, granularity, impl, smooth_k: see AttentionPlan. Returns out
    [B, L, H, D] in q's dtype, in the order of the input; with return_lse also LSE fp32 [B, H, L] (natural logarithm).
    Raises ValueError and UnsupportedDeviceError as attend.
    """
    t, h, w = grid
    plan = AttentionPlan((t, h, w), tile, window, granularity, method, impl, smooth_k)
    if ordered or (plan.dense and not plan.fp8):  # dense bf16 does not depend on the order
        return attend(q, k, v, plan, return_lse)
    tables = plan.tables(q.device)
    if q.dim() == 4 and q.shape[1] == len(tables.order) and k.shape == q.shape == v.shape:
        q, k, v = (x.index_select(1, tables.order) for x in (q, k, v))
    out, lse = attend(q, k, v, plan, return_lse=True)
    out = out.index_select(1, tables.inverse)
    return (out, lse.index_select(2, tables.inverse)) if return_lse else out
