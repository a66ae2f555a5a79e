"""Another forward for one module instance, beneath whatever hooks it carries, and back again.

diffusers' hooks and accelerate's wrap a module's forward in the instance and keep the one below. So a forward of ours
goes to the bottom of that chain; hooks put on or taken off later leave it there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Forward = Callable[..., Any]


def swap_forward(module: torch.nn.Module, forward: Forward) -> Callable[[], None]:
    """Let `forward` (called without self) compute the module's call. Returns what undoes it."""
    own = type(module).forward.__get__(module)
    _replace(module, own, forward)
    return lambda: _replace(module, forward, own)


def inner_forward(module: torch.nn.Module) -> Forward:
    """The forward at the bottom of the chain of hooks."""
    return next((held for _, _, held in _slots(module)), module.forward)


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether anything but the module's own forward runs when it is called."""
    slots = _slots(module)
    alone = not slots or (len(slots) == 1 and slots[0][0] is module.__dict__)
    return bool(module._forward_hooks or module._forward_pre_hooks or not alone)


def _slots(module: torch.nn.Module) -> list[tuple[Any, str, Any]]:
    """Where forwards of the chain are kept, the innermost first: (object or dict, name, forward)."""
    found: list[tuple[Any, str, Any]] = []
    registry = module.__dict__.get("_diffusers_hook")
    for reference in registry._fn_refs if registry is not None else ():
        name = "forward" if reference.original_forward is None else "original_forward"
        found.append((reference, name, getattr(reference, name)))
    if "_old_forward" in module.__dict__:
        found.append((module.__dict__, "_old_forward", module.__dict__["_old_forward"]))
    if "forward" in module.__dict__:
        found.append((module.__dict__, "forward", module.__dict__["forward"]))
    return found


def _replace(module: torch.nn.Module, old: Forward, new: Forward) -> None:
    for place, name, held in _slots(module):
        if held == old:
            if place is not module.__dict__:
                setattr(place, name, new)
            elif name == "forward" and new == type(module).forward.__get__(module):
                del module.forward
            else:
                module.__dict__[name] = new
            return
    if "forward" not in module.__dict__:
        module.__dict__["forward"] = new
