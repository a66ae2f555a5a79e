"""The head's norm and modulation in one pass: diffusers' numbers, once rounded, and where it stays diffusers' own."""

import accelerated as case
import pytest
import torch

from fpsgen import apply
from fpsgen.models.patch import head
from fpsgen.models.patch.block import FusedPatch
from fpsgen.models.patch.head import HeadNorm, PendingNorm, install_head

BOUND = 1e-5


@pytest.fixture
def transformer():
    return case.transformer()


@pytest.fixture
def calls(monkeypatch):
    """Arguments of the fused pass, which runs as it is."""
    calls, real = [], head.norm_rows
    monkeypatch.setattr(head, "norm_rows", lambda *args: calls.append(args) or real(*args))
    return calls


def error(a, b):
    return float((a - b).norm() / b.norm())


def headless(made, given=None):
    undo = install_head(made, anywhere=True)
    out = case.forward(made, given)
    undo()
    return out


@pytest.mark.parametrize("kind", ["one level", "one a sample", "one a token"])
def test_equals_diffusers_and_is_undone(transformer, calls, kind):
    given = case.inputs(1 if kind == "one level" else 2)
    if kind == "one a token":
        given["timestep"] = torch.linspace(100, 900, 2 * 3 * 4 * 4).view(2, -1)
    before = case.forward(transformer, given)
    assert not calls
    assert error(headless(transformer, given), before) < BOUND and len(calls) == 1
    assert torch.equal(case.forward(transformer, given), before) and type(transformer.norm_out) is not HeadNorm
    assert "anywhere" not in vars(transformer.norm_out)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x, mul, add, *rest: (x, add, mul, *rest),
        lambda x, mul, add, *rest: (x, mul.flip(0), add, *rest),
        lambda x, mul, add, eps, one, fp8: (x, mul, add, eps, True, fp8),
        lambda x, mul, add, eps, one, fp8: (x, mul, add, 0.1, one, fp8),
    ],
)
def test_planted_mistakes_show(transformer, monkeypatch, mistake):
    before, real = case.forward(transformer), head.norm_rows
    monkeypatch.setattr(head, "norm_rows", lambda *args: real(*mistake(*args)))
    assert error(headless(transformer), before) > 100 * BOUND


def test_16_bit_is_rounded_once(transformer):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 64, generator=random).bfloat16()
    shift, scale = torch.randn(2, 2, 64, generator=random).chunk(2, dim=1)
    with torch.no_grad():
        wanted = (transformer.norm_out(x.float()) * (1 + scale) + shift).type_as(x)
        pending = PendingNorm(transformer.norm_out.eps) * (1 + scale) + shift
        got = pending.type_as(x)
    assert got.dtype == x.dtype and error(got.float(), wanted.float()) < 1e-3
    assert (got != wanted).float().mean() < 0.01


def test_where_it_stays(transformer, calls):
    with apply(transformer, case.DENSE, linear="bf16", patches=[FusedPatch(anywhere=True)], exact=True):
        assert type(transformer.norm_out) is HeadNorm
        case.forward(transformer)
        assert len(calls) == 1
        transformer(**case.inputs(), return_dict=False)  # with a gradient
        with torch.autocast("cpu", torch.bfloat16):
            case.forward(transformer)
        hook = transformer.norm_out.register_forward_hook(lambda module, args, out: out * 1)
        case.forward(transformer)
        hook.remove()
        torch._dynamo.reset()
        with torch.no_grad():
            x = torch.randn(2, 48, 64)
            assert isinstance(torch.compile(transformer.norm_out, backend="eager")(x), torch.Tensor)
        assert len(calls) == 1
    with apply(transformer, case.DENSE, linear="bf16", exact=True):
        assert type(transformer.norm_out) is not HeadNorm
    transformer.norm_out.register_forward_hook(lambda *_: None)
    with apply(transformer, case.DENSE, linear="bf16"):
        case.forward(transformer)
    assert len(calls) == 1
