"""`--dry-run`: every setting, where it is from, and what would run at which step. Nothing is made."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fpsgen.attention.schedule import Schedule, flow_sigma, preset
from fpsgen.cli import console
from fpsgen.models.patch.schedule_choice import read_schedule
from fpsgen.pipeline.request import GenerateRequest, Plan
from fpsgen.pipeline.size import token_grid
from fpsgen.text import show as clean

_NUMBERS = ("fps", "steps", "guidance", "shift", "seed")
_FACTS = {"vae_dtype": ("fp32", "always"), "noise": ("CPU generator", "always: a seed means the same on every device")}


def show(plan: Plan, warnings: tuple[str, ...], as_json: bool) -> None:
    """Print the plan on stdout, as a table or as JSON."""
    request = plan.request
    grid = token_grid(request.frames, request.height, request.width)
    schedule, carried = planned_schedule(request)
    steps = profile_counts(schedule, request)
    if as_json:
        values: dict[str, Any] = {field.name: getattr(request, field.name) for field in fields(request)}
        values |= {"model": request.model.name, "model_path": str(request.model_path), "output": str(request.output)}
        values |= {"schedule": schedule.name, "vae_dtype": "fp32", "noise": "cpu"}
        result = {
            "dry_run": True,
            "settings": values,
            "origins": plan.origins,
            "reason": plan.reason,
            "token_grid": grid,
            "tokens": grid[0] * grid[1] * grid[2],
            "profiles": [{"name": name, "steps": count} for name, count in steps],
        }
        console.print_json("generate", [result], list(warnings))
        return
    for text in warnings:
        console.warning(text)
    rows = [
        ("model", request.model.name, plan.reason),
        ("prompt", clean(request.prompt, 200), "argument"),
        ("negative", clean(request.negative, 200) or "(empty)", plan.origins["negative"]),
        ("size", f"{request.width}x{request.height}", plan.origins["width"]),
        ("frames", f"{request.frames} ({request.frames / request.fps:.2f} s)", plan.origins["frames"]),
        *(
            (name, f"{getattr(request, name)}", plan.origins[name])
            for name in ("fps", "steps", "guidance", "shift", "seed")
        ),
        ("method", request.method or "as scheduled", plan.origins["method"]),
        ("schedule", schedule.name, carried or plan.origins["schedule"]),
        ("steps by profile", ", ".join(f"{name} {count}" for name, count in steps), "schedule"),
        ("tokens", f"{grid[0]} x {grid[1]} x {grid[2]} = {grid[0] * grid[1] * grid[2]}", "size and frames"),
        ("strict", "yes" if request.strict else "no", plan.origins["strict"]),
        ("device", request.device, plan.origins["device"]),
        ("dtype", request.dtype, plan.origins["dtype"]),
        *((name.replace("_", " "), *fact) for name, fact in _FACTS.items()),
        ("output", str(request.output), plan.origins["output"]),
        ("recipe saved", "yes" if request.metadata else "no", plan.origins["metadata"]),
    ]
    wide = max(len(name) for name, _, _ in rows)
    for name, value, origin in rows:
        print(f"{name:<{wide}}  {value}  [{origin}]")


def planned_schedule(request: GenerateRequest) -> tuple[Schedule, str]:
    """The schedule that `fpsgen.apply` will choose, and why where nobody asked for one."""
    name, own, why = request.schedule, request.model_path / "schedule.toml", ""
    if name is not None:
        schedule = read_schedule(name)
    elif own.is_file():
        schedule, why = Schedule.from_file(own), "carried by the checkpoint"
    else:
        schedule, why = preset("safe"), "for weights that carry no schedule"
    return (schedule.with_method(request.method) if request.method else schedule), why


def profile_counts(schedule: Schedule, request: GenerateRequest) -> list[tuple[str, int]]:
    """(profile, number of steps), in the order in which they run."""
    sigmas = [flow_sigma(1 - index / request.steps, request.shift) for index in range(request.steps)]
    counts: dict[str, int] = {}
    for profile in schedule.profiles_for(sigmas):
        name = f"{profile.name} ({profile.method})"
        counts[name] = counts.get(name, 0) + 1
    return list(counts.items())
