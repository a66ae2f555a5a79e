"""The hook on a transformer's forward: finds the noise level, picks the plan, keeps the tokens in tile order.

All private parts of diffusers that fpsgen leans on are used here and in wan.py: HookRegistry, StateManager,
_parallel_config, _cache_config.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager

from fpsgen.attention.methods import METHODS
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.schedule import Profile, Schedule
from fpsgen.errors import ENVIRONMENT, NUMERIC, USAGE, FpsgenError
from fpsgen.models.patch.attention import Rotary, plain_norms
from fpsgen.models.patch.patch_permute import Size3, move_patches, token_grid
from fpsgen.models.patch.run_record import Layers, Recorder, dense_reason

SPATIAL_CACHES = ("SeaCacheConfig", "FasterCacheConfig")  # look at tokens as an image: raster order only


class Run:
    """What all patched transformers of one handle share."""

    def __init__(self, schedule: Schedule, method: str | None, strict: bool, recorder: Recorder) -> None:
        self.schedule = schedule
        self.method = method
        self.strict = strict
        self.recorder = recorder
        self.sigma: float | None = None  # fixed by Handle.at
        self.tiles = set(schedule.tiles)

    def deviation(self, reason: str, layers: list[int], detail: str) -> None:
        """Note that something else than the schedule ran. Raises FpsgenError NUMERIC if strict."""
        if self.strict:
            raise FpsgenError(f"strict: {detail} ({reason})", "mend that, or run without strict", NUMERIC)
        self.recorder.fallback(reason, layers, detail)


class Pass(NamedTuple):
    """One forward under way. order: the plan whose tiles the tokens lie in, None for raster order."""

    patch: Size3
    sparse: Layers
    dense: Layers
    order: AttentionPlan | None


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None:
        pass


class ForwardHook(ModelHook):
    """One per transformer. Stateful only in diffusers' sense: so that cache_context reaches it."""

    _is_stateful = True

    def __init__(self, run: Run, module: Any, processors: list[Any], train_timesteps: int) -> None:
        super().__init__()
        self.run = run
        self.processors = processors
        self.attentions = [block.attn1 for block in module.blocks]
        self.blocks = list(module.blocks)
        self.train_timesteps = train_timesteps
        self.contexts = StateManager(_NoState)  # pyright: ignore[reportArgumentType]
        self.now: Pass | None = None
        self._module = module
        self._plans: dict[tuple[str, Size3, torch.device, Any], tuple[Layers, Layers, AttentionPlan | None]] = {}
        self._timestep: tuple[Any, int, float, float] | None = None

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.contexts.reset()
        return module

    @torch.compiler.disable
    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
        """Choose the plan of this forward and move the latents' patches into its order."""
        self._refuse(module)
        arguments = dict(zip(("hidden_states", "timestep"), args, strict=False)) | kwargs
        latents, timestep = arguments["hidden_states"], arguments["timestep"]
        patch = tuple(module.config.patch_size)
        index, branch, sigma = self._where(timestep)
        profile = self._profile(sigma, timestep if index is None and self.run.sigma is None else None)
        sparse, dense, order = self._plan(profile, token_grid(latents, patch), latents.device)
        self.now = Pass(patch, sparse, dense, order)
        self.run.recorder.begin(index, branch, sigma, profile, sparse, dense)
        if order is None:
            return args, kwargs
        at = order.tables(latents.device).order
        moved = {"hidden_states": move_patches(latents, patch, at)}
        if timestep.dim() == 2:  # one noise level per token (Wan2.2 5B)
            moved["timestep"] = timestep.index_select(1, at)
        args = tuple(
            moved.pop(name, old) for name, old in zip(("hidden_states", "timestep"), args, strict=False)
        ) + tuple(args[2:])
        return args, kwargs | moved

    @torch.compiler.disable
    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        """Move the output's patches back."""
        now, self.now = self.now, None
        compiled = [block._compiled_call_impl is not None for block in self.blocks]
        skipped = self.run.recorder.end(compiled, getattr(module, "_cache_config", None) is not None)
        if skipped:
            self.run.deviation("skipped_by_cache", skipped, f"{len(skipped)} layers were skipped in a forward")
        if now is None or now.order is None:
            return output
        sample = output[0]
        back = move_patches(sample, now.patch, now.order.tables(sample.device).inverse)
        return (back, *output[1:]) if isinstance(output, tuple) else type(output)(sample=back)

    @torch.compiler.disable
    def rope_hook(self, module: torch.nn.Module, args: Any, output: tuple[torch.Tensor, torch.Tensor]) -> Rotary:
        """Forward hook of the rope module: the table in the tokens' order, and the plans for the processors."""
        assert self.now is not None, "rope ran outside the transformer's forward"
        if self.now.order is not None:
            at = self.now.order.tables(output[0].device).order
            output = output[0].index_select(1, at), output[1].index_select(1, at)
        plan = self.now.sparse.plan
        return Rotary(*output, plan, self.now.dense.plan, self._table(plan, *output))

    def _table(self, plan: AttentionPlan, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor | None:
        """NormRope's table where the kernel that quantizes can norm and rotate as well; it has no gradient."""
        kernel = plan.kernel(cos.device, self._module.config.attention_head_dim)
        if not plan.fp8 or kernel not in ("triton", "hopper") or torch.is_grad_enabled():
            return None
        if torch.is_autocast_enabled(cos.device.type) or not all(map(plain_norms, self.attentions)):
            return None
        return torch.cat((cos[0, :, 0, ::2], sin[0, :, 0, ::2]), -1).float()

    def _where(self, timestep: torch.Tensor) -> tuple[int | None, str, float]:
        """(step index or None, branch, sigma): set by Handle.at, else told by the pipeline, else from the timestep."""
        if self.run.sigma is not None:
            return None, "", self.run.sigma
        try:
            told = self.contexts.context
        except ValueError:
            told = None
        sigma = getattr(told, "sigma", None)
        if told is not None and sigma is not None:
            return told.step_index, told.name, float(sigma)
        return None, "", self._read(timestep)[1]

    def _read(self, timestep: torch.Tensor) -> tuple[float, float]:
        """Lowest and highest sigma of a timestep tensor: entries over the train timesteps. Waits for the device, once
        per step, as guidance calls twice with the same tensor.
        """
        if self._timestep is None or self._timestep[0] is not timestep or self._timestep[1] != timestep._version:
            low, high = (torch.stack(timestep.aminmax()).double() / self.train_timesteps).tolist()
            self._timestep = (timestep, timestep._version, low, high)
        return self._timestep[2:]

    def _profile(self, sigma: float, timestep: torch.Tensor | None) -> Profile:
        try:
            profile = self.run.schedule.profile_at(sigma)
            if timestep is not None and timestep.dim() == 1 and len(timestep) > 1:
                other = self.run.schedule.profile_at(self._read(timestep)[0])
                if other != profile:
                    raise FpsgenError(
                        f"one batch holds noise levels of the profiles {profile.name!r} and {other.name!r}",
                        "draw a batch from one profile, or fix it: with handle.at(sigma)",
                        USAGE,
                    )
            return profile
        except ValueError as error:
            raise FpsgenError(
                f"the noise level is {sigma:.4g}, not in [0, 1]",
                "use a flow-matching scheduler: UniPC with use_flow_sigmas=True, or FlowMatchEuler",
                USAGE,
            ) from error

    def _plan(self, profile: Profile, grid: Size3, device: torch.device) -> tuple[Layers, Layers, AttentionPlan | None]:
        backend = self.processors[0]._attention_backend
        key = (profile.name, grid, device, backend)
        if key not in self._plans:
            plan = AttentionPlan.of(profile, grid)
            dense = AttentionPlan(grid, profile.tile, method="bf16")
            chosen = None if backend is None else str(getattr(backend, "value", backend))

            head_dim = self._module.config.attention_head_dim

            def kernel(plan: AttentionPlan) -> str:
                return chosen if chosen and plan.method == "bf16" else plan.kernel(device, head_dim)

            self._plans[key] = (
                Layers(plan, kernel(plan), dense_reason(profile, plan, self.run.method)),
                Layers(dense, kernel(dense), "dense_layer"),
                self._order(profile, plan, grid),
            )
        return self._plans[key]

    def _order(self, profile: Profile, plan: AttentionPlan, grid: Size3) -> AttentionPlan | None:
        """Which tiles the tokens lie in. Dense bf16 does not care: it takes the order of the other steps, if they have
        but one, so that what caches keep from step to step stays in place.
        """
        if METHODS[profile.method].tiled:
            return plan
        return AttentionPlan(grid, next(iter(self.run.tiles)), method="bf16") if len(self.run.tiles) == 1 else None

    def _refuse(self, module: Any) -> None:
        """Raise FpsgenError, by name, for what would silently go wrong."""
        if module is not self._module:
            raise FpsgenError(
                "this transformer is a copy of one that fpsgen.apply had patched, and would run the original's weights",
                "call handle.remove() before copying, then fpsgen.apply on each",
                USAGE,
            )
        if getattr(module, "_parallel_config", None) is not None:
            raise FpsgenError(
                "diffusers' context or tensor parallelism is on, which fpsgen's attention does not handle yet",
                "load the transformer without enable_parallelism",
                ENVIRONMENT,
            )
        replaced = [layer for layer, attn in enumerate(self.attentions) if attn.processor is not self.processors[layer]]
        if replaced:
            raise FpsgenError(
                f"the attention processors of layers {replaced} were replaced after fpsgen.apply",
                "set processors before fpsgen.apply, or call handle.remove() first",
                USAGE,
            )
        cache = getattr(module, "_cache_config", None)
        if cache is None:
            return
        kind = type(cache).__name__
        if kind in SPATIAL_CACHES and self.run.tiles:
            raise FpsgenError(
                f"{kind} looks at tokens in raster order, and fpsgen keeps them in tile order",
                "disable_cache(), or use FirstBlockCache, MagCache, TaylorSeer or PyramidAttentionBroadcast",
                USAGE,
            )
        if len(self.run.tiles) > 1:
            raise FpsgenError(
                f"{kind} keeps tokens from step to step, and schedule {self.run.schedule.name!r} changes their order: "
                f"its tiles are {sorted(map(str, self.run.tiles))}",
                "disable_cache(), or give all profiles one tile",
                USAGE,
            )
