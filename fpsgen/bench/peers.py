"""Attention of others, called as they ship it, to compare with. What is not installed is named, never guessed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
FA3_MODULES = ("fa3_fwd", "fa3_fwd_interface", "flash_attn_interface")


def peers(device: torch.device) -> tuple[dict[str, Attention], dict[str, str]]:
    """(name to function of q, k, v [B, L, H, D] in bf16, name to the reason why it is not there)."""
    if device.type != "cuda":
        return {"sdpa": _sdpa}, {}
    from torch.nn.attention import SDPBackend

    found: dict[str, Attention] = {
        "sdpa-cudnn": partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION),
        "sdpa-flash": partial(_sdpa, backend=SDPBackend.FLASH_ATTENTION),
    }
    missing: dict[str, str] = {}
    function = _flash_attention_3()
    if function is None:
        missing["fa3"] = "not installed (pip install fa3-fwd, or FlashAttention's hopper folder)"
    else:
        found["fa3-bf16"] = lambda q, k, v: _first(function(q, k, v))
        found["fa3-fp8"] = lambda q, k, v: _first(_fa3_fp8(function, q, k, v))
    return found, missing


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: Any = None) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _flash_attention_3() -> Any:
    for name in FA3_MODULES:
        try:
            module = import_module(name)
        except ImportError:
            continue
        function = getattr(module, "flash_attn_func", None)
        if function is not None:
            return function
    return None


def _fa3_fp8(function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    """One scale per head; the casts are part of the call, as ours are."""
    scales = [x.abs().amax(dim=(1, 3)).float().clamp(min=1e-12) / 448 for x in (q, k, v)]  # [B, H]
    cast = [(x / s[:, None, :, None]).to(torch.float8_e4m3fn) for x, s in zip((q, k, v), scales, strict=True)]
    return function(*cast, q_descale=scales[0], k_descale=scales[1], v_descale=scales[2])


def _first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result
