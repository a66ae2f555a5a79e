"""What computes dense attention in 16 bits: the backend that the user names, or the fastest that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch
from diffusers.models import attention_dispatch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpsgen.attention.methods.bf16 import BACKENDS
from fpsgen.errors import ENVIRONMENT, FpsgenError
from fpsgen.models.patch.attention import active_backend, automatic_backend

_FA3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")  # FlashAttention's own package, and fa3-fwd of PyPI
_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@contextmanager
def dense_backend(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Iterator[str]:
    """Meanwhile, diffusers' attention (and so all dense 16-bit attention, cross-attention too) runs on one backend.

    name: a key of BACKENDS. "auto" is FlashAttention-3 on a Hopper GPU where it is installed; else PyTorch's
    scaled_dot_product_attention, with cuDNN before its other kernels on GPUs from compute capability 9.0 on. What was
    chosen in diffusers, by the environment variable DIFFUSERS_ATTN_BACKEND too, stays. device, dtype, head_dim: of the
    model. Yields the backend's name, "auto" where PyTorch or diffusers chooses. Raises FpsgenError ENVIRONMENT where
    the package of a backend that was named is missing.
    """
    auto = name == "auto"
    if auto and active_backend() is None:
        name = fastest_backend(device, dtype, head_dim)
    with ExitStack() as stack:
        if auto and name == "cudnn":  # PyTorch's own kernels take what cuDNN cannot
            stack.enter_context(sdpa_kernel(_CUDNN_FIRST, set_priority=True))
        elif name != "auto":
            if name == "fa3":
                stack.enter_context(_known_to_diffusers(flash_attention_3()))
            try:
                stack.enter_context(attention_dispatch.attention_backend(BACKENDS[name]))
            except (ImportError, RuntimeError, ValueError) as error:
                what = f"--bf16-backend {name} cannot be used: {str(error).splitlines()[0]}"
                raise FpsgenError(what, "install what it names, or leave the option out", ENVIRONMENT) from error
            if auto:
                stack.enter_context(automatic_backend())
        yield name


def fastest_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The name of what computes dense attention fastest on a device (docs/figures.md): "fa3", "cudnn" or "auto"."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "auto"
    capability = torch.cuda.get_device_capability(device)
    if capability == (9, 0) and dtype == torch.bfloat16 and flash_attention_3() is not None:
        return "fa3"
    return "cudnn" if capability >= (9, 0) and _cudnn_computes(device, dtype, head_dim) else "auto"


def _cudnn_computes(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

    x = torch.empty(1, 1, 128, head_dim, device=device, dtype=dtype)
    return can_use_cudnn_attention(SDPAParams(x, x, x, None, 0.0, False, False))


def flash_attention_3() -> Callable[..., Any] | None:
    """flash_attn_func of FlashAttention-3, None where it is not installed."""
    for name in _FA3_MODULES:
        try:
            return import_module(name).flash_attn_func
        except (ImportError, AttributeError):
            continue
    return None


@contextmanager
def _known_to_diffusers(function: Callable[..., Any] | None) -> Iterator[None]:
    """Meanwhile diffusers calls `function` as FlashAttention-3; it looks for one package alone."""
    before = {name: getattr(attention_dispatch, name) for name in ("_CAN_USE_FLASH_ATTN_3", "flash_attn_3_func")}
    if function is not None and not before["_CAN_USE_FLASH_ATTN_3"]:
        attention_dispatch._CAN_USE_FLASH_ATTN_3 = True
        attention_dispatch.flash_attn_3_func = function
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(attention_dispatch, name, value)
