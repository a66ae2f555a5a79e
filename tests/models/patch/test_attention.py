"""The self-attention patch: whose kernel runs, and whose norms."""

from __future__ import annotations

import torch
import wan_cases as case

from fpsgen import apply
from fpsgen.attention import AttentionPlan


def test_the_backend_that_was_chosen_serves_dense_layers(transformer):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        stock = case.forward(transformer)
        handle = apply(transformer, case.mixed(case.DENSE, case.FP8))
        transformer.set_attention_backend("_native_math")
        assert case.difference(case.forward(transformer, timestep=torch.tensor([900, 900])), stock) < 10
        case.forward(transformer, timestep=torch.tensor([100, 100]))
        assert handle.report()["kernels"] == {"_native_math": 3, "cpu": 3}
        handle.remove()
        assert transformer.blocks[0].attn1.processor._attention_backend == AttentionBackendName._NATIVE_MATH
    finally:
        _AttentionBackendRegistry.set_active_backend(before)


def test_a_backend_of_a_context_or_of_the_environment_serves_dense_layers(transformer, monkeypatch):
    """attention_backend("...") and DIFFUSERS_ATTN_BACKEND set the backend of models that have none of their own."""
    from diffusers.models import attention_dispatch
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend

    calls = []
    right = attention_dispatch._AttentionBackendRegistry._backends[AttentionBackendName._NATIVE_MATH]
    counting = lambda *args, **kwargs: calls.append(1) or right(*args, **kwargs)  # noqa: E731
    handle = apply(transformer, case.mixed(case.DENSE, case.FP8))
    high, low = {"timestep": torch.tensor([900, 900])}, {"timestep": torch.tensor([100, 100])}
    stock = case.forward(transformer, **high)
    assert handle.report()["kernels"] == {"sdpa": 3} and handle.report()["attention_backend"] is None
    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName._NATIVE_MATH, counting)
    with attention_backend("_native_math"):
        handle.clear_report()
        assert case.difference(case.forward(transformer, **high), stock) < 1e-3
        assert len(calls) == 6  # self-attention and cross-attention of three layers
        case.forward(transformer, **low)
    report = handle.report()
    assert report["kernels"] == {"_native_math": 3, "cpu": 3} and report["attention_backend"] == "_native_math"
    assert "_native_math" in handle.summary()
    handle.clear_report()
    case.forward(transformer, **high)
    assert handle.report()["kernels"] == {"sdpa": 3} and handle.report()["attention_backend"] is None
    # the environment variable is read when diffusers is imported, into the same place
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName("_native_math"))
    handle.clear_report()
    case.forward(transformer, **high)
    assert handle.report()["kernels"] == {"_native_math": 3}


def test_a_model_with_a_backend_of_its_own_does_not_follow_a_context(transformer):
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    handle = apply(transformer, case.one(case.DENSE))
    for block in transformer.blocks[:2]:
        block.attn1.processor._attention_backend = AttentionBackendName.NATIVE
    with attention_backend("_native_math"):
        case.forward(transformer)
    (step,) = handle.report()["steps"]
    assert [(g["layers"], g["kernel"]) for g in step["layers"]] == [([0, 1], "native"), ([2], "_native_math")]


def test_hooked_norms_are_called(transformer, monkeypatch):
    """Where attention norms and rotates on its own, it takes the norms' weights: only if they are no more than that."""
    from fpsgen.models.patch import attention as attention_module

    monkeypatch.setattr(AttentionPlan, "fuses_norm_rope", lambda plan, device, head_dim: plan.fp8)
    schedule = case.one(case.FP8)
    fused = []
    right = attention_module.attend

    def attend(query, key, value, plan, **others):
        fused.append(others["norm_rope"] is not None)
        return right(query, key, value, plan, **others)

    monkeypatch.setattr(attention_module, "attend", attend)
    attn = transformer.blocks[1].attn1
    with apply(transformer, schedule):
        plain = case.forward(transformer)
        assert fused == [True] * 3
        halve = lambda module, args, *output: 0.5 * output[0] if output else (0.5 * args[0],)  # noqa: E731
        for install in (
            lambda: attn.norm_q.register_forward_hook(halve),
            lambda: attn.norm_k.register_forward_hook(halve),
        ):
            hook = install()
            fused.clear()
            assert case.difference(case.forward(transformer), plain) > 1e-3 and fused == [False] * 3
            hook.remove()
        with_pre_hook = attn.norm_q.register_forward_pre_hook(halve)
        assert not attention_module.plain_norms(attn)
        with_pre_hook.remove()
        attn.norm_q.forward = lambda x: 0.5 * torch.nn.RMSNorm.forward(attn.norm_q, x)
        assert case.difference(case.forward(transformer), plain) > 1e-3
        del attn.norm_q.forward
        fused.clear()
        assert torch.equal(case.forward(transformer), plain) and fused == [True] * 3


def test_replaced_norms_are_called(transformer):
    from fpsgen.models.patch.attention import plain_norms

    attn = transformer.blocks[0].attn1
    assert plain_norms(attn)

    class Centred(torch.nn.RMSNorm):
        pass

    right = attn.norm_k
    attn.norm_k = Centred(24)
    assert not plain_norms(attn)
    attn.norm_k = torch.nn.RMSNorm(24, eps=attn.norm_q.eps, elementwise_affine=False)
    assert not plain_norms(attn)
    attn.norm_k = torch.nn.RMSNorm(24, eps=10 * attn.norm_q.eps)
    assert not plain_norms(attn)
    attn.norm_k = right
    assert plain_norms(attn)
