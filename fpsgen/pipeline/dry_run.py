"""What a request would do: its settings with their origins, and what would run at which step. Nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fpsgen.attention.schedule import Schedule, preset
from fpsgen.models.patch.schedule_choice import read_schedule
from fpsgen.pipeline.plan import Plan
from fpsgen.pipeline.request import GenerateRequest, json_ready
from fpsgen.pipeline.sigmas import scheduler_of, step_sigmas
from fpsgen.pipeline.size import token_grid
from fpsgen.settings.table import SETTINGS
from fpsgen.text import show

_ALWAYS = {"vae dtype": ("fp32", "always"), "noise": ("CPU generator", "always: a seed means the same everywhere")}


@dataclass(frozen=True)
class Outlook:
    """plan: what was asked. schedule: the one that will run, and why where nobody asked for it. profiles: (name,
    number of steps), in the order in which they run. grid: tokens (T, H, W).
    """

    plan: Plan
    schedule: Schedule
    why: str
    profiles: list[tuple[str, int]]
    grid: tuple[int, int, int]

    def as_json(self) -> dict[str, Any]:
        request = self.plan.request
        values = {name: json_ready(value) for name, value in request.values().items()}
        values |= {"model": request.model.spec.name, "model_path": json_ready(request.model.folder)}
        values |= {"schedule": self.schedule.name, "output": str(request.output.path)}
        values |= {"vae_dtype": "fp32", "noise": "cpu"}
        return {
            "dry_run": True,
            "settings": values,
            "origins": dict(self.plan.origins),
            "reason": request.model.reason,
            "token_grid": self.grid,
            "tokens": self.grid[0] * self.grid[1] * self.grid[2],
            "profiles": [{"name": name, "steps": count} for name, count in self.profiles],
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
            "method": (values["method"] or "as scheduled", origins["method"]),
            "output": (str(request.output.path), origins["output"]),
        }
        rows = [("prompt", show(request.prompt.text, 200), "argument")]
        rows.append(("size", f"{video.width}x{video.height}{scaled}", origins["width"]))
        for entry in SETTINGS.values():
            if entry.name in shown:
                rows.append((entry.name, *shown[entry.name]))
            elif "generate" in entry.commands and entry.layers and entry.name in values:
                value = values[entry.name]
                text = ("yes" if value else "no") if entry.is_switch else str(value)
                rows.append((entry.name, text, origins[entry.name]))
        counts = ", ".join(f"{name} {count}" for name, count in self.profiles)
        tokens = f"{self.grid[0]} x {self.grid[1]} x {self.grid[2]} = {self.grid[0] * self.grid[1] * self.grid[2]}"
        rows += [("steps by profile", counts, "schedule"), ("tokens", tokens, "size and frames")]
        return rows + [(name, *fact) for name, fact in _ALWAYS.items()]


def foresee(planned: Plan) -> Outlook:
    """What the plan would do."""
    request = planned.request
    schedule, why = planned_schedule(request)
    video = request.video
    grid = token_grid(video.frames, video.height, video.width)
    return Outlook(planned, schedule, why, profile_counts(schedule, request), grid)


def planned_schedule(request: GenerateRequest) -> tuple[Schedule, str]:
    """The schedule that `fpsgen.apply` will choose, and why where nobody asked for one."""
    asked, folder, why = request.attention.schedule, request.model.folder, ""
    if asked is not None:
        schedule = read_schedule(asked)
    elif folder is not None and (folder / "schedule.toml").is_file():
        schedule, why = Schedule.from_file(folder / "schedule.toml"), "carried by the checkpoint"
    else:
        schedule, why = preset("safe"), "for weights that carry no schedule"
    method = request.attention.method
    return (schedule.with_method(method) if method else schedule), why


def profile_counts(schedule: Schedule, request: GenerateRequest) -> list[tuple[str, int]]:
    """(profile, number of steps), in the order in which they run."""
    scheduler, train_timesteps = scheduler_of(request.model)
    sigmas = step_sigmas(request.sampling.steps, request.sampling.shift, scheduler, train_timesteps)
    counts: dict[str, int] = {}
    for profile in schedule.profiles_for(min(sigma, 1.0) for sigma in sigmas):
        name = f"{profile.name} ({profile.method})"
        counts[name] = counts.get(name, 0) + 1
    return list(counts.items())
