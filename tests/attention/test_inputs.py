"""Inputs that are known to break quantized attention, through the kernel in the interpreter, against the contract.

What E4M3 loses on them is in the truth that the kernel is held to (numerics.py); here no kernel may lose more.
"""

import math

import pytest
import torch

from .cases import Case
from .numerics import check, truth

pytestmark = [
    pytest.mark.usefixtures("interpreted_kernels"),
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered"),
]
CASE = Case("inputs", (5, 6, 7), (2, 4, 4), (3, 1, 3), heads=2)
TILE = slice(64, 96)  # within the tokens of a tile


def _at(x: torch.Tensor, place, factor: float) -> torch.Tensor:
    x = x.clone()
    x[place] *= factor
    return x


def _sink(q: torch.Tensor, k: torch.Tensor, token: int) -> torch.Tensor:
    """One key along the queries' mean direction: every row's weight goes there."""
    k = k.clone()
    k[:, token] = 20 * q.abs().mean()
    return k


CLASSES = {
    "V far from zero": lambda q, k, v: (q, k, v + 10),
    "V constant": lambda q, k, v: (q, k, torch.full_like(v, -3.0)),
    "K with a channel's bias": lambda q, k, v: (q, k + 10 * (torch.arange(64) == 5), v),
    "Q and K with a large channel": lambda q, k, v: (_at(q, (..., 3), 30.0), _at(k, (..., 3), 30.0), v),
    **{
        f"K with a token x{n}": lambda q, k, v, n=n: (q, _at(k, (slice(None), 70), float(n)), v)
        for n in (10, 100, 1000)
    },
    **{f"V with a token x{n}": lambda q, k, v, n=n: (q, k, _at(v, (slice(None), 70), float(n))) for n in (10, 1000)},
    "a sink first": lambda q, k, v: (q.abs(), _sink(q, k, 0), v),
    "a sink last": lambda q, k, v: (q.abs(), _sink(q, k, -1), v),
    "peaked logits": lambda q, k, v: (q * 6, k * 6, v),
    "flat logits": lambda q, k, v: (q * 1e-8, k, v),
    "small values": lambda q, k, v: (q, k, v * 1e-8),
    "large values": lambda q, k, v: (q, k, v * 1e30),
    "subnormal values": lambda q, k, v: (q, k, v * 1e-40),
    "a tile of zero keys": lambda q, k, v: (q, _at(k, (slice(None), TILE), 0.0), v),
    "a tile of zero queries": lambda q, k, v: (_at(q, (slice(None), TILE), -0.0), k, v),
    "constant rows": lambda q, k, v: (torch.ones_like(q), torch.ones_like(k), v),
}


def run(inputs):
    from fpsgen.attention.kernels import attention_triton

    at = CASE.lay()
    out = torch.full(inputs[0].shape, math.nan)
    lse = torch.full((1, CASE.heads, inputs[0].shape[1]), math.nan)
    return at, attention_triton(*inputs, at, True, 1, None, out, lse)


@pytest.mark.parametrize("name", CLASSES)
def test_the_contract_holds(name):
    inputs = CLASSES[name](*CASE.inputs())
    at, (out, lse) = run(inputs)
    print(name, check(out, lse, truth(*inputs, at.layout, at.lists, True), name))


@pytest.mark.parametrize("which", ["values", "all"])
def test_zeros_give_zeros(which):
    q, k, v = CASE.inputs()
    inputs = (q, k, v * 0) if which == "values" else (q * 0, k * 0, v * 0)
    at, (out, lse) = run(inputs)
    assert (out == 0).all()
    if which == "all":  # every key weighs the same: LSE is the logarithm of a row's number of keys
        keys = torch.tensor(
            [
                sum(int(at.block_len[b]) for b in row[:n])
                for row, n in zip(at.list_index[0], at.list_count[0], strict=True)
            ]
        )
        wanted = keys.float().log()[at.block_tile[at.layout.token_block.long()].long()]
        torch.testing.assert_close(lse[0], wanted.expand(2, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_where_it_belongs(bad):
    """In V: one channel of the rows that see the key; in K: rows that see its block. Nothing else."""
    q, k, v = CASE.inputs()
    at = CASE.lay()
    clean, _ = run((q, k, v))[1]
    spoilt = v.clone()
    spoilt[0, 70, 1, 5] = bad
    _, (out, lse) = run((q, k, spoilt))
    rest = torch.ones_like(out, dtype=torch.bool)
    rest[:, :, 1, 5] = False
    assert out[0, :, 1, 5].isfinite().logical_not().any() and lse.isfinite().all()
    assert torch.equal(out[rest], clean[rest])
    spoilt = k.clone()
    spoilt[0, 70, 1, 5] = bad
    _, (out, _) = run((q, spoilt, v))
    seen = out[0, :, 1].isfinite().logical_not().any(-1)
    own = int(at.layout.token_block[70])
    tiles = [
        u for u in range(at.list_count.shape[1]) if own in at.list_index[0, u, : int(at.list_count[0, u])].tolist()
    ]
    wanted = torch.isin(at.block_tile[at.layout.token_block.long()], torch.tensor(tiles))
    assert torch.equal(seen, wanted) and torch.equal(out[:, ~seen], clean[:, ~seen])
    assert torch.equal(out[:, :, 0], clean[:, :, 0])
