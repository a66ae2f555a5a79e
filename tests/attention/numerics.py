"""The numeric contract of an attention kernel, question (a): is it right, given its quantized inputs and its lists?

truth() computes in fp64, by its own code, what the kernel must give: once with P rounded as specified (reference.py)
and once with P exact. What P's rounding explains, `noise`, is the distance between the two. A score is what the tensor
core makes of it: on Hopper as tensor_core.py says, elsewhere exact. So on Hopper, and in the interpreter, a score is
known to fp32's rounding; another GPU may be off by SCORE_ERROR of a score's absolute products, and there check() allows
a share of the noise more. A P that lies that near to a rounding boundary falls to either side: that step moves the
row's LSE by up to `slack`, the row by up to `sway`. The rest does not loosen with FP8: the mean ratio catches a wrong
scale, rows catch a lost row, LSE catches lost or surplus keys.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fpsgen.attention.norm_rope import NormRope, apply_norm_rope
from fpsgen.attention.tiles import BlockLayout, TileLists

from .quantization import (
    dequantize_blocks,
    dequantize_channels,
    quantize_blocks,
    quantize_blocks_int8,
    quantize_channels,
)
from .tensor_core import product

RELATIVE = 1e-3  # relative L2, beyond NOISE_SHARE of what P's cast explains
NOISE_SHARE = {True: 0.1, False: 0.8}  # of noise, by whether the tensor core's sums are known
ROW = 2e-2  # per row, beyond ROW_NOISE times the noise
ROW_NOISE = 2.5
RATIO = 2e-3  # |<out, truth> / <truth, truth> - 1| per head
LSE_MAX = 5e-3
LSE_MEAN = 4e-4
SCORE_ERROR = 2.0**-13 / 32  # per channel, of sum |q||k|, where it is not known: 32 channels to an instruction
KNOWN_ERROR = 2.0**-20  # of a score's magnitude where it is: sums and scales in fp32
EXPONENTIAL = 2e-4  # of a score, base 2: what a cubic in place of an exponential may be off
HALF_STEP = 2.0**-9  # rounding of a bf16 output


@dataclass
class Truth:
    """fp64: out, exact [B, R, H, D] (P rounded, P exact), lse, slack, sway [B, H, R]; tokens [R] int64: the rows.

    known: what the tensor core makes of a score is.
    """

    out: torch.Tensor
    exact: torch.Tensor
    lse: torch.Tensor
    slack: torch.Tensor
    sway: torch.Tensor
    tokens: torch.Tensor
    known: bool


class Scores:
    """Scores of FP8 attention, through real FP8 casts (fake_quantize takes another way). inputs: q, k, v after them.
    int8: queries and keys in INT8, whose products every device sums up exactly.
    """

    def __init__(self, q, k, v, layout: BlockLayout, granularity: int, int8: bool) -> None:
        capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else None
        self.hopper, self.known = capability == (9, 0) and not int8, int8 or capability in (None, (9, 0))
        self._values, self._scales = [], []
        inputs = []
        for x in (q, k):
            values, scale = (quantize_blocks_int8 if int8 else quantize_blocks)(x, layout, granularity)
            self._values.append(values.transpose(1, 2))
            self._scales.append(scale.double()[:, :, layout.token_block.to(x.device)])
            inputs.append(dequantize_blocks(values, scale, layout))
        self.inputs = (*inputs, dequantize_channels(*quantize_channels(v)))

    def __call__(self, b: int, h: int, rows: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In base 2 [rows, keys], and by how much each may be off."""
        (q, k), (scale_q, scale_k) = self._values, self._scales
        query, key = q[b, h, rows].float(), k[b, h, keys].float()
        dim = query.shape[-1]
        scale = scale_q[b, h, rows][:, None] * scale_k[b, h, keys] * (dim**-0.5 / math.log(2))
        if self.hopper:
            score = product(*(F.pad(x, (0, -dim % 32)) for x in (query, key))).double() * scale
        else:
            score = query.double() @ key.double().T * scale
        if self.known:
            return score, score.abs() * KNOWN_ERROR + EXPONENTIAL
        return score, query.double().abs() @ key.double().abs().T * scale * (dim * SCORE_ERROR)


def truth(
    q, k, v, layout: BlockLayout, lists: TileLists, fp8: bool, granularity: int = 1, tiles=None, int8: bool = False
) -> Truth:
    """fp64 attention of q, k, v [B, L, H, D] for some query tiles (all by default). int8: see Scores."""
    scores = Scores(q, k, v, layout, granularity, int8) if fp8 else None
    q, k, v = (x.double().transpose(1, 2) for x in (scores.inputs if scores else (q, k, v)))
    batch, heads, _, dim = q.shape
    start = [0, *layout.tile_sizes.cumsum(0).tolist()]
    tiles = range(len(start) - 1) if tiles is None else tiles
    span = [torch.arange(start[u], start[u + 1], device=q.device) for u in range(len(start) - 1)]
    unit = [0, *layout.unit_sizes.cumsum(0).tolist()]
    outs, exacts, lses, slacks, sways = [], [], [], [], []
    groups = lists.counts.shape[0]
    for u in tiles:
        rows = q[:, :, span[u]]
        out = torch.zeros_like(rows)
        exact, lse = torch.zeros_like(rows), torch.full_like(rows[..., 0], -math.inf)
        slack, sway = torch.zeros_like(rows[..., 0]), torch.zeros_like(rows[..., 0])
        for g in range(groups):
            units = lists.indices[g, u, : int(lists.counts[g, u])].tolist()
            if not units:
                continue
            index = torch.cat([torch.arange(unit[j], unit[j + 1], device=q.device) for j in units])
            for b in range(batch):
                for h in range(heads):
                    if (b * heads + h) % groups != g:
                        continue
                    if scores:
                        score, error = scores(b, h, span[u], index)
                    else:
                        score, error = rows[b, h] @ k[b, h, index].T * (dim**-0.5 / math.log(2)), None
                    top = score.amax(1, keepdim=True)
                    weight = torch.exp2(score - top)
                    exact[b, h] = weight @ v[b, h, index] / weight.sum(1, keepdim=True)
                    if error is not None:
                        top = top.ceil()
                        weight, low, high = (
                            torch.exp2((x - top).clamp(max=0)).mul(448).float().to(torch.float8_e4m3fn).double() / 448
                            for x in (score, score - error, score + error)
                        )
                        slack[b, h] = (high.sum(1) / low.sum(1)).log()
                    out[b, h] = weight @ v[b, h, index] / weight.sum(1, keepdim=True)
                    if error is not None:
                        apart = torch.cdist(out[b, h], v[b, h, index])
                        sway[b, h] = ((high - low) * apart).sum(1) / weight.sum(1)
                    lse[b, h] = (weight.sum(1).log2() + top[:, 0]) * math.log(2)
        outs.append(out)
        exacts.append(exact)
        lses.append(lse)
        slacks.append(slack)
        sways.append(sway)
    out, exact = (torch.cat(x, 2).transpose(1, 2) for x in (outs, exacts))
    tokens = torch.cat([span[u] for u in tiles])
    return Truth(out, exact, *(torch.cat(x, 2) for x in (lses, slacks, sways)), tokens, not scores or scores.known)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def measure(out: torch.Tensor, lse: torch.Tensor, true: Truth) -> dict[str, float]:
    """Every figure check() judges, from a kernel's out [B, L, H, D] and lse [B, H, L] (all rows, tile order)."""
    got, height = out.double()[:, true.tokens], lse.double()[:, :, true.tokens]
    empty = true.lse == -math.inf
    diff = (got - true.out).norm(dim=-1)  # [B, R, H]
    size = true.out.norm(dim=-1)
    typical = size.square().mean().sqrt()
    noise = relative(true.out, true.exact)
    own_noise = (true.out - true.exact).norm(dim=-1)
    step = HALF_STEP if out.dtype == torch.bfloat16 else 0.0
    allowed = ROW * size + ROW_NOISE * torch.maximum(own_noise, noise * typical) + step * size + 1e-30
    allowed += true.sway.transpose(1, 2) if true.known else 0.0
    dot = (got * true.out).sum((1, 3))
    ratio = dot / true.out.square().sum((1, 3)).clamp(min=1e-300)
    ratio = torch.where(size.sum(1) > 0, ratio, 1.0)  # [B, H]
    gap = torch.where(empty, 0.0, height - true.lse)
    mean_slack = true.slack.square().mean(-1).div(gap.shape[-1]).sqrt()
    rows_empty = empty.transpose(1, 2)  # [B, R, H]
    return {
        "finite": float(got.isfinite().all() and height[~empty].isfinite().all()),
        "empty_rows_exact": float((got[rows_empty] == 0).all() and (height[empty] == -math.inf).all()),
        "relative": relative(got, true.out),
        "noise": noise,
        "worst_row": float((diff / allowed).max()),
        "ratio": float((ratio - 1).abs().max()),
        "lse_max": float((gap.abs() - true.slack).max()),
        "lse_mean": float((gap.mean(-1).abs() - mean_slack).max()),
        "half_step": step,
        "share": NOISE_SHARE[true.known],
    }


def faults(figures: dict[str, float]) -> list[str]:
    """Bounds that the figures break, by name; an empty list means the kernel is right."""
    bounds = {
        "relative": RELATIVE + figures["share"] * figures["noise"] + figures["half_step"],
        "worst_row": 1.0,
        "ratio": RATIO,
        "lse_max": LSE_MAX,
        "lse_mean": LSE_MEAN,
    }
    broken = [name for name in ("finite", "empty_rows_exact") if figures[name] != 1.0]
    return broken + [f"{n} {figures[n]:.2e} > {bound:.2e}" for n, bound in bounds.items() if not figures[n] <= bound]


def check(out: torch.Tensor, lse: torch.Tensor, true: Truth, label: str = "") -> dict[str, float]:
    """Raises AssertionError naming every broken bound; returns the figures."""
    figures = measure(out, lse, true)
    broken = faults(figures)
    assert not broken, f"{label}: {'; '.join(broken)}"
    return figures


def half_check(out: torch.Tensor, lse: torch.Tensor, true: Truth, label: str = "") -> None:
    """The contract of 16-bit products: P and the output are rounded to 8 or 11 bits. Raises AssertionError."""
    empty = (true.lse == -math.inf).transpose(1, 2)
    error = float((out.double() - true.out).norm() / true.out.norm().clamp(min=1e-300))
    finite = true.lse.isfinite()
    step = true.lse[finite].abs() * 2.0**-22  # of LSEs in the thousands, which fp32 holds no better
    gap = float(((lse.double() - true.lse)[finite].abs() - step).max())
    print(label, f"relative {error:.2e} lse {gap:.2e}")
    assert out.isfinite().all() and error < 5e-3 and gap < 1e-3
    assert torch.equal(lse == -math.inf, true.lse == -math.inf) and (out[empty] == 0).all()
    rows = (out.double() - true.out).norm(dim=-1) / true.out.norm(dim=-1).clamp(min=1e-3)
    assert rows[~empty].max() < 3e-2


def check_prepared(ready, q, k, v, layout: BlockLayout, granularity: int, permuted: bool, int8: bool = False) -> None:
    """Raises AssertionError unless prepared inputs equal the torch rule to the bit, with zeros in the padding.

    permuted: V's keys lie in the order that the Hopper kernel reads. int8: queries and keys are in INT8.
    """
    token = layout.rows.flatten()
    real = (torch.arange(layout.block) < layout.block_len[:, None]).flatten()
    quantize = quantize_blocks_int8 if int8 else quantize_blocks
    values = ready.v.float()
    if permuted:
        values = values.unflatten(3, (-1, 4, 2, 2)).transpose(4, 5).flatten(3)
    for got, scale, (wanted, wanted_scale) in (
        (ready.q, ready.q_scale, quantize(q, layout, granularity)),
        (ready.k, ready.k_scale, quantize(k, layout, granularity)),
        (values.transpose(2, 3), ready.v_scale, quantize_channels(v)),
    ):
        assert torch.equal(scale, wanted_scale)
        assert torch.equal(got.float()[:, :, real], wanted.float().transpose(1, 2)[:, :, token[real]])
        assert (got.float()[:, :, ~real] == 0).all()


def check_norm_rope(ready, q, k, layout: BlockLayout, granularity: int, norm_rope: NormRope, k_mean=None) -> None:
    """Raises AssertionError unless prepared queries and keys are those that NormRope asks for, keys less k_mean
    [B, H, D]: every value the nearest in E4M3 or INT8, but for what fp32 rounds on the way.
    """
    int8 = ready.q.dtype == torch.int8
    quantize = quantize_blocks_int8 if int8 else quantize_blocks
    real = (torch.arange(layout.block) < layout.block_len.cpu()[:, None]).flatten()
    token = layout.rows.flatten()[real]
    pairs = (
        (ready.q, ready.q_scale, q, norm_rope.norm_q, None),
        (ready.k, ready.k_scale, k, norm_rope.norm_k, k_mean),
    )
    for got, scale, x, weight, mean in pairs:
        exact = apply_norm_rope(x.cpu().double(), weight.cpu(), norm_rope.table.cpu(), norm_rope.eps)
        exact = exact if mean is None else exact - mean.cpu().double()[:, None]
        wanted_scale = quantize(exact.float(), layout, granularity)[1]
        torch.testing.assert_close(scale.cpu(), wanted_scale, rtol=1e-5, atol=0)
        scale = scale.cpu().double().repeat_interleave(layout.block, 2)[..., None][:, :, real]
        exact = exact.transpose(1, 2)[:, :, token]
        off = (got.cpu().double()[:, :, real] * scale - exact).abs()
        step = 0.5 * scale if int8 else torch.maximum(exact.abs() * 2.0**-4, scale * 2.0**-10)
        assert (off <= 1.0001 * step + (1e-3 if int8 else 1e-5) * scale).all()
        assert (got.cpu().float()[:, :, ~real] == 0).all()
