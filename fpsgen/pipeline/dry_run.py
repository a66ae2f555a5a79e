"""What a request would do: its settings with their origins, and what would run at which step. Nothing is loaded."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from fpsgen.attention.methods import find_method
from fpsgen.attention.profile import Profile
from fpsgen.attention.schedule import AS_SCHEDULED, Schedule
from fpsgen.attention.windows import Size3
from fpsgen.models.catalog.folder import SCHEDULE
from fpsgen.models.catalog.machine import this_machine
from fpsgen.models.patch.schedule_choice import read_schedule, resolve_schedule
from fpsgen.pipeline.estimate import Estimate, ProfileSteps, estimate
from fpsgen.pipeline.plan import Plan
from fpsgen.pipeline.request import GenerateRequest, json_ready
from fpsgen.pipeline.sigmas import scheduler_of, step_sigmas
from fpsgen.report.lines import amount, duration
from fpsgen.settings.table import SETTINGS
from fpsgen.text import show


@dataclass(frozen=True)
class Outlook:
    """plan: what was asked. schedule: the one that will run, and why where nobody asked for it. profiles: in the order
    in which they run. grid: tokens (T, H, W).
    """

    plan: Plan
    schedule: Schedule
    why: str
    profiles: list[ProfileSteps]
    grid: Size3
    estimate: Estimate

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    def as_json(self) -> dict[str, Any]:
        request = self.plan.request
        values = {name: json_ready(value) for name, value in request.values().items()}
        values |= {"model": request.model.spec.name, "model_path": json_ready(request.model.folder)}
        values |= {"schedule": self.schedule.name, "output": str(request.output.path)}
        values |= {"vae_dtype": vae_dtype(request), "noise": "cpu"}
        return {
            "dry_run": True,
            "settings": values,
            "origins": {n: origin for n, origin in self.plan.origins.items() if n in values or _is_option(n)},
            "reason": request.model.reason,
            "token_grid": self.grid,
            "tokens": self.tokens,
            "profiles": [profile._asdict() for profile in self.profiles],
            "dense_layers": list(self.schedule.dense_layers),
            "estimate": asdict(self.estimate),
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, where it is from) of everything, for a person."""
        request, origins = self.plan.request, self.plan.origins
        video, values = request.video, request.values()
        scaled = f", scaled to {video.scaled_to[0]}x{video.scaled_to[1]}" if video.scaled_to else ""
        shown = {
            "model": (request.model.spec.name, request.model.reason),
            "frames": (f"{video.frames} ({video.seconds:.2f} s)", origins["frames"]),
            "negative": (show(request.prompt.negative, 200) or "(empty)", origins["negative"]),
            "schedule": (self.schedule.name, self.why or origins["schedule"]),
            "method": (values["method"] or AS_SCHEDULED, origins["method"]),
            "linear": (values["linear"] or _linear(self.schedule), origins["linear"]),
            "output": (str(request.output.path), origins["output"]),
        }
        rows = [("prompt", show(request.prompt.text, 200), "argument")]
        rows.append(("size", f"{video.width}x{video.height}{scaled}", origins["width"]))
        for entry in SETTINGS.values():
            if entry.name in shown:
                rows.append((entry.name, *shown[entry.name]))
            elif "generate" in entry.commands and entry.layers and entry.name in values:
                value = values[entry.name]
                text = ("yes" if value else "no") if entry.is_switch else str(value or entry.unset or "none")
                rows.append((entry.name, text, origins[entry.name]))
        rows += [("steps by profile", "; ".join(map(_described, self.profiles)), "schedule")]
        if self.schedule.dense_layers:
            rows.append(("dense layers", ", ".join(map(str, self.schedule.dense_layers)), "schedule"))
        rows.append(("tokens", f"{' x '.join(map(str, self.grid))} = {self.tokens}", "size and frames"))
        rows.append(("vae dtype", vae_dtype(request), "fp32 on a CPU and with --exact"))
        rows.append(("noise", "CPU generator", "always: a seed means the same everywhere"))
        return rows + _estimate_rows(self.estimate)


def _linear(schedule: Schedule) -> str:
    return f"fp8 in {', '.join(schedule.fp8_linear)}" if schedule.fp8_linear else "bf16"


def _is_option(name: str) -> bool:
    """Whether it is a setting of `fpsgen generate`, even where it has become other values of the request."""
    entry = SETTINGS.get(name)
    return entry is not None and "generate" in entry.commands and bool(entry.layers)


def vae_dtype(request: GenerateRequest) -> str:
    """What the VAE will decode in."""
    on_gpu = this_machine().gpu_memory(request.machine.device)
    return "bf16" if on_gpu and not request.values()["exact"] else "fp32"


def foresee(planned: Plan) -> Outlook:
    """What the plan would do. torch is not imported, but where a GPU has to be asked."""
    request = planned.request
    schedule, why = planned_schedule(request)
    video = request.video
    grid = request.model.geometry.token_grid(video.width, video.height, video.frames)
    profiles = profile_steps(schedule, request, grid)
    return Outlook(planned, schedule, why, profiles, grid, estimate(request, math.prod(grid), profiles, schedule))


def _described(profile: ProfileSteps) -> str:
    density = "chosen at each call" if profile.density is None else f"{profile.density:.2f}"
    return f"{profile.name} ({profile.method}) {profile.steps}, density {density}"


def _estimate_rows(found: Estimate) -> list[tuple[str, str, str]]:
    verdict = found.refusal or "can make it, as far as is known"
    if found.short_gb:
        verdict = f"does not fit: {found.short_gb:g} GB short" + (f" ({found.refusal})" if found.refusal else "")
    rows = [("this machine", verdict, "GPU and memory")]
    if found.fetch:
        lack = found.fetch - found.free_disk
        short = f"; does not fit: {amount(lack)} short" if lack > 0 else ""
        rows.append(
            ("to fetch", f"{amount(found.fetch)}; {amount(found.free_disk)} are free{short}", "registry, cache")
        )
    if found.memory_gb:
        names = {"vae": "vae at least"}
        parts = (f"{names.get(k, k)} {'unknown' if v is None else f'{v:g} GB'}" for k, v in found.memory_gb.items())
        rows.append(("GPU memory", ", ".join(parts), "estimated from file sizes and measured rows"))
    if found.denoise_s is not None:
        return [*rows, ("denoising", f"about {duration(found.denoise_s)}", "measured on this card")]
    return [*rows, ("denoising", "time unknown", "nothing like it was measured on this card")]


def planned_schedule(request: GenerateRequest) -> tuple[Schedule, str]:
    """The schedule that `fpsgen.apply` will choose, and why where nobody asked for one. Warns as that does."""
    asked, folder = request.attention.schedule, request.model.folder
    own = read_schedule(folder / SCHEDULE) if folder is not None and os.path.lexists(folder / SCHEDULE) else None
    schedule = resolve_schedule(asked, request.attention.method, own)
    if asked is not None:
        return schedule, ""
    return schedule, "for weights that carry no schedule" if own is None else "carried by the checkpoint"


def profile_steps(schedule: Schedule, request: GenerateRequest, grid: Size3) -> list[ProfileSteps]:
    """Steps and density by profile, in the order in which they run."""
    scheduler, train_timesteps = scheduler_of(request.model)
    sigmas = step_sigmas(request.sampling.steps, request.sampling.shift, scheduler, train_timesteps)
    running = schedule.profiles_for(min(sigma, 1.0) for sigma in sigmas)
    counts = Counter(profile.name for profile in running)
    profiles = {profile.name: profile for profile in running}
    return [ProfileSteps(name, p.method, counts[name], _density(p, grid)) for name, p in profiles.items()]


def _density(profile: Profile, grid: Size3) -> float | None:
    return None if find_method(profile.method).online else round(profile.resolve(grid)[3], 4)
