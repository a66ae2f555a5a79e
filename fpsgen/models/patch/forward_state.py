"""One forward of a patched transformer: its noise level, its plan, and its tokens in tile order.

ForwardHook sits on the transformer's forward. It keeps nothing of a forward on itself: a ForwardState belongs to the
call, so threads may share a transformer. The private parts of diffusers that fpsgen leans on are used here, in
noise_level.py (cache contexts) and in attention.py (attention backends).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import ModelHook

from fpsgen.attention.methods import METHODS
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.schedule import Profile
from fpsgen.attention.windows import Size3
from fpsgen.errors import ENVIRONMENT, USAGE, FpsgenError
from fpsgen.models.patch.noise_level import NoiseLevels
from fpsgen.models.patch.one_graph import break_graph
from fpsgen.models.patch.patch_permute import move_patches, patch_grid
from fpsgen.models.patch.run_record import Key, Position, Step
from fpsgen.models.patch.stack import Installed, Run

SPATIAL_CACHES = ("SeaCacheConfig", "FasterCacheConfig")  # look at tokens as an image: raster order only


@dataclass(eq=False)
class ForwardState:
    """One forward under way.

    index: step of the denoising loop, None outside one. branch: "cond", "uncond" or "". plan: attention of this step;
    dense_plan: of layers that stay dense. order: the plan whose tiles the tokens lie in, None for raster order.
    backend: the attention backend that was chosen in diffusers, if any. calls, kept: what ran so far, see Run.count and
    Run.count_density.
    """

    index: int | None
    branch: str
    sigma: float
    profile: Profile
    grid: Size3
    patch: Size3
    device: torch.device
    plan: AttentionPlan
    dense_plan: AttentionPlan
    order: AttentionPlan | None
    backend: str | None = None
    step: Step | None = None
    calls: Counter[Key] = field(default_factory=Counter)
    kept: list[tuple[int, torch.Tensor]] = field(default_factory=list)


class ForwardHook(ModelHook):
    """One per transformer. Stateful only in diffusers' sense: so that cache_context reaches it.

    number: which transformer of the pipeline it is, from 0. installed: the patches that are on it, by component.
    """

    _is_stateful = True

    def __init__(
        self, run: Run, module: Any, number: int, installed: Mapping[str, Installed], levels: NoiseLevels
    ) -> None:
        super().__init__()
        self.run = run
        self.number = number
        self.installed = installed
        self.levels = levels
        self.contexts = levels.contexts  # diffusers looks for StateManagers among a hook's own attributes
        self.blocks = list(module.blocks)
        self._module = module
        self._plans: dict[tuple[str, Size3], tuple[AttentionPlan, AttentionPlan, AttentionPlan | None]] = {}

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.contexts.reset()
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
        """Choose the plan of this forward and move the latents' patches into its order."""
        if torch.compiler.is_compiling():
            break_graph()
        return self._begin(module, args, kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    @torch.compiler.disable
    def _begin(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        self.run.of_thread.forward = None
        self._refuse(module)
        arguments = dict(zip(("hidden_states", "timestep"), args, strict=False)) | kwargs
        latents, timestep = arguments["hidden_states"], arguments["timestep"]
        position = self.levels.position(timestep, training=torch.is_grad_enabled())
        profile = self._profile(position, one_each=timestep.dim() == 1)
        patch = tuple(module.config.patch_size)
        grid = patch_grid(latents, patch)
        forward = ForwardState(*position[:3], profile, grid, patch, latents.device, *self._plan(profile, grid))
        runs = {component: patch.layer_runs(forward) for component, patch in self.installed.items()}
        forward.step = self.run.record.begin(position, self.number, forward, runs)
        self.run.of_thread.forward = forward
        if forward.order is None:
            return args, kwargs
        order = forward.order.tables(latents.device).order
        moved = {"hidden_states": move_patches(latents, patch, order)}
        if timestep.dim() == 2:  # one noise level per token (Wan2.2 5B)
            moved["timestep"] = timestep.index_select(1, order)
        args = tuple(
            moved.pop(name, old) for name, old in zip(("hidden_states", "timestep"), args, strict=False)
        ) + tuple(args[2:])
        return args, kwargs | moved

    @torch.compiler.disable
    def post_forward(self, module: Any, output: Any) -> Any:
        """Record what ran, and move the output's patches back."""
        forward, self.run.of_thread.forward = self.run.forward, None
        if forward is None or forward.step is None:
            return output
        compiled = [block._compiled_call_impl is not None for block in self.blocks]
        cached = getattr(module, "_cache_config", None) is not None
        missing = self.run.record.end(forward.step, forward.calls, forward.kept, compiled, cached)
        if cached and self.run.cache is not None:
            missing = {}
        for component, layers in missing.items():
            reason = "skipped_by_cache" if cached else "not_called"
            self.run.deviation(component, reason, layers, f"{component} of layers {layers} did not run in a forward")
        if forward.order is None:
            return output
        sample = output[0]
        back = move_patches(sample, forward.patch, forward.order.tables(sample.device).inverse)
        return (back, *output[1:]) if isinstance(output, tuple) else type(output)(sample=back)

    def _profile(self, position: Position, one_each: bool) -> Profile:
        """The schedule's profile. one_each: each sample of the batch has a noise level of its own."""
        try:
            profile = self.run.schedule.profile_at(position.sigma)
            other = self.run.schedule.profile_at(position.lowest) if one_each else profile
        except ValueError as error:
            raise FpsgenError(
                f"the noise level is {position.sigma:.4g}, not in [0, 1]",
                "use a flow-matching scheduler: UniPC with use_flow_sigmas=True, or FlowMatchEuler",
                USAGE,
            ) from error
        if other != profile:
            raise FpsgenError(
                f"one batch holds noise levels of the profiles {profile.name!r} and {other.name!r}",
                "draw a batch from one profile, or fix it: with handle.fixed_sigma(sigma)",
                USAGE,
            )
        return profile

    def _plan(self, profile: Profile, grid: Size3) -> tuple[AttentionPlan, AttentionPlan, AttentionPlan | None]:
        """(plan, dense plan, plan of the token order)."""
        key = (profile.name, grid)
        if key not in self._plans:
            plan = self._plan_of(profile, grid)
            self._plans[key] = (
                plan,
                AttentionPlan(grid, profile.tile or "fit", method="bf16"),
                self._order(profile, plan, grid),
            )
        return self._plans[key]

    def _plan_of(self, profile: Profile, grid: Size3) -> AttentionPlan:
        heads = self._module.config.num_attention_heads
        try:
            plan = AttentionPlan.of(profile, grid, self.run.impl)
            if len(plan.windows) not in (1, heads):
                raise ValueError(f"head_windows has {len(plan.windows)} windows for {heads} heads.\nGive one for each.")
        except ValueError as error:
            what, _, remedy = str(error).partition("\n")
            raise FpsgenError(f"profile {profile.name!r} cannot run on {grid} tokens: {what}", remedy, USAGE) from error
        return plan

    def _order(self, profile: Profile, plan: AttentionPlan, grid: Size3) -> AttentionPlan | None:
        """Which tiles the tokens lie in. Dense 16-bit attention does not care: it takes the order of the other steps,
        if they have but one, so that what caches keep from step to step stays in place.
        """
        if METHODS[profile.method].tiled:
            return plan
        tiles = self.run.schedule.tiles
        return AttentionPlan(grid, next(iter(tiles)), method="bf16") if len(tiles) == 1 else None

    def _refuse(self, module: Any) -> None:
        """Raise FpsgenError, by name, for what would silently go wrong."""
        if module is not self._module:
            raise FpsgenError(
                "this transformer is a copy of one that fpsgen.apply had patched, and would run the original's weights",
                "call handle.remove() before copying, then fpsgen.apply on each",
                USAGE,
            )
        if list(module.blocks) != self.blocks:
            raise FpsgenError(
                "the transformer's blocks were replaced after fpsgen.apply",
                "call handle.remove(), then fpsgen.apply again",
                USAGE,
            )
        refuse_parallelism(module)
        cache = getattr(module, "_cache_config", None)
        if cache is None:
            return
        kind, tiles = type(cache).__name__, self.run.schedule.tiles
        if kind in SPATIAL_CACHES and tiles:
            raise FpsgenError(
                f"{kind} looks at tokens in raster order, and fpsgen keeps them in tile order",
                "disable_cache(), or use FirstBlockCache, MagCache, TaylorSeer or PyramidAttentionBroadcast",
                USAGE,
            )
        if len(tiles) > 1:
            raise FpsgenError(
                f"{kind} keeps tokens from step to step, and schedule {self.run.schedule.name!r} changes their order: "
                f"its tiles are {sorted(map(str, tiles))}",
                "disable_cache(), or give all profiles one tile",
                USAGE,
            )


def refuse_parallelism(transformer: Any) -> None:
    """Raise FpsgenError where the transformer's tokens or heads are spread over processes."""
    if getattr(transformer, "_parallel_config", None) is not None:
        raise FpsgenError(
            "diffusers' context or tensor parallelism is on, which fpsgen's attention does not handle yet",
            "load the transformer without enable_parallelism",
            ENVIRONMENT,
        )
