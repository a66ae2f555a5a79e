"""Classifier-free guidance in one forward: prompt and negative prompt as a batch of two.

A pipeline calls its transformer twice a step, with the same latents and another text. Where a forward is bound by the
host's launches and not by the device, both fit in the time of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

from fpsgen.models.patch.noise_level import ThreadContexts

HOOK = "fpsgen_guidance"
# most tokens of a video for which one forward of two samples was faster than two forwards, by kind of device; of larger
# videos none was measured on a GPU (figures/guidance.json)
MOST_TOKENS = {"cuda": 14040, "cpu": 512}
COND, UNCOND = "cond", "uncond"  # diffusers' names of the two calls


@contextmanager
def guidance_in_one_batch(
    transformer: Any, prompt: torch.Tensor, negative: torch.Tensor, guided: Callable[[], bool]
) -> Iterator[None]:
    """Meanwhile, the "cond" call of a step computes both branches and the "uncond" call hands out the second.

    prompt, negative: [1, text length, dim] of one shape, what the pipeline passes as encoder_hidden_states. guided:
    whether the step that begins has an "uncond" call. Each sample's arithmetic is that of its own forward, but for the
    order of sums that a matrix product of another size may have.
    """
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.register_hook(_BothBranches(torch.cat((prompt, negative)), guided), HOOK)
    try:
        yield
    finally:
        registry.remove_hook(HOOK, recurse=False)


class _BothBranches(ModelHook):
    """Stateful only in diffusers' sense: so that cache_context reaches it."""

    _is_stateful = True

    def __init__(self, texts: torch.Tensor, guided: Callable[[], bool]) -> None:
        super().__init__()
        self.contexts = ThreadContexts()  # diffusers looks for StateManagers among a hook's own attributes
        self._texts = texts  # one tensor through the loop: what is computed of a text is kept with it
        self._guided = guided
        self._second: torch.Tensor | None = None

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.contexts.reset()
        return module

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        forward: Any = self.fn_ref.original_forward
        context = self.contexts._context
        branch = "" if context is None else context.name
        if branch == UNCOND and self._second is not None:
            second, self._second = self._second, None
            return (second,)
        if branch != COND or not self._guided():
            return forward(*args, **kwargs)
        latents, timestep = (kwargs[name] for name in ("hidden_states", "timestep"))
        both = {
            "hidden_states": latents.expand(2, *latents.shape[1:]),
            "timestep": timestep.expand(2, *timestep.shape[1:]),
            "encoder_hidden_states": self._texts,
        }
        first, self._second = forward(*args, **kwargs | both)[0].chunk(2)
        return (first,)
