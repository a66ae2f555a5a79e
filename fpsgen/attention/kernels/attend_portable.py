"""Tile-sparse attention forward, portable Triton: one program per block of query rows reads its tile's list of key
blocks.

Three precisions share the kernel. FP8: prepared inputs through tensor descriptors (TMA on Hopper, plain loads before
it), one scale per key block, P in E4M3 under an integer running maximum (reference.py says why). The same with INT8
queries and keys, whose scores are exact integers. 16 bit: q, k, v as they lie, P in their type. The kernel knows
nothing of windows or policies; an empty list gives 0 and LSE -inf, and so may a row whose logits pass 2^22, where fp32
no longer holds a logit's distance to the maximum. Left out on purpose: key blocks that cross tiles, masks inside a tile
(neither occurs), dropout, causal order.

Legend: B batch, H heads, L tokens (tile order), N blocks, M tiles, G list groups, D head dim. Offsets that grow with
L are int64.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fpsgen.attention.kernels.launch_config import OF_PROFILE, PortableConfig
from fpsgen.attention.kernels.workspace import Workspace
from fpsgen.attention.plan import BlockLists, DeviceTables

TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])  # (major, minor)
_LN_2 = tl.constexpr(math.log(2.0))
_P_SHIFT = tl.constexpr(math.log2(448.0))  # P = 2^(x - m) * 448
_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23, in steps of 1: its bits plus an integer below 2^22 are the sum's
_MAGIC_BITS = tl.constexpr(0x4B400000)


@triton.jit(do_not_specialize=OF_PROFILE)
def attend_portable(
    q,  # FP8: descriptor [B*H*N*BLOCK, D], else pointer
    k,  # FP8: descriptor [B*H*N*BLOCK, D], else pointer
    v,  # FP8: descriptor [B*H*D, N*BLOCK], else pointer
    out,
    lse,
    q_scale,
    k_scale,
    v_scale,
    v_mean,
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
    query_tiles,
    list_groups,
    list_length,
    softmax_scale,  # D^-0.5 * log2(e), fp32
    FP8: tl.constexpr,
    HALF: tl.constexpr,  # 16-bit type of the products where not FP8
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    MASKED: tl.constexpr,  # some block holds padding
    PROMOTE: tl.constexpr,
    ROUNDED_SUM: tl.constexpr,
    CENTER_V: tl.constexpr,
    PV_THRESHOLD: tl.constexpr,  # FP8: a block of scores this far below the maxima of all rows is left out; 0: none is
):
    SPLIT: tl.constexpr = BLOCK // BLOCK_Q
    block_q = tl.program_id(0) // SPLIT
    part = (tl.program_id(0) % SPLIT) * BLOCK_Q
    bh = tl.program_id(1)
    batch = (bh // heads).to(tl.int64)
    head = (bh % heads).to(tl.int64)
    rows_q = tl.arange(0, BLOCK_Q)
    rows_k = tl.arange(0, BLOCK)
    channels = tl.arange(0, D)

    token = tl.load(block_start + block_q).to(tl.int64) + part
    rows_left = tl.load(block_len + block_q) - part
    list_number = (bh % list_groups).to(tl.int64) * query_tiles + tl.load(block_tile + block_q)
    count = tl.load(list_count + list_number)
    count = tl.where(rows_left > 0, count, 0)
    keys = list_index + list_number * list_length

    if FP8:
        block_query = q.load([(bh * num_blocks + block_q) * BLOCK + part, 0])  # [BLOCK_Q, D]
        scale_q = tl.load(q_scale + bh.to(tl.int64) * num_blocks + block_q) * softmax_scale
        scales = k_scale + bh.to(tl.int64) * num_blocks
    else:
        query_pointers = (
            q + batch * stride_qb + head * stride_qh + (token + rows_q)[:, None] * stride_ql + channels[None, :]
        )
        block_query = tl.load(query_pointers, mask=rows_q[:, None] < rows_left, other=0.0).to(HALF)
        base_k = k + batch * stride_kb + head * stride_kh + channels[None, :]
        base_v = v + batch * stride_vb + head * stride_vh + channels[None, :]

    m_i = tl.full([BLOCK_Q], float("-inf"), tl.float32)  # running maximum, base 2
    l_i = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, D], tl.float32)

    for i in range(count):
        block_k = tl.load(keys + i)
        length = tl.load(block_len + block_k)
        if FP8:
            block_key = k.load([(bh * num_blocks + block_k) * BLOCK, 0])  # [BLOCK, D]
            scale = scale_q * tl.load(scales + block_k)
        else:
            rows = tl.load(block_start + block_k).to(tl.int64) + rows_k
            block_key = tl.load(base_k + rows[:, None] * stride_kl, mask=rows_k[:, None] < length, other=0.0).to(HALF)
            scale = softmax_scale
        qk = tl.dot(block_query, block_key.T)  # [BLOCK_Q, BLOCK]
        if qk.dtype == tl.int32:  # two fast instructions in place of a slow conversion
            qk = (qk + _MAGIC_BITS).to(tl.float32, bitcast=True) - _MAGIC
        if MASKED:
            qk = tl.where(rows_k[None, :] < length, qk, float("-inf"))
        qk_max = tl.max(qk, 1) * scale
        if FP8:
            qk_max = tl.ceil(qk_max)
        m_new = tl.maximum(m_i, qk_max)
        m_base = tl.where(m_new == float("-inf"), 0.0, m_new)
        alpha = tl.exp2(m_i - m_base)
        m_i = m_new
        acc = acc * alpha[:, None]
        l_i = l_i * alpha
        if FP8:
            needed = True
            if PV_THRESHOLD > 0:
                counts = (rows_left > rows_q) & (qk_max > float("-inf"))
                needed = tl.max(tl.where(counts, qk_max - m_base, float("-inf")), 0) > -PV_THRESHOLD
            if needed:
                p = tl.exp2(qk * scale - (m_base - _P_SHIFT)[:, None])
                p_e4m3 = p.to(tl.float8e4nv)
                if ROUNDED_SUM:
                    p = p_e4m3.to(tl.float32)
                l_i += tl.sum(p, 1)
                block_value = v.load([bh * D, block_k * BLOCK])  # [D, BLOCK]
                if PROMOTE:
                    acc = tl.dot(p_e4m3, block_value.T, acc, max_num_imprecise_acc=BLOCK)
                else:
                    acc = tl.dot(p_e4m3, block_value.T, acc)
        else:
            p = tl.exp2(qk * scale - m_base[:, None])
            l_i += tl.sum(p, 1)
            value_pointers = base_v + rows[:, None] * stride_vl
            block_value = tl.load(value_pointers, mask=rows_k[:, None] < length, other=0.0).to(HALF)
            acc = tl.dot(p.to(HALF), block_value, acc)

    o = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]
    lse_base2 = tl.where(m_i == float("-inf"), 0.0, m_i) + tl.log2(l_i)
    if FP8:
        o = o * tl.load(v_scale + bh.to(tl.int64) * D + channels)[None, :]
        lse_base2 = lse_base2 - _P_SHIFT
        if CENTER_V:
            mean = tl.load(v_mean + bh.to(tl.int64) * D + channels)[None, :]
            o += tl.where(l_i[:, None] == 0.0, 0.0, mean)
    keep = rows_q < rows_left
    cells = ((batch * tokens + token + rows_q) * heads + head)[:, None] * D + channels[None, :]
    tl.store(out + cells, o.to(out.dtype.element_ty), mask=keep[:, None])
    tl.store(lse + bh.to(tl.int64) * tokens + token + rows_q, lse_base2 * _LN_2, mask=keep)


def launch_portable(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    quantized: Workspace | None,
    tables: DeviceTables,
    lists: BlockLists,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    config: PortableConfig,
    center_v: bool,
    pv_threshold: float = 0.0,
) -> None:
    """Fill out [B, L, H, D] and lse [B, H, L] from inputs q, k, v (16 bit), or from `quantized` if given (FP8).

    scale: softmax scale times log2(e). center_v: V was quantized without its mean.
    pv_threshold: see attention_kernel.
    """
    q, k, v = inputs
    batch, tokens, heads, dim = q.shape
    block, blocks = tables.layout.block, tables.layout.num_blocks
    if quantized is None:
        operands, scales = (q, k, v), (lse, lse, lse, lse)
    else:
        operands = (
            TensorDescriptor.from_tensor(quantized.q.view(-1, dim), [config.block_q, dim]),
            TensorDescriptor.from_tensor(quantized.k.view(-1, dim), [block, dim]),
            TensorDescriptor.from_tensor(quantized.v.view(-1, blocks * block), [dim, block]),
        )
        scales = (quantized.q_scale, quantized.k_scale, quantized.v_scale)
        scales += (quantized.v_mean if center_v else quantized.v_scale,)
    constants = {
        "FP8": quantized is not None,
        "HALF": tl.float16 if q.dtype == torch.float16 else tl.bfloat16,
        "D": dim,
        "BLOCK": block,
        "BLOCK_Q": config.block_q,
        "MASKED": tables.layout.uniform != block,  # some block holds padding
        "PROMOTE": config.promote,
        "ROUNDED_SUM": config.rounded_sum,
        "CENTER_V": center_v,
        "PV_THRESHOLD": pv_threshold,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    options |= {"maxnreg": config.maxnreg} if config.maxnreg else {}
    attend_portable[blocks * (block // config.block_q), batch * heads](
        *(*operands, out, lse, *scales),
        *(tables.block_start, tables.block_len, tables.block_tile, lists.list_index, lists.list_count),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], heads, tokens, blocks),
        *(lists.list_count.shape[1], lists.list_count.shape[0], lists.list_index.shape[2], scale),
        **constants,
        **options,
    )
