"""Patched transformers in training: gradients, checkpointing, and the profile that a sampled noise level selects."""

from __future__ import annotations

import pytest
import torch
import wan_cases as case
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from tiny import tiny_transformer

from fpsgen import apply
from fpsgen.errors import FpsgenError


def fresh(checkpointing: bool = False, masks=None):
    torch.manual_seed(0)
    transformer = tiny_transformer(layers=3).train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    if masks is not None:
        for block in transformer.blocks:
            block.attn1.set_processor(case.MaskedProcessor(masks))
    return transformer


def loss(transformer, seed: int = 0, **changes) -> torch.Tensor:
    return transformer(**case.inputs(seed) | changes, return_dict=False)[0].square().mean()


def gradients(transformer, value: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, list(transformer.parameters())))


def worst(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Largest relative difference over parameters."""
    return max(float((x - y).norm() / (y.norm() + 1e-6)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("profile", "masked"), [(case.DENSE, False), (case.TILED, False), (case.SPARSE, True)])
def test_gradients_equal_the_oracle(profile, masked, checkpointing):
    stock = fresh(masks=case.window_mask(case.RAGGED, (1, 1, 3)) if masked else None)
    expected = gradients(stock, loss(stock))
    ours = fresh(checkpointing)
    with apply(ours, case.one(profile)) as handle, handle.fixed_sigma(0.5):
        found = gradients(ours, loss(ours))
    assert worst(found, expected) < 1e-4
    if masked:
        unmasked = fresh()
        assert worst(gradients(unmasked, loss(unmasked)), expected) > 1e-2


@pytest.mark.parametrize("profile", [case.FP8, case.SPARSE], ids=lambda p: p.name)
def test_checkpointing_recomputes_by_the_plan_of_its_own_forward(profile):
    """Two forwards of different profiles, then their gradients: each recomputation must see its own plan and order."""
    results = []
    for checkpointing in (False, True):
        transformer = fresh(checkpointing)
        handle = apply(transformer, case.mixed(profile, case.OTHER))
        with handle.fixed_sigma(0.9):
            first = loss(transformer, 1)
        with handle.fixed_sigma(0.1):
            second = loss(transformer, 2)
        results.append(gradients(transformer, first) + gradients(transformer, second))
    assert worst(results[1], results[0]) < 1e-5


def test_gradients_flow_through_fp8():
    transformer = fresh(True)
    with apply(transformer, case.one(case.FP8)) as handle, handle.fixed_sigma(0.3):
        found = gradients(transformer, loss(transformer))
    assert all(gradient.isfinite().all() for gradient in found)
    named = dict(zip((name for name, _ in transformer.named_parameters()), found, strict=True))
    assert all(float(named[f"blocks.0.attn1.to_{x}.weight"].norm()) > 1e-6 for x in "qkv")


@pytest.mark.parametrize("profile", [case.TILED, case.SPARSE, case.FP8], ids=lambda p: p.name)
def test_autocast(profile, monkeypatch):
    """Norms give fp32 and projections bf16 there; attention must get one dtype."""
    from fpsgen.models.patch import attention as processor

    seen = set()
    right = processor.attend
    monkeypatch.setattr(
        processor,
        "attend",
        lambda q, k, v, plan, **others: seen.add((q.dtype, k.dtype, v.dtype)) or right(q, k, v, plan, **others),
    )
    transformer = fresh(True)
    exact = loss(fresh())
    with apply(transformer, case.one(profile)) as handle, handle.fixed_sigma(0.5):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(transformer)
        value.backward()
    assert seen == {(torch.bfloat16,) * 3}
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in transformer.parameters())
    if profile is case.TILED:
        assert abs(float(value.detach() / exact.detach()) - 1) < 0.05


def test_the_sampled_noise_level_selects_the_profile():
    transformer = fresh()
    handle = apply(transformer, case.mixed(case.SPARSE, case.OTHER))
    with torch.no_grad(), handle.fixed_sigma(0.9):
        high = loss(transformer)
        with handle.fixed_sigma(0.1):
            low = loss(transformer)
        assert torch.equal(loss(transformer), high)
    assert not torch.equal(low, high)
    with torch.no_grad():  # without at(): the timestep says it
        assert torch.equal(loss(transformer, timestep=torch.tensor([500, 500])), loss_by(transformer, handle, 0.5))
    with pytest.raises(ValueError, match="sigma is 7"), handle.fixed_sigma(7):
        pass


def loss_by(transformer, handle, sigma: float) -> torch.Tensor:
    with handle.fixed_sigma(sigma):
        return loss(transformer, timestep=torch.tensor([500, 500]))


def test_a_batch_of_one_profile_only():
    transformer = fresh()
    handle = apply(transformer, case.mixed(case.SPARSE, case.OTHER))
    both = torch.tensor([900, 100])
    with pytest.raises(FpsgenError, match="one batch"):
        loss(transformer, timestep=both)
    with handle.fixed_sigma(0.9):
        assert loss(transformer, timestep=both).isfinite()


def test_the_report_of_a_long_training_stays_small():
    transformer = fresh()
    handle = apply(transformer, case.mixed(case.SPARSE, case.OTHER))
    with torch.no_grad():
        for i in range(20):
            with handle.fixed_sigma(i / 19):
                loss(transformer)
    steps = handle.report()["steps"]
    assert [(step["index"], step["profile"]) for step in steps] == [(None, "other"), (None, "sparse")]
    assert sum(step["calls"] for step in steps) == 20 * 3


def test_saved_weights_are_those_of_a_stock_model(tmp_path):
    transformer = fresh()
    keys = list(transformer.state_dict())
    with apply(transformer, case.one(case.FP8)):
        assert list(transformer.state_dict()) == keys
        transformer.save_pretrained(tmp_path)
    again = type(transformer).from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), transformer.state_dict().values(), strict=True)
    )
    assert all(type(block.attn1.processor) is WanAttnProcessor for block in again.blocks)
