"""FP8 (E4M3) and INT8 rules for attention inputs, in plain torch on any device.

Q and K carry one fp32 scale per group of consecutive kernel blocks (tile order), V one per channel: scale = amax / 448.
P has a fixed scale, see reference.py. Source: arXiv 2506.04648, section 3; that FP8 means E4M3 follows from its 448.
With int8_qk, Q and K are integers from -127 to 127 instead, scale = amax / 127 (SageAttention2, arXiv 2411.10958; per
block). Casts never rely on what a device does beyond the range: values are clamped first. NaN stays in its scale group.
Legend: B batch, L tokens, H heads, D head dim, N kernel blocks; x is [B, L, H, D] in tile order, any float dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fpsgen.attention.tiles import BlockLayout

E4M3_MAX = 448.0
INT8_MAX = 127.0
AMAX_FLOOR = 2.0**-100  # keeps the scale of an all-zero channel above zero and its inverse finite
EXPONENT = torch.tensor(0x7F800000, dtype=torch.int32)  # bits of fp32
# of Q and K: the product of two scales must not vanish either, or a masked score, minus infinity, becomes NaN
BLOCK_AMAX_FLOOR = 2.0**-50
CHUNK = 1 << 16  # values cast at a time on a CPU


class FP8Output(NamedTuple):
    """Attention's output in E4M3: values [B, L, H, D], scale fp32 [H, D] per channel; it is values * scale.

    An output is a mean of values, so no channel of it exceeds the largest magnitude of V in that channel: the scale is
    known before attention runs, and one for each channel stays good where channels or heads are of unlike size.
    """

    values: torch.Tensor
    scale: torch.Tensor


def round_e4m3(x: torch.Tensor, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """fp32 values rounded to the nearest E4M3 value (ties to even), still fp32; overwrites and returns x.

    |x| must be at most 448. Equals x.to(float8_e4m3fn).float(), which is several times slower on CPU. Adding 1.5 *
    2^20 times the element's own power of two pushes all but three mantissa bits out of the fp32 mantissa; below 2^-6
    the step is 2^-9. scratch: memory like x, to be overwritten.
    """
    magic = torch.empty_like(x) if scratch is None else scratch
    bits = magic.view(torch.int32)
    torch.bitwise_and(x.view(torch.int32), EXPONENT.to(x.device), out=bits)
    bits.clamp_(min=(127 - 6) << 23)
    magic.mul_(1.5 * 2**20)
    return x.add_(magic).sub_(magic)


def _amax(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Largest magnitude along `dim`, fp32; NaN where there is one."""
    return torch.maximum(x.amax(dim), x.amin(dim).neg_()).float()


def _group_scale(x: torch.Tensor, layout: BlockLayout, granularity: int, largest: float) -> torch.Tensor:
    """fp32 [B, N, H]: amax over each group of `granularity` consecutive blocks, over `largest`."""
    if granularity < 1:
        raise ValueError(
            f"granularity is {granularity}.\nGive the number of kernel blocks that share a scale, 1 or more."
        )
    if layout.uniform:
        blocks = _amax(x.unflatten(1, (layout.num_blocks, layout.uniform)), 2).amax(-1)  # [B, N, H]
    else:
        rows = _amax(x, -1)  # [B, L, H]
        blocks = rows[:, layout.rows.to(x.device).flatten()].unflatten(1, layout.rows.shape).amax(2)
    groups = min(granularity, layout.num_blocks)
    if groups > 1:
        padded = F.pad(blocks, (0, 0, 0, -layout.num_blocks % groups))
        amax = padded.unflatten(1, (-1, groups)).amax(2)
        blocks = amax.repeat_interleave(groups, 1)[:, : layout.num_blocks]
    return blocks.clamp(min=BLOCK_AMAX_FLOOR) * (1.0 / largest)


def output_scale(v: torch.Tensor) -> torch.Tensor:
    """FP8Output's scale of attention over values v [B, L, H, D]."""
    return _amax(v, 1).amax(0).clamp(min=AMAX_FLOOR) * (1.0 / E4M3_MAX)


def quantize_output(out: torch.Tensor, scale: torch.Tensor) -> FP8Output:
    """Attention's output [B, L, H, D] by output_scale's scale."""
    return FP8Output((out.float() / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale)


def fake_quantize(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: BlockLayout,
    granularity: int = 1,
    dtype: torch.dtype = torch.float32,
    int8_qk: bool = False,
    scale_of: str = "tile",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v as FP8 attention sees them: quantized and de-quantized, [B, L, H, D] in `dtype`, contiguous. int8_qk: q
    and k in INT8, v in E4M3.

    scale_of: what shares a scale of q and k: "tile" (granularity kernel blocks), "token", "channel", "group" (as many
    tokens as a kernel block has rows, in raster order) or "tensor" (all tokens of a head).
    """
    by_token = (layout.num_tokens, 1)
    pieces = (layout.num_blocks, layout.uniform) if layout.uniform else by_token
    most = INT8_MAX if int8_qk else E4M3_MAX
    out = []
    for x in (q, k):
        if scale_of != "tile":
            scale = _amax_of(x, layout, scale_of).clamp(min=BLOCK_AMAX_FLOOR) * (1.0 / most)
            out.append(_fake_cast(x, scale.expand(-1, -1, -1, x.shape[-1]), by_token, dtype, int8_qk))
            continue
        scale = _group_scale(x, layout, granularity, most)  # [B, N, H]
        scale = scale if layout.uniform else scale[:, layout.token_block.to(x.device)]
        out.append(_fake_cast(x, scale[..., None].expand(*scale.shape, x.shape[-1]), pieces, dtype, int8_qk))
    scale = _amax(v, 1).clamp(min=AMAX_FLOOR) * (1.0 / E4M3_MAX)
    return out[0], out[1], _fake_cast(v, scale[:, None], by_token, dtype)


def _amax_of(x: torch.Tensor, layout: BlockLayout, scale_of: str) -> torch.Tensor:
    """Largest magnitudes of what shares a scale, fp32 [B, L or 1, H, D or 1]."""
    if scale_of == "token":
        return _amax(x, -1)[..., None]
    if scale_of == "channel":
        return _amax(x, 1)[:, None]
    rows = _amax(x, -1)  # [B, L, H]
    if scale_of == "tensor":
        return rows.amax(1)[:, None, :, None]
    raster = layout.order().to(x.device)  # of each token
    in_raster = F.pad(rows[:, torch.argsort(raster)], (0, 0, 0, -rows.shape[1] % layout.block))
    return in_raster.unflatten(1, (-1, layout.block)).amax(2)[:, raster // layout.block, :, None]


def _fake_cast(
    x: torch.Tensor, scale: torch.Tensor, pieces: tuple[int, int], dtype: torch.dtype, int8: bool = False
) -> torch.Tensor:
    """x rounded to E4M3 or INT8 times scale [B, pieces or 1, H, D]; pieces: how many of how many tokens.

    A few blocks at a time and in the same memory, so that on a CPU all steps but the first find them in its cache.
    """
    batch, _, heads, dim = x.shape
    out = torch.empty(batch, *pieces, heads * dim, device=x.device, dtype=dtype)
    x = x.flatten(2).unflatten(1, pieces)  # [B, pieces, tokens, H*D]
    scale = scale.flatten(2)[:, :, None]  # [B, pieces or 1, 1, H*D]
    inverse = 1.0 / scale
    most = INT8_MAX if int8 else E4M3_MAX
    step = pieces[0] if x.is_cuda else max(1, CHUNK // (batch * pieces[1] * heads * dim))
    scaled = torch.empty(batch, min(step, pieces[0]), *x.shape[2:], device=x.device)
    scratch = torch.empty_like(scaled)
    for first in range(0, pieces[0], step):
        some = slice(first, min(first + step, pieces[0]))
        own = slice(None) if scale.shape[1] == 1 else some
        part = scaled[:, : some.stop - first].copy_(x[:, some]).mul_(inverse[:, own]).clamp_(-most, most)
        part = part.round_() if int8 else round_e4m3(part, scratch[:, : some.stop - first])
        out[:, some] = part.mul_(scale[:, own])
    return out.flatten(1, 2).unflatten(2, (heads, dim))
