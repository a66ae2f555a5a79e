"""Gradients of tile-sparse attention in fp64 by autograd, from masks built of token positions: independent of the code
under test.
"""

import math

import torch

from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import mask_from_lists

from .cases import Case, Laid


def window_mask(grid, tile, window) -> torch.Tensor:
    """bool [L, L] in raster order: whether the key's tile lies in the window of the query's tile, in every axis."""
    seen = torch.ones(1, 1, dtype=torch.bool)
    for length, side, size in zip(grid, tile, window, strict=True):
        tiles = -(-length // side)
        size = min(size, tiles)
        axis = torch.zeros(length, length, dtype=torch.bool)
        for i in range(length):
            low = min(max(i // side - size // 2, 0), tiles - size)
            axis[i, low * side : (low + size) * side] = True
        seen = torch.kron(seen.int(), axis.int()).bool()
    return seen


def case_mask(case: Case, laid: Laid) -> torch.Tensor:
    """bool [G, L, L] in tile order."""
    if isinstance(case.lists, tuple) and case.block is None and not case.prefix and not case.suffix:
        return window_mask(case.grid, case.tile, case.lists)[laid.tables.order][:, laid.tables.order][None]
    return mask_from_lists(laid.tile_lists, laid.layout)


def exact(q, k, v, grad, mask):
    """out fp64 [B, L, H, D], lse fp64 [B, H, L] and the three gradients, of softmax attention under mask [G, L, L].

    Rows without a key: out 0, LSE -inf, no gradient.
    """
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    batch, _, heads, dim = q.shape
    score = torch.einsum("blhd,bshd->bhls", q, k) * dim**-0.5
    groups = mask.shape[0]
    mask = mask.repeat(batch * heads // groups, 1, 1).view(batch, heads, *mask.shape[1:]) if groups > 1 else mask[None]
    empty = ~mask.any(-1, keepdim=True)
    score = score.masked_fill(~mask, -math.inf)
    p = torch.where(empty, 0.0, score).softmax(-1) * ~empty
    out = torch.einsum("bhls,bshd->blhd", p, v)
    grads = torch.autograd.grad(out, (q, k, v), grad.double())
    return out.detach(), score.logsumexp(-1).detach(), grads


def of_case(case: Case, laid: Laid, dtype, fp8: bool, bias: float = 0.0):
    """(grad, q, k, v, out, lse) as a backward gets them, and the three true gradients at the de-quantized q, k, v."""
    q, k, v = case.inputs(dtype)
    random = torch.Generator().manual_seed(1)
    grad = torch.randn(q.shape, generator=random).to(dtype)
    k = k + (bias * torch.randn(k.shape[2:], generator=random)).to(dtype)
    seen = fake_quantize(q, k, v, laid.layout, case.granularity) if fp8 else (q, k, v)
    out, lse, true = exact(*seen, grad, case_mask(case, laid))
    return (grad, q, k, v, out.to(dtype), lse.float()), true


def relative(got: torch.Tensor, true: torch.Tensor) -> float:
    """Relative L2 error of a gradient."""
    return float((got.double() - true).norm() / true.norm())


def check(got, true, bound: float, row_bound: float) -> None:
    """Raises AssertionError unless all three are finite, and near as a whole, row by row and in magnitude."""
    for name, mine, exact_ in zip(("dq", "dk", "dv"), got, true, strict=True):
        error = relative(mine, exact_)
        rows = (mine.double() - exact_).norm(dim=-1) / exact_.norm(dim=-1).mean()
        ratio = float((mine.double() * exact_).sum() / exact_.square().sum())
        print(f"{name} relative {error:.2e} worst row {float(rows.max()):.2e} ratio - 1 {ratio - 1:.1e}")
        assert mine.isfinite().all(), name
        assert error < bound and rows.max() < row_bound and abs(ratio - 1) < bound / 3, name
