"""Attention of others, called as they ship it, to compare with. What is not installed is named, never guessed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from fpsgen.attention.plan import AttentionPlan
from fpsgen.models.patch.backend import flash_attention_3

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def baselines(device: torch.device) -> tuple[dict[str, Attention], dict[str, str]]:
    """(name to function of q, k, v [B, L, H, D] in bf16, name to the reason why it is not there)."""
    if device.type != "cuda":
        return {"sdpa": _sdpa}, {}
    from torch.nn.attention import SDPBackend

    found: dict[str, Attention] = {
        "sdpa-cudnn": partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION),
        "sdpa-flash": partial(_sdpa, backend=SDPBackend.FLASH_ATTENTION),
    }
    missing: dict[str, str] = {}
    function = flash_attention_3()
    if function is None:
        missing["fa3"] = "not installed (pip install fa3-fwd, or FlashAttention's hopper folder)"
    else:
        found["fa3-bf16"] = lambda q, k, v: _first(function(q, k, v))
        found["fa3-fp8"] = lambda q, k, v: _first(_fa3_fp8(function, q, k, v))
    for name, original in {"sageattention": sageattention(), "comfy-int8": _comfy_int8(device)}.items():
        if original is None:
            missing[name] = f"not installed (pip install {_PACKAGES[name]})"
        else:
            found[name] = original
    return found, missing


_PACKAGES = {"sageattention": "sageattention", "comfy-int8": "comfy-kitchen"}


def sageattention() -> Attention | None:
    """The authors' package, version 1 on PyPI: Q and K in INT8 per block, P.V in FP16. None where it is missing."""
    try:
        original = import_module("sageattention").sageattn
    except (ImportError, AttributeError):
        return None
    return lambda q, k, v: original(q, k.clone(), v, tensor_layout="NHD")  # it takes K's mean off in place


def _comfy_int8(device: torch.device) -> Attention | None:
    """comfy-kitchen's attention with Q, K, V and P in INT8, Q and K rotated by a Hadamard matrix."""
    try:
        module = import_module("comfy_kitchen")
        if not module.int8_attention_is_available(device):
            return None
    except (ImportError, AttributeError):
        return None
    return lambda q, k, v: module.int8_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: Any = None) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _fa3_fp8(function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    """One scale per head; the casts are part of the call, as ours are."""
    cast, scales = _fa3_casts(q, k, v)
    return function(*cast, **scales)


def _fa3_casts(*inputs: torch.Tensor) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    scales = [x.abs().amax(dim=(1, 3)).float().clamp(min=1e-12) / 448 for x in inputs]  # [B, H]
    cast = [(x / s[:, None, :, None]).to(torch.float8_e4m3fn) for x, s in zip(inputs, scales, strict=True)]
    return cast, dict(zip(("q_descale", "k_descale", "v_descale"), scales, strict=True))


def fa3_fp8_alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], torch.Tensor]:
    """FlashAttention-3 in FP8 without its casts, which are done here; needs FlashAttention-3."""
    function: Any = flash_attention_3()
    cast, scales = _fa3_casts(q, k, v)
    return lambda: _first(function(*cast, **scales))


def flex(plan: AttentionPlan, device: torch.device) -> Attention:
    """FlexAttention, compiled, over the plan's tiles. q, k, v in tile order. Its block mask is made here, once."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    lists = plan.tile_lists()
    tile_sizes, unit_sizes = plan.layout.tile_sizes.to(device), plan.layout.unit_sizes.to(device)
    tile = torch.repeat_interleave(torch.arange(len(tile_sizes), device=device), tile_sizes)
    unit = torch.repeat_interleave(torch.arange(len(unit_sizes), device=device), unit_sizes)
    seen = torch.zeros(len(tile_sizes), len(unit_sizes), dtype=torch.bool, device=device)
    for i, count in enumerate(lists.counts[0].tolist()):
        seen[i, lists.indices[0, i, :count].long().to(device)] = True
    mask = None
    if not plan.dense:
        length = len(tile)
        # compiled it does without a matrix of all pairs, 46 GB at 720p; on a CPU that would take a C compiler
        create = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
        mask = create(lambda b, h, i, j: seen[tile[i], unit[j]], None, None, length, length, device=device)
    torch.compiler.reset()  # each mask is compiled anew, and there is a limit to that
    compiled = torch.compile(flex_attention, dynamic=False)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return compiled(q, k, v, block_mask=mask).transpose(1, 2)

    return attention


def _first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result
