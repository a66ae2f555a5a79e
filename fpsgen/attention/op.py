"""fps_attention and attend: the operators "fpsgen::attention", which has a straight-through gradient, and
"fpsgen::attention_inference", which has none.

Legend: B batch, L tokens, H heads, D head dim. Public tensors are [B, L, H, D]. The gradient treats every cast as the
identity (straight-through) and is that of exact softmax attention at the de-quantized q, k, v over the same keys,
which is how arXiv 2506.04648, section 3 trains. The LSE carries no gradient, and neither does the choice of keys.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.compiler import is_compiling
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fpsgen.attention.backward import attention_gradient
from fpsgen.attention.lists import check_lists, given_lists, kept_density, select_lists
from fpsgen.attention.methods import find_method
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.plan import GPU_KERNELS, AttentionPlan, BlockLists, plan_of
from fpsgen.attention.quantize import FP8Output, output_scale, quantize_output
from fpsgen.attention.reference import attention_reference
from fpsgen.attention.sparse_sdpa import attention_cpu, attention_cpu_lists
from fpsgen.attention.windows import Size3, Window, density_window, resolve_tile, size3


class UnsupportedDeviceError(RuntimeError):
    """This device cannot run the method; two lines: what is wrong, how to mend it."""


_LISTS = "Tensor? list_index, Tensor? list_count"
_PLAN = (
    "int[] grid, int[] tile, int[] block, int[] window, int granularity, str method, str impl, int prefix, int suffix, "
    "str options"
)
_NORM_ROPE = "Tensor? norm_q, Tensor? norm_k, Tensor? table, float eps"
# without a gradient's formula, which costs the host more than all else here: what inference calls
torch.library.define(
    "fpsgen::attention_inference",
    f"(Tensor q, Tensor k, Tensor v, {_LISTS}, {_PLAN}, {_NORM_ROPE}, bool smooth_k, bool smooth_v, bool fp8_out)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.define("fpsgen::attention", f"(Tensor q, Tensor k, Tensor v, {_LISTS}, {_PLAN}) -> (Tensor, Tensor)")
torch.library.define(
    "fpsgen::attention_backward",
    f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_LISTS}, {_PLAN})"
    " -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("fpsgen::attention_inference", ("cpu", "cuda"))
def _inference(q, k, v, list_index, list_count, *settings):
    *plan, norm_q, norm_k, table, eps, smooth_k, smooth_v, fp8_out = settings
    norm_rope = None if table is None else NormRope(norm_q, norm_k, table, eps)
    means = (smooth_k, smooth_v)
    out, lse = _run(q, k, v, _plan(*plan), _lists(list_index, list_count), norm_rope, True, *means, fp8_out)
    values, scale = out if isinstance(out, FP8Output) else (out, lse.new_empty(0))
    return values, lse, scale


@torch.library.impl("fpsgen::attention", ("cpu", "cuda"))
def _attention(q, k, v, list_index, list_count, *plan):
    return _run(q, k, v, _plan(*plan), _lists(list_index, list_count), None, True)


@torch.library.impl("fpsgen::attention_backward", ("cpu", "cuda"))
def _attention_backward(grad, q, k, v, out, lse, list_index, list_count, *settings):
    plan = _plan(*settings)
    lists = _lists(list_index, list_count) or plan.lists(q.device)
    return attention_gradient(grad, q, k, v, out, lse, plan, lists)


@torch.library.register_fake("fpsgen::attention")
def _(q, k, v, *_others):
    batch, length, heads, _ = q.shape
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        (batch, heads, length), dtype=torch.float32
    )


@torch.library.register_fake("fpsgen::attention_inference")
def _(q, k, v, *others):
    batch, length, heads, dim = q.shape
    fp8_out, float32 = others[-1], torch.float32
    out = torch.empty_like(q, dtype=torch.float8_e4m3fn if fp8_out else None, memory_format=torch.contiguous_format)
    scale = q.new_empty((heads, dim) if fp8_out else (0,), dtype=float32)
    return out, q.new_empty((batch, heads, length), dtype=float32), scale


@torch.library.register_fake("fpsgen::attention_backward")
def _(grad, q, k, v, *_others):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _lists(index: torch.Tensor | None, count: torch.Tensor | None) -> BlockLists | None:
    return None if index is None or count is None else BlockLists(index, count)


def _plan(*fields) -> AttentionPlan:
    return plan_of(*(tuple(x) if isinstance(x, (list, tuple)) else x for x in fields))


def _run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    lists: BlockLists | None,
    norm_rope: NormRope | None,
    return_lse: bool,
    smooth_k: bool = False,
    smooth_v: bool = False,
    fp8_out: bool = False,
) -> tuple[Any, Any]:
    kernel = plan.kernel(q.device, listed=lists is not None)
    if kernel not in GPU_KERNELS:
        q, k = norm_rope.apply(q, k) if norm_rope else (q, k)
        if kernel == "reference" or q.is_cuda:
            settings = (plan.fp8, plan.granularity, plan.int8_qk, plan.scale)
            return attention_reference(q, k, v, plan.layout, lists or plan.tile_lists(), *settings)
        rest = (plan.fp8, plan.granularity, return_lse, plan.int8_qk, plan.scale)
        if lists is not None:
            return attention_cpu_lists(q, k, v, plan.layout, *lists, *rest)
        return attention_cpu(q, k, v, plan.layout, plan.token_groups(), *rest)
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
    tables, lists = plan.tables(q.device), lists or plan.lists(q.device)
    settings = (norm_rope, return_lse, smooth_k, smooth_v, plan.int8_qk, plan.pv_threshold, fp8_out)
    try:
        return attention_kernel(q, k, v, tables, lists, plan.fp8, plan.granularity, *settings)
    except RuntimeError as error:
        if "active driver" not in str(error):
            raise
        raise UnsupportedDeviceError(
            f'impl="triton" needs a GPU, and the tensors are on {q.device}.\nGive impl="auto", or move them.'
        ) from error


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _save(ctx, inputs, output):
    q, k, v, list_index, list_count, *ctx.plan = inputs
    ctx.save_for_backward(q, k, v, *output, list_index, list_count)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_lse):
    rest = (None,) * (2 + len(ctx.plan))
    if grad_out is None:
        return (None, None, None, *rest)
    return (*torch.ops.fpsgen.attention_backward(grad_out, *ctx.saved_tensors, *ctx.plan), *rest)


torch.library.register_autograd("fpsgen::attention", _backward, setup_context=_save)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    return_lse: bool = False,
    norm_rope: NormRope | None = None,
    lists: BlockLists | None = None,
    fp8_out: bool = False,
):
    """Attention by a prepared plan; q, k, v [B, L, H, D] already in tile order, and so is the result.

    Returns out [B, L, H, D] in q's dtype, with return_lse also LSE fp32 [B, H, L] (natural logarithm). Differentiable
    in q, k, v; traceable by torch.compile(fullgraph=True). norm_rope: q and k are what the projections wrote; they are
    normed and rotated first, which FP8 kernels do in the pass that quantizes. lists: key blocks of this call, each at
    most once in a list, instead of those that the plan's method chooses. fp8_out, for plans in FP8 and without a
    gradient: out is an FP8Output, which GPU kernels store themselves. Raises ValueError for tensors and lists that do
    not fit the plan, for fp8_out elsewhere, and UnsupportedDeviceError for FP8 on GPUs older than compute capability
    8.9 and where Triton is missing.
    """
    _check(q, k, v, plan)
    if lists is not None:
        check_lists(lists, plan, q)
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if fp8_out and (trains or not plan.fp8):
        what = "has no gradient" if trains else f"belongs to attention in FP8, not to method {plan.method!r}"
        raise ValueError(f"an output in FP8 {what}.\nLeave fp8_out out.")
    # an operator, which tracing and dispatch modes need, costs the host as much again
    plain = type(q) is type(k) is type(v) is torch.Tensor and not (is_compiling() or is_in_torch_dispatch_mode())
    if norm_rope is not None:
        norm_rope.check(q)
    online = plan.rule.online and lists is None
    kernel = plan.kernel(q.device, listed=lists is not None)
    exact = kernel == "sdpa" and not return_lse
    in_kernel = kernel in GPU_KERNELS and not trains  # where the LSE is that of the keys as given
    scale = output_scale(v) if fp8_out and not in_kernel else None
    if norm_rope is not None and (trains or exact or online or (plan.smooth_k and not in_kernel)):
        q, k = norm_rope.apply(q, k)
        norm_rope = None
    if online:
        lists = select_lists(q, k, v, plan)
    mean = None
    if plan.smooth_k and not in_kernel:
        mean = k.detach().mean(1, keepdim=True, dtype=torch.float32)  # softmax's gradients of keys add up to 0
        k = (k - mean).to(k.dtype)
    value_mean = None
    if plan.smooth_v and not in_kernel:
        value_mean = v.detach().mean(1, keepdim=True, dtype=torch.float32)  # the weights of a row add up to 1
        v = (v - value_mean).to(v.dtype)
    if exact:
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    means = (bool(plan.smooth_k) and in_kernel, plan.smooth_v and in_kernel, fp8_out and in_kernel)
    out: Any
    if trains:
        out, lse = torch.ops.fpsgen.attention.default(q, k, v, *(lists or (None, None)), *plan.fields)
    elif plain:
        out, lse = _run(q, k, v, plan, lists, norm_rope, return_lse or value_mean is not None, *means)
    else:
        fused = (None, None, None, 0.0) if norm_rope is None else norm_rope
        inputs = (q, k, v, *(lists or (None, None)), *plan.fields, *fused, *means)
        values, lse, out_scale = torch.ops.fpsgen.attention_inference.default(*inputs)
        out = FP8Output(values, out_scale) if means[-1] else values
    if value_mean is not None:  # but to rows without a key
        out = torch.where(lse.mT[..., None] == -math.inf, out, out + value_mean).to(out.dtype)
    if mean is not None and return_lse:  # that of the keys as they were given
        lse = lse + torch.einsum("blhd,bkhd->bhl", q.float(), mean) * q.shape[-1] ** -0.5
    if scale is not None:
        out = quantize_output(out, scale)
    return (out, lse) if return_lse else out


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> None:
    if not all(isinstance(x, torch.Tensor) and x.dtype in _DTYPES and x.layout is torch.strided for x in (q, k, v)):
        kinds = ", ".join(f"{getattr(x, 'layout', '')} {getattr(x, 'dtype', type(x).__name__)}" for x in (q, k, v))
        raise ValueError(f"q, k, v are {kinds}.\nGive three dense tensors of a float dtype of 16 bits or more.")
    if q.is_meta or k.is_meta or v.is_meta:
        raise ValueError("q, k or v is on the device meta, which holds no data.\nGive three tensors with data.")
    if q.dim() != 4 or q.shape[1] != plan.num_tokens or k.shape != q.shape or v.shape != q.shape:
        around = f" + {plan.prefix} + {plan.suffix}" if plan.prefix or plan.suffix else ""
        raise ValueError(
            f"q, k, v are {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} for the grid {plan.grid}{around}.\n"
            f"Give three tensors [B, L, H, D] of one shape with L = T*H*W{around}."
        )
    if q.numel() == 0:
        raise ValueError(f"q, k, v are empty: {tuple(q.shape)}.\nGive a sample, a head and a channel at least.")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k, v are on {q.device}, {k.device}, {v.device}.\nGive them on one device.")


def fps_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    grid: Size3,
    method: str = "fps",
    tile: str | Size3 | None = None,
    window: Window = "all",
    density: float | None = None,
    granularity: int = 1,
    block: Size3 | None = None,
    prefix: int = 0,
    suffix: int = 0,
    q2k_index: torch.Tensor | None = None,
    q2k_count: torch.Tensor | None = None,
    ordered: bool = False,
    return_lse: bool = False,
    impl: str = "auto",
    smooth_k: bool | None = None,
):
    """FP8 tile-sparse self-attention over a video's token grid (arXiv 2506.04648, section 3), with a gradient.

    q, k, v: [B, L, H, D], any float dtype, one device. L = prefix + T*H*W + suffix: prefix and suffix tokens (text or
    reference frames) see and are seen by all; those of the grid are in raster order (tile order with ordered=True).
    grid: (T, H, W) in tokens. method: "fps" or another key of METHODS.

    What a query sees: density, the share of all pairs to keep, in (0, 1], takes the window that comes nearest on this
    grid; or window, per axis an odd number of tiles (of blocks where there are some), 0 (the whole axis) or a share of
    the axis; or the lists below; or all keys. tile: a name or (t, h, w) tokens, see Profile. block: of a tile given by
    sizes, the 3D block of at most 128 tokens that windows and lists count.

    granularity: kernel blocks that share one scale of q or k. smooth_k: take the mean off the keys before they are
    quantized; None is the method's default. impl: "auto", "reference" (slow and exact) or "triton", see AttentionPlan.

    q2k_index, q2k_count: the caller's own keys instead of a window: for every query tile the numbers of the key blocks
    (without block: tiles) that it sees, int32 [B, H, M, K] or [G, M, K] with G of 1, H or B*H, and how many there are,
    int32 [B, H, M] or [G, M]. Tiles and blocks are numbered in tile order: tiles in raster order, blocks tile by tile.
    A list names each key once. On a GPU, numbers are not looked at.

    Returns out [B, L, H, D] in q's dtype, in the order of the input; with return_lse also LSE fp32 [B, H, L] (natural
    logarithm). Raises ValueError and UnsupportedDeviceError as attend.
    """
    size = size3(grid, "grid")
    stated = sum((window != "all", density is not None, q2k_index is not None or q2k_count is not None))
    if stated > 1:
        raise ValueError("window, density and lists of keys all say what is seen.\nGive one of them.")
    if density is not None:
        given = block is not None
        tile, block = (size3(tile, "tile"), block) if given else resolve_tile(size, tile or "blocks")
        window = density_window(size, tile, block, density)
    settings = (granularity, method, impl, smooth_k, block, prefix, suffix)
    plan = AttentionPlan(size, tile or find_method(method).tile or "fit", window, *settings)
    _check(q, k, v, plan)
    lists = None
    if q2k_index is not None or q2k_count is not None:
        if q2k_index is None or q2k_count is None:
            raise ValueError("q2k_index and q2k_count go together, and one is missing.\nGive both.")
        lists = given_lists(q2k_index, q2k_count, plan, q.shape[0], q.shape[2])
        if lists.list_index.device != q.device:
            raise ValueError(f"q2k_index is on {lists.list_index.device}, q on {q.device}.\nGive them on one device.")
    if ordered or (lists is None and not plan.needs_order):
        return attend(q, k, v, plan, return_lse, lists=lists)
    tables = plan.tables(q.device)
    q, k, v = (x.index_select(1, tables.order) for x in (q, k, v))
    if not return_lse:
        return cast(torch.Tensor, attend(q, k, v, plan, lists=lists)).index_select(1, tables.inverse)
    out, lse = cast(Any, attend(q, k, v, plan, return_lse=True, lists=lists))
    return out.index_select(1, tables.inverse), lse.index_select(2, tables.inverse)


__all__ = [
    "UnsupportedDeviceError",
    "attend",
    "attention_gradient",
    "fps_attention",
    "kept_density",
    "select_lists",
]
