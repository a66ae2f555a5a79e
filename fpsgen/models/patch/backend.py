"""The kernel that dense attention in 16 bits runs on, where the user names one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.models.attention_dispatch import attention_backend

from fpsgen.attention.methods.bf16 import BACKENDS
from fpsgen.errors import ENVIRONMENT, FpsgenError


@contextmanager
def dense_backend(name: str) -> Iterator[None]:
    """Meanwhile, diffusers' attention (and so all dense 16-bit attention, cross-attention too) runs on one backend.

    name: a key of BACKENDS; "auto" changes nothing. Raises FpsgenError ENVIRONMENT where its package is missing.
    """
    if name == "auto":
        yield
        return
    chosen = attention_backend(BACKENDS[name])
    try:
        chosen.__enter__()
    except (ImportError, RuntimeError, ValueError) as error:
        what = f"--bf16-backend {name} cannot be used: {str(error).splitlines()[0]}"
        raise FpsgenError(what, "install what it names, or leave the option out", ENVIRONMENT) from error
    try:
        yield
    finally:
        chosen.__exit__(None, None, None)
