"""Gradients of tile-sparse attention in fp64 by autograd, from masks built of token positions: independent of the code
under test.
"""

import math

import torch

from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import mask_from_lists

from .cases import Case, Laid

ROUNDED = {torch.bfloat16: 0.41 * 2.0**-8, torch.float16: 0.41 * 2.0**-11}  # rms relative error of a cast
SIGMAS = 6.0  # of a row: the errors of its 64 or 128 channels add up, so their norm scatters little


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


def of_case(case: Case, laid: Laid, dtype, fp8: bool, bias: float = 0.0, int8: bool = False):
    """(grad, q, k, v, out, lse) as a backward gets them, and the three true gradients at the de-quantized q, k, v."""
    q, k, v = case.inputs(dtype)
    random = torch.Generator().manual_seed(1)
    grad = torch.randn(q.shape, generator=random).to(dtype)
    k = k + (bias * torch.randn(k.shape[2:], generator=random)).to(dtype)
    seen = fake_quantize(q, k, v, laid.layout, case.granularity, int8_qk=int8) if fp8 else (q, k, v)
    out, lse, true = exact(*seen, grad, case_mask(case, laid))
    return (grad, q, k, v, out.to(dtype), lse.float()), true


def relative(got: torch.Tensor, true: torch.Tensor) -> float:
    """Relative L2 error of a gradient."""
    return float((got.double() - true).norm() / true.norm())


def check(got, true, bound: float, row_bound: float = math.inf) -> None:
    """Raises AssertionError unless all three are finite, and near as a whole, row by row and in magnitude."""
    for name, mine, exact_ in zip(("dq", "dk", "dv"), got, true, strict=True):
        error = relative(mine, exact_)
        rows = (mine.double() - exact_).norm(dim=-1) / exact_.norm(dim=-1).mean()
        ratio = float((mine.double() * exact_).sum() / exact_.square().sum())
        print(f"{name} relative {error:.2e} worst row {float(rows.max()):.2e} ratio - 1 {ratio - 1:.1e}")
        assert mine.isfinite().all(), name
        assert error < bound and rows.max() < row_bound and abs(ratio - 1) < bound / 3, name


def row_noise(given, mask, layout, granularity: int, fp8: bool, int8: bool = False):
    """fp64 [B, L, H], one for each gradient: the rms error of a row that rounding explains.

    Casts are the kernels': P and dS to 16 bit as they are multiplied, the saved output, each result, and with FP8 the
    de-quantized V. Their errors are independent but for that of delta = rowsum(dO * O), which a row's keys share (less
    the mean key, which the kernel takes out), and that of a value, which its queries share.
    """
    grad, q, k, v, out, lse = given
    u = ROUNDED[q.dtype]
    seen = fake_quantize(q, k, v, layout, granularity, int8_qk=int8) if fp8 else (q, k, v)
    q, k, v = (x.double().transpose(1, 2) for x in seen)
    do, o = grad.double().transpose(1, 2), out.double().transpose(1, 2)
    batch, heads, _, dim = q.shape
    groups = mask.shape[0]
    mask = mask.repeat(batch * heads // groups, 1, 1).view(batch, heads, *mask.shape[1:]) if groups > 1 else mask[None]
    scale = dim**-0.5
    p = torch.where(mask, (q @ k.mT * scale - lse.double()[..., None]).exp(), 0.0)
    delta = (do * o).sum(-1, keepdim=True)
    ds = p * (do @ v.mT - delta)
    of_delta = (do.square() * o.square()).sum(-1, keepdim=True)  # variances over u^2
    of_ds = ds.square()
    of_value = p.square() * (do.square() @ v.square().mT) if fp8 else torch.zeros_like(p)
    mean = k.mean(2, keepdim=True)
    k2, q2 = k.square().sum(-1, keepdim=True), q.square().sum(-1, keepdim=True)
    shared = of_delta * (p @ (k - mean)).square().sum(-1, keepdim=True)
    dq = scale**2 * ((of_ds + of_value) @ k2 + shared)
    dk = scale**2 * (of_ds + p.square() * of_delta).mT @ q2
    if fp8:  # of a value's channels, each with the vector that all of its queries make of it
        for c in range(dim):
            dk += (
                scale**2
                * v[..., c : c + 1].square()
                * (((p * do[..., c : c + 1]).mT @ q).square().sum(-1, keepdim=True))
            )
    dv = p.square().mT @ do.square().sum(-1, keepdim=True)
    results = (scale * ds @ k, scale * ds.mT @ q, p.mT @ do)
    found = (x + y.square().sum(-1, keepdim=True) for x, y in zip((dq, dk, dv), results, strict=True))
    return [u * x[..., 0].sqrt().transpose(1, 2) for x in found]


def check_rows(got, true, noise) -> None:
    """Raises AssertionError unless every row of every gradient is as near as rounding explains."""
    for name, mine, exact_, sigma in zip(("dq", "dk", "dv"), got, true, noise, strict=True):
        error = (mine.double() - exact_).norm(dim=-1)
        worst = float((error / sigma.clamp(min=1e-12))[error > 1e-9].max())
        print(f"{name} worst row {worst:.2f} sigma")
        assert worst < SIGMAS, name
