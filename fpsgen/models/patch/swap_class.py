"""Another class for one module instance, so that its call runs another forward, and back again.

The module stays the same object with the same parameters: hooks, LoRA, saving, offloading and torch.compile find what
they know. Hooks of diffusers and accelerate that were there before keep the forward below them; it is exchanged too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def swap_class(module: torch.nn.Module, kind: type[torch.nn.Module], **attributes: Any) -> Callable[[], None] | None:
    """Make `module` a `kind`, a subclass of its class, with these attributes. Returns what undoes it; None, and nothing
    done, where something unknown has replaced its forward.
    """
    before = type(module)
    module.__class__ = kind
    if not _rewire(module, before, kind):
        module.__class__ = before
        return None
    vars(module).update(attributes)

    def undo() -> None:
        module.__class__ = before
        _rewire(module, kind, before)
        for name in attributes:
            vars(module).pop(name, None)

    return undo


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether anything but its class's forward runs when the module is called."""
    own = type(module).forward.__get__(module)  # accelerate leaves it on the instance when it removes its hook
    return bool(module._forward_hooks or module._forward_pre_hooks or module.__dict__.get("forward", own) != own)


def _rewire(module: torch.nn.Module, old: type[torch.nn.Module], new: type[torch.nn.Module]) -> bool:
    """Exchange the forward that hooks keep. False where there are hooks, but none of them keeps it."""
    if "forward" not in module.__dict__:
        return True
    held = old.forward.__get__(module)
    registry = module.__dict__.get("_diffusers_hook")
    places: list[Any] = [] if registry is None else list(registry._fn_refs)
    for place in places:
        for name in ("original_forward", "forward"):
            if getattr(place, name) == held:
                setattr(place, name, new.forward.__get__(module))
                return True
    for name in ("_old_forward", "forward"):
        if module.__dict__.get(name) == held:
            module.__dict__[name] = new.forward.__get__(module)
            return True
    return False
