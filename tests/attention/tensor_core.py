"""What Hopper's tensor core makes of a product of E4M3 matrices, to the bit.

Found from products of an H100 (drawn, all positive, with one large channel, of a trained model's layers), of which
tensor_core.npz keeps a part. An instruction adds 32 products to the sum so far: all 33 terms are cut, towards zero, to
13 bits behind the largest exponent among them, where a product's exponent is that of its factors together, even if
their mantissas make 2 or more. What the terms add up to is cut to 13 bits behind its own exponent.
"""

import torch

BITS = 13
STEP = 32
CHUNK = 1 << 26  # products at a time


def _exponent(x: torch.Tensor) -> torch.Tensor:
    """Of the leading bit, -1000 of zero."""
    return torch.where(x == 0, -1000, torch.frexp(x).exponent - 1)


def _power(exponent: torch.Tensor) -> torch.Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent.clamp(-120, 120))


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T, fp32 [M, N], of a [M, K] and b [N, K] that hold finite E4M3 values; K a multiple of 32."""
    a, b = a.float(), b.float()
    rows = max(1, CHUNK // (a.shape[0] * STEP))
    return torch.cat([_product(a, part) for part in b.split(rows)], 1)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    for first in range(0, a.shape[1], STEP):
        x, y = (m[:, first : first + STEP] for m in (a, b))
        terms = x[:, None] * y
        exponent = _exponent(x).clamp(min=-6)[:, None] + _exponent(y).clamp(min=-6)  # subnormals have that of 2^-6
        largest = torch.where(terms == 0, -1000, exponent).amax(-1)
        largest = torch.maximum(largest, _exponent(total)).clamp(min=-100)
        unit = _power(BITS - largest)
        total = ((terms * unit[..., None]).trunc().sum(-1) + (total * unit).trunc()) / unit  # whole numbers below 2^24
        unit = _power(BITS - _exponent(total).clamp(min=-100))
        total = (total * unit).trunc() / unit
    return total
