"""Tile-sparse attention backward, portable Triton: dQ by query blocks over the lists of key blocks, dK and dV by key
blocks over the transposed lists. No program adds to what another one writes, so the result is deterministic.

Softmax is recomputed from q, k and LSE, in base 2: P = 2^(x - LSE), x = q.k * D^-0.5 * log2(e). Products are 16 bit
with fp32 sums. The gradient is straight-through: that of exact softmax attention at the q, k, v that the forward saw.
Where these were FP8, see backward_prepare.py. P's own cast to FP8 is not repeated; the saved output and LSE carry it.

Rows of dS sum to 0 only as far as delta = rowsum(dO * O) and dS itself are exact, and O (with FP8 by P's cast too) and
dS are rounded. What is left, times the mean of the keys, would be an error of dQ that grows with a bias of the keys; so
the row's sum of dS is kept, and taken out at the end.

Non-finite gradients of one block may reach blocks beside it: a load takes whole blocks of rows, masked by P = 0.

Legend: B batch, H heads, L tokens (tile order), N blocks, M tiles, G list groups, D head dim. Offsets that grow with
L are int64.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fpsgen.attention.kernels.backward_config import BackwardConfig, PassConfig, select_backward
from fpsgen.attention.kernels.backward_lists import transpose_lists
from fpsgen.attention.kernels.backward_prepare import BackwardInputs, prepare_backward
from fpsgen.attention.kernels.launch_config import HEAD_DIMS

if TYPE_CHECKING:
    from fpsgen.attention.plan import BlockLists, DeviceTables


@triton.jit
def backward_queries(
    q,  # descriptors of [B*L, H*D]: q, grad_out by OWN rows, k, v by STEP rows
    k,
    v,
    grad_out,
    lse,
    delta,
    k_scale,
    q_scale,
    k_mean,
    dq,
    block_start,
    block_len,
    block_tile,
    list_index,
    list_count,
    heads,
    tokens,
    num_blocks,
    num_tiles,
    num_groups,
    longest,
    softmax_scale,  # D^-0.5, fp32
    FP8: tl.constexpr,  # q and k hold E4M3 values, to be multiplied by their scales
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    OWN: tl.constexpr,
    STEP: tl.constexpr,
    MASKED: tl.constexpr,  # some block holds padding
):
    """dQ of OWN query rows. Programs (part of a query block, batch x head)."""
    SPLIT: tl.constexpr = BLOCK // OWN
    STEPS: tl.constexpr = BLOCK // STEP
    LOG2_E: tl.constexpr = 1.4426950408889634
    block_q = tl.program_id(0) // SPLIT
    part = (tl.program_id(0) % SPLIT) * OWN
    bh = tl.program_id(1)
    batch, head = bh // heads, bh % heads
    column = head * D
    lanes_q, lanes_k, channels = tl.arange(0, OWN), tl.arange(0, STEP), tl.arange(0, D)

    token = batch * tokens + tl.load(block_start + block_q) + part
    rows_left = tl.load(block_len + block_q) - part
    line = (bh % num_groups).to(tl.int64) * num_tiles + tl.load(block_tile + block_q)
    count = tl.where(rows_left > 0, tl.load(list_count + line), 0)
    keys = list_index + line * longest

    query = q.load([token, column])  # [OWN, D]
    grad = grad_out.load([token, column])
    stat = (bh.to(tl.int64) * num_blocks + block_q) * BLOCK + part + lanes_q
    lse_i = tl.load(lse + stat)
    delta_i = tl.load(delta + stat)
    factor = softmax_scale * LOG2_E
    if FP8:
        factor *= tl.load(q_scale + bh * num_blocks + block_q)

    acc = tl.zeros([OWN, D], tl.float32)
    ds_sum = tl.zeros([OWN], tl.float32)  # row sums of dS
    for i in range(count * STEPS):
        block_k = tl.load(keys + i // STEPS)
        offset = (i % STEPS) * STEP
        row = batch * tokens + tl.load(block_start + block_k) + offset
        key = k.load([row, column])  # [STEP, D]
        value = v.load([row, column])
        qk = tl.dot(query, key.T)
        dp = tl.dot(grad, value.T)
        scale = factor
        base = lse_i
        if FP8:
            scale_k = tl.load(k_scale + bh * num_blocks + block_k)
            scale = factor * scale_k
            base = lse_i - tl.log2(scale_k)  # so dS comes out times the scale of the keys
        p = tl.exp2(qk * scale - base[:, None])
        if MASKED:
            p = tl.where(lanes_k[None, :] < tl.load(block_len + block_k) - offset, p, 0.0)
        ds = (p * (dp - delta_i[:, None])).to(key.dtype)
        row_sum = tl.sum(ds.to(tl.float32), 1)
        if FP8:
            row_sum /= scale_k
        ds_sum += row_sum
        acc = tl.dot(ds, key, acc)

    result = acc - ds_sum[:, None] * tl.load(k_mean + bh * D + channels)[None, :]
    offsets = ((token + lanes_q).to(tl.int64) * heads + head)[:, None] * D + channels[None, :]
    tl.store(dq + offsets, (result * softmax_scale).to(dq.dtype.element_ty), mask=(lanes_q < rows_left)[:, None])


@triton.jit
def backward_keys(
    q,  # descriptors of [B*L, H*D]: k, v by OWN rows, q, grad_out by STEP rows
    k,
    v,
    grad_out,
    lse,
    delta,
    k_scale,
    q_scale,
    dk,
    dv,
    block_start,
    block_len,
    list_index,  # query blocks of every key block
    list_count,
    heads,
    tokens,
    num_blocks,
    num_groups,
    softmax_scale,
    FP8: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    OWN: tl.constexpr,
    STEP: tl.constexpr,
):
    """dK and dV of OWN key rows. Programs (part of a key block, batch x head). Scores are transposed: keys, queries."""
    SPLIT: tl.constexpr = BLOCK // OWN
    STEPS: tl.constexpr = BLOCK // STEP
    LOG2_E: tl.constexpr = 1.4426950408889634
    block_k = tl.program_id(0) // SPLIT
    part = (tl.program_id(0) % SPLIT) * OWN
    bh = tl.program_id(1)
    batch, head = bh // heads, bh % heads
    column = head * D
    lanes_k, lanes_q, channels = tl.arange(0, OWN), tl.arange(0, STEP), tl.arange(0, D)

    token = batch * tokens + tl.load(block_start + block_k) + part
    rows_left = tl.load(block_len + block_k) - part
    line = (bh % num_groups).to(tl.int64) * num_blocks + block_k
    count = tl.where(rows_left > 0, tl.load(list_count + line), 0)
    queries = list_index + line * num_blocks

    key = k.load([token, column])  # [OWN, D]
    value = v.load([token, column])
    stats = bh.to(tl.int64) * num_blocks * BLOCK + lanes_q
    factor = softmax_scale * LOG2_E
    if FP8:
        factor *= tl.load(k_scale + bh * num_blocks + block_k)

    acc_k = tl.zeros([OWN, D], tl.float32)
    acc_v = tl.zeros([OWN, D], tl.float32)
    for i in range(count * STEPS):
        block_q = tl.load(queries + i // STEPS)
        offset = (i % STEPS) * STEP
        row = batch * tokens + tl.load(block_start + block_q) + offset
        query = q.load([row, column])  # [STEP, D]
        grad = grad_out.load([row, column])
        lse_i = tl.load(lse + stats + (block_q * BLOCK + offset))  # inf in rows of padding: P is 0
        qk = tl.dot(key, query.T)  # [OWN, STEP]
        dp = tl.dot(value, grad.T)
        scale = factor
        if FP8:
            scale_q = tl.load(q_scale + bh * num_blocks + block_q)
            scale = factor * scale_q
            dp *= scale_q
        p = tl.exp2(qk * scale - lse_i[None, :])
        acc_v = tl.dot(p.to(grad.dtype), grad, acc_v)
        delta_i = tl.load(delta + stats + (block_q * BLOCK + offset))  # here, so that fewer values live at once
        if FP8:
            delta_i *= scale_q
        ds = p * (dp - delta_i[None, :])
        acc_k = tl.dot(ds.to(query.dtype), query, acc_k)

    offsets = ((token + lanes_k).to(tl.int64) * heads + head)[:, None] * D + channels[None, :]
    keep = (lanes_k < rows_left)[:, None]
    tl.store(dk + offsets, (acc_k * softmax_scale).to(dk.dtype.element_ty), mask=keep)
    tl.store(dv + offsets, acc_v.to(dv.dtype.element_ty), mask=keep)


def query_gradient(
    x: BackwardInputs,
    tables: DeviceTables,
    lists: BlockLists,
    fp8: bool,
    scale: float,
    config: PassConfig,
    dtype: torch.dtype,
) -> torch.Tensor:
    """dQ [B, L, H, D] in `dtype`. scale: of the softmax."""
    dq = torch.empty(x.q.shape, dtype=dtype, device=x.q.device)
    args = (tables.block_start, tables.block_len, tables.block_tile, lists.list_index, lists.list_count)
    groups, tiles, longest = lists.list_index.shape
    args += (*_sizes(x, tables), tiles, groups, longest, scale)
    rows = (config.own, config.step, config.step, config.own)
    constants = {"MASKED": tables.layout.uniform != tables.layout.block}
    _launch(backward_queries, x, rows, (x.k_scale, x.q_scale, x.k_mean, dq, *args), tables, fp8, config, constants)
    return dq


def key_gradients(
    x: BackwardInputs,
    tables: DeviceTables,
    query_blocks: tuple[torch.Tensor, torch.Tensor],
    fp8: bool,
    scale: float,
    config: PassConfig,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dK and dV [B, L, H, D] in `dtype`. query_blocks: of transpose_lists. scale: of the softmax."""
    dk, dv = (torch.empty(x.q.shape, dtype=dtype, device=x.q.device) for _ in range(2))
    index, count = query_blocks
    args = (tables.block_start, tables.block_len, index, count, *_sizes(x, tables), count.shape[0], scale)
    rows = (config.step, config.own, config.own, config.step)
    _launch(backward_keys, x, rows, (x.k_scale, x.q_scale, dk, dv, *args), tables, fp8, config, {})
    return dk, dv


def _sizes(x: BackwardInputs, tables: DeviceTables) -> tuple[int, int, int]:
    return x.q.shape[2], x.q.shape[1], tables.layout.num_blocks


def _launch(
    kernel: Any,
    x: BackwardInputs,
    rows: tuple[int, int, int, int],
    args: tuple,
    tables: DeviceTables,
    fp8: bool,
    config: PassConfig,
    constants: dict[str, Any],
) -> None:
    """rows: of a load of q, k, v and the output's gradient."""
    batch, tokens, heads, dim = x.q.shape
    sides = [
        TensorDescriptor.from_tensor(side.view(batch * tokens, heads * dim), [n, dim])
        for side, n in zip(x[:4], rows, strict=True)
    ]
    block = tables.layout.block
    constants = {"FP8": fp8, "D": dim, "BLOCK": block, "OWN": config.own, "STEP": config.step} | constants
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    options |= {"maxnreg": config.maxnreg} if config.maxnreg else {}
    grid = (tables.layout.num_blocks * (block // config.own), batch * heads)
    kernel[grid](*sides, x.lse, x.delta, *args, **constants, **options)


def attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    tables: DeviceTables,
    lists: BlockLists,
    fp8: bool,
    granularity: int = 1,
    config: BackwardConfig | None = None,
    query_blocks: tuple[torch.Tensor, torch.Tensor] | None = None,
    int8_qk: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v for the gradient of the output; all [B, L, H, D] in tile order, results contiguous and in
    q's dtype.

    out, lse (fp32 [B, H, L], natural logarithm): of the forward. D up to 128. fp8: the forward quantized q, k, v as
    quantize.py says, q and k in INT8 with int8_qk. fp32 inputs are multiplied in bf16. query_blocks: transpose_lists of
    the lists, if at hand.
    """
    dim = q.shape[-1]
    padded = next(d for d in HEAD_DIMS if d >= dim)
    if padded != dim:
        grad, q, k, v, out = (F.pad(x, (0, padded - dim)) for x in (grad, q, k, v, out))
    if config is None:
        capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else (9, 0)
        config = select_backward(tables.layout.block, capability)
    here = not q.is_cuda or q.device.index == torch.cuda.current_device()
    with nullcontext() if here else torch.cuda.device(q.device):
        query_blocks = query_blocks or transpose_lists(*lists, tables.block_tile)
        x = prepare_backward(grad, q, k, v, out, lse, tables, fp8, granularity, int8_qk)
        dq = query_gradient(x, tables, lists, fp8, dim**-0.5, config.dq, q.dtype)
        dk, dv = key_gradients(x, tables, query_blocks, fp8, dim**-0.5, config.dkv, q.dtype)
    if padded != dim:
        dq, dk, dv = (g[..., :dim].contiguous() for g in (dq, dk, dv))
    return dq, dk, dv
