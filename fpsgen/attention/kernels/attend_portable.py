"""Tile-sparse attention forward, portable Triton: one program per block of query rows walks its tile's list of key
blocks.

Two precisions share the kernel. FP8: prepared inputs through tensor descriptors (TMA on Hopper, plain loads before
it), one scale per key block, P in E4M3 under an integer running maximum (reference.py says why). 16 bit: q, k, v as
they lie, P in their type. The kernel knows nothing of windows or policies; an empty list gives 0 and LSE -inf, and so
may a row whose logits pass 2^22, where fp32 no longer holds a logit's distance to the maximum. Left out on purpose:
key blocks that cross tiles, masks inside a tile (neither occurs), dropout, causal order.

Legend: B batch, H heads, L tokens (tile order), N blocks, M tiles, G list groups, D head dim. Offsets that grow with
L are int64.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fpsgen.attention.kernels.launch_config import (
    HEAD_DIMS,
    HopperConfig,
    LaunchConfig,
    Pack,
    pack_slots,
    select,
    select_hopper,
    start,
)
from fpsgen.attention.kernels.quantize_qkv import prepare_inputs, prepared_slots, zero_bytes
from fpsgen.attention.kernels.tape import Tape
from fpsgen.attention.norm_rope import NormRotary
from fpsgen.attention.plan import AttentionPlan, PlanTensors

TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])  # (major, minor)
_LN_2 = tl.constexpr(math.log(2.0))
_P_SHIFT = tl.constexpr(math.log2(448.0))  # P = 2^(x - m) * 448


@triton.jit
def attention_forward(
    q,  # FP8: descriptor [B*H*N*BLOCK, D], else pointer
    k,  # FP8: descriptor [B*H*N*BLOCK, D], else pointer
    v,  # FP8: descriptor [B*H*D, N*BLOCK], else pointer
    out,
    lse,
    q_scale,
    k_scale,
    v_scale,
    block_start,
    block_len,
    block_tile,
    list_index,
    list_count,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_kb,
    stride_kl,
    stride_kh,
    stride_vb,
    stride_vl,
    stride_vh,
    heads,
    tokens,
    num_blocks,
    num_tiles,
    num_groups,
    longest,
    softmax_scale,  # D^-0.5 * log2(e), fp32
    FP8: tl.constexpr,
    HALF: tl.constexpr,  # 16-bit type of the products where not FP8
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    MASKED: tl.constexpr,  # some block holds padding
    PROMOTE: tl.constexpr,
    ROUNDED_SUM: tl.constexpr,
):
    SPLIT: tl.constexpr = BLOCK // BLOCK_Q
    block_q = tl.program_id(0) // SPLIT
    part = (tl.program_id(0) % SPLIT) * BLOCK_Q
    bh = tl.program_id(1)
    batch = (bh // heads).to(tl.int64)
    head = (bh % heads).to(tl.int64)
    lanes_q = tl.arange(0, BLOCK_Q)
    lanes_k = tl.arange(0, BLOCK)
    channels = tl.arange(0, D)

    token = tl.load(block_start + block_q).to(tl.int64) + part
    rows_left = tl.load(block_len + block_q) - part
    line = (bh % num_groups).to(tl.int64) * num_tiles + tl.load(block_tile + block_q)
    count = tl.load(list_count + line)
    count = tl.where(rows_left > 0, count, 0)
    keys = list_index + line * longest

    if FP8:
        block_query = q.load([(bh * num_blocks + block_q) * BLOCK + part, 0])  # [BLOCK_Q, D]
        scale_q = tl.load(q_scale + bh.to(tl.int64) * num_blocks + block_q) * softmax_scale
        scales = k_scale + bh.to(tl.int64) * num_blocks
    else:
        at_q = q + batch * stride_qb + head * stride_qh + (token + lanes_q)[:, None] * stride_ql + channels[None, :]
        block_query = tl.load(at_q, mask=lanes_q[:, None] < rows_left, other=0.0).to(HALF)
        base_k = k + batch * stride_kb + head * stride_kh + channels[None, :]
        base_v = v + batch * stride_vb + head * stride_vh + channels[None, :]

    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)  # running maximum, base 2
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, D], tl.float32)

    for i in range(count):
        block_k = tl.load(keys + i)
        length = tl.load(block_len + block_k)
        if FP8:
            block_key = k.load([(bh * num_blocks + block_k) * BLOCK, 0])  # [BLOCK, D]
            scale = scale_q * tl.load(scales + block_k)
        else:
            rows = tl.load(block_start + block_k).to(tl.int64) + lanes_k
            block_key = tl.load(base_k + rows[:, None] * stride_kl, mask=lanes_k[:, None] < length, other=0.0).to(HALF)
            scale = softmax_scale
        score = tl.dot(block_query, block_key.T)  # [BLOCK_Q, BLOCK]
        if MASKED:
            score = tl.where(lanes_k[None, :] < length, score, float("-inf"))
        peak = tl.max(score, 1) * scale
        if FP8:
            peak = tl.ceil(peak)
        higher = tl.maximum(top, peak)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        decay = tl.exp2(top - base)
        top = higher
        acc = acc * decay[:, None]
        if FP8:
            weight = tl.exp2(score * scale - (base - _P_SHIFT)[:, None])
            rounded = weight.to(tl.float8e4nv)
            if ROUNDED_SUM:
                weight = rounded.to(tl.float32)
            total = total * decay + tl.sum(weight, 1)
            block_value = v.load([bh * D, block_k * BLOCK])  # [D, BLOCK]
            if PROMOTE:
                acc = tl.dot(rounded, block_value.T, acc, max_num_imprecise_acc=BLOCK)
            else:
                acc = tl.dot(rounded, block_value.T, acc)
        else:
            weight = tl.exp2(score * scale - base[:, None])
            total = total * decay + tl.sum(weight, 1)
            at_v = base_v + rows[:, None] * stride_vl
            block_value = tl.load(at_v, mask=lanes_k[:, None] < length, other=0.0).to(HALF)
            acc = tl.dot(weight.to(HALF), block_value, acc)

    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    height = tl.where(top == float("-inf"), 0.0, top) + tl.log2(total)
    if FP8:
        result = result * tl.load(v_scale + bh.to(tl.int64) * D + channels)[None, :]
        height = height - _P_SHIFT
    keep = lanes_q < rows_left
    at_out = ((batch * tokens + token + lanes_q) * heads + head)[:, None] * D + channels[None, :]
    tl.store(out + at_out, result.to(out.dtype.element_ty), mask=keep[:, None])
    tl.store(lse + bh.to(tl.int64) * tokens + token + lanes_q, height * _LN_2, mask=keep)


def attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    at: PlanTensors,
    fp8: bool,
    granularity: int = 1,
    config: LaunchConfig | HopperConfig | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    rotary: NormRotary | None = None,
    return_lse: bool = True,
    tape: Tape | None = None,
) -> tuple[torch.Tensor, Any]:
    """Attention of q, k, v [B, L, H, D] (tile order) over the lists in `at`, as attention_reference does it.

    D up to 128 (padded to 64 or 128; more raises ValueError). Without fp8, fp32 inputs are multiplied in bf16. out
    (contiguous [B, L, H, D]) and lse (fp32 [B, H, L]) may be given, as tests do. rotary: q and k are normed and rotated
    first; with fp8 in the pass that quantizes, for D of 64 or 128, else in plain torch. config: None takes a Hopper
    kernel where one fits (launch.select_hopper), else this file's. tape: records what is launched. Returns out in q's
    dtype and LSE (natural logarithm), None without return_lse.
    """
    batch, tokens, heads, dim = q.shape
    groups = at.list_count.shape[0]
    if groups not in (1, heads, batch * heads):
        raise ValueError(f"lists have {groups} groups.\nGive 1, {heads} (heads) or {batch * heads} (batch x heads).")
    padded = next((d for d in HEAD_DIMS if d >= dim), 0)
    if not padded:
        raise ValueError(f"head dim is {dim}.\nThe kernels take head dims up to {HEAD_DIMS[-1]}.")
    kind = q.dtype
    if rotary and (padded != dim or not fp8):
        q, k = rotary.apply(q, k)
        rotary = None
    if padded != dim:
        q, k, v = (F.pad(x, (0, padded - dim)) for x in (q, k, v))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if not fp8 and q.dtype not in (torch.float16, torch.bfloat16):
        q, k, v = (x.bfloat16() for x in (q, k, v))
    out = torch.empty(q.shape, device=q.device, dtype=kind) if out is None else out
    scale = dim**-0.5 * math.log2(math.e)
    here = not q.is_cuda or q.device.index == torch.cuda.current_device()
    with nullcontext() if here else torch.cuda.device(q.device):
        config = config or _choose(q, at, fp8)
        hopper = isinstance(config, HopperConfig)
        slots = prepared_slots(q, at, rotary is not None) if fp8 else {}
        slots |= {} if return_lse else {"lse": ((batch, heads, tokens), torch.float32)}
        pack = Pack(pack_slots(slots), q.device)
        if not return_lse:
            lse = pack.lse
        elif lse is None:
            lse = torch.empty(batch, heads, tokens, device=q.device, dtype=torch.float32)
        if tape is not None:
            tape.begin(out, lse if return_lse else None, pack, zero_bytes(pack) if fp8 else 0)
        if fp8:
            prepare_inputs(q, k, v, at, granularity, hopper, rotary, pack, tape)
        if isinstance(config, LaunchConfig):
            _launch_portable(q, k, v, pack if fp8 else None, at, out, lse, scale, config, tape)
        elif fp8:
            from fpsgen.attention.kernels.attend_fp8_sm90 import launch_hopper

            launch_hopper(pack, at, out, lse, scale, config, tape)
        else:
            from fpsgen.attention.kernels.attend_16bit_sm90 import launch_hopper16

            launch_hopper16(q, k, v, at, out, lse, scale, config, tape)
    return out if padded == dim else out[..., :dim].contiguous(), lse if return_lse else None


def attend_taped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    rotary: NormRotary | None,
    return_lse: bool,
    key: tuple | None,
) -> tuple[torch.Tensor, Any]:
    """attention_triton by a plan; later calls of the same key find it on tape (PlanTensors.tapes), for None there is
    none.
    """
    at = plan.tensors(q.device)
    tape = None if key is None else Tape((q, k, v, *(rotary[:3] if rotary else ())))
    options = {"rotary": rotary, "return_lse": return_lse, "tape": tape}
    out, lse = attention_triton(q, k, v, at, plan.fp8, plan.granularity, **options)
    if tape is not None and tape.close():
        at.tapes[key] = tape
    return out, lse


def _choose(q: torch.Tensor, at: PlanTensors, fp8: bool) -> LaunchConfig | HopperConfig:
    capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else (9, 0)
    block, dim = at.layout.block, q.shape[-1]
    hopper = select_hopper(dim, block, at.layout.blocks_per_tile, fp8, capability) if q.is_cuda else None
    return hopper or select(dim, block, fp8, capability, TRITON)


def _launch_portable(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ready: Pack | None,
    at: PlanTensors,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    config: LaunchConfig,
    tape: Tape | None,
) -> None:
    """Fill out and lse from q, k, v (16 bit), or from `ready` where it is given (FP8)."""
    batch, tokens, heads, dim = q.shape
    block, blocks = at.layout.block, at.layout.num_blocks
    if ready is None:
        operands, scales = (q, k, v), (lse, lse, lse)
    else:
        operands = (
            TensorDescriptor.from_tensor(ready.q.view(-1, dim), [config.block_q, dim]),
            TensorDescriptor.from_tensor(ready.k.view(-1, dim), [block, dim]),
            TensorDescriptor.from_tensor(ready.v.view(-1, blocks * block), [dim, block]),
        )
        scales = (ready.q_scale, ready.k_scale, ready.v_scale)
    fixed = (at.block_start, at.block_len, at.block_tile, at.list_index, at.list_count)
    fixed += (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], heads, tokens, blocks)
    fixed += (at.list_count.shape[1], at.list_count.shape[0], at.list_index.shape[2], scale)
    constants = {
        "FP8": ready is not None,
        "HALF": tl.float16 if q.dtype == torch.float16 else tl.bfloat16,
        "D": dim,
        "BLOCK": block,
        "BLOCK_Q": config.block_q,
        "MASKED": at.layout.uniform != block,  # some block holds padding
        "PROMOTE": config.promote,
        "ROUNDED_SUM": config.rounded_sum,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    options |= {"maxnreg": config.maxnreg} if config.maxnreg else {}
    grid = (blocks * (block // config.block_q), batch * heads, 1)
    start(tape, attention_forward, grid, (*operands, out, lse, *scales), fixed, constants, **options)
