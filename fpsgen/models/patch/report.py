"""A record of what ran as JSON's types, and in a few lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from fpsgen.models.patch.run_record import ATTENTION, DENSE_LAYER, LayerRun, RunRecord, Step
from fpsgen.text import plural


def report(record: RunRecord) -> dict[str, Any]:
    """What Handle.report tells of a record. Reads what lies on devices.

    The loop may go on meanwhile in another thread.
    """
    loop, fallbacks = record.shown()
    steps = list(loop.steps.values())
    measured = _read_densities(steps)
    rows = [_row(step, measured.get(id(step), {})) for step in steps]
    components: dict[str, Counter[str]] = {}
    for row in rows:
        for group in row["layers"]:
            components.setdefault(group["component"], Counter())[group["kernel"]] += group["calls"]
    called = {component: dict(+kernels) for component, kernels in components.items()}
    return {
        "steps": rows,
        "density": _mean(row["density"] for row in rows),
        "fallbacks": fallbacks,
        "components": called,
        "kernels": called.get(ATTENTION, {}),
        "skipped_by_cache": sum(step.skipped for step in steps),
        "attention_backend": next((step.backend for step in reversed(steps) if step.backend), None),
        "grid": list(steps[-1].plan.grid) if steps else None,
    }


def latest_step(record: RunRecord) -> dict[str, Any] | None:
    """The step that ran last, see Handle.latest_step. Reads nothing from devices."""
    step = next(reversed(record.shown()[0].steps.values()), None)
    if step is None:
        return None
    return {
        "index": step.index,
        "sigma": step.sigma,
        "profile": step.profile.name,
        "method": step.profile.method,
        "density": _mean(run.density for run in step.runs[ATTENTION]),
    }


def _read_densities(steps: list[Step]) -> dict[int, dict[int, float]]:
    """{id of step: {layer: mean density}} of what lies on devices, one transfer for each device."""
    found: dict[int, dict[int, float]] = {}
    entries = [(id(step), layer, entry) for step in steps for layer, entry in list(step.kept.items())]
    for device in {entry.device for _, _, entry in entries}:
        here = [(step, layer, entry) for step, layer, entry in entries if entry.device == device]
        sums = torch.stack([entry for _, _, entry in here]).tolist()
        for (step, layer, _), (total, calls) in zip(here, sums, strict=True):
            found.setdefault(step, {})[layer] = total / calls
    return found


def _row(step: Step, measured: dict[int, float]) -> dict[str, Any]:
    """One step in JSON's types. measured: densities by layer that were counted on the device.

    Layers that follow the profile come before those that are dense at every step.
    """
    attention = sorted(step.runs[ATTENTION], key=lambda run: run.reason == DENSE_LAYER)
    groups = []
    for component, runs in step.runs.items():
        alike: dict[tuple[Any, ...], list[LayerRun]] = {}
        for run in attention if component == ATTENTION else runs:
            alike.setdefault((run.kernel, run.reason, run.density), []).append(run)
        groups += [_group(step, component, members, measured) for members in alike.values()]
    return {
        "index": step.index,
        "sigma": round(step.sigma, 6),
        "profile": step.profile.name,
        "method": step.profile.method,
        "kernel": attention[0].kernel,
        "density": _mean(measured.get(run.layer, run.density) for run in attention),
        "calls": sum(calls for (component, _, _), calls in list(step.calls.items()) if component == ATTENTION),
        "counted": "planned" if step.planned else "run",
        "tile": list(step.plan.tile),
        "window": list(step.plan.window),
        "layers": groups,
    }


def _group(step: Step, component: str, members: list[LayerRun], measured: dict[int, float]) -> dict[str, Any]:
    """Layers of a step that run alike. densities: one a layer, where they were counted call by call."""
    layers = sorted({run.layer for run in members})
    densities = [measured.get(run.layer, run.density) for run in members] if component == ATTENTION else [None]
    group = {
        "component": component,
        "layers": layers,
        "kernel": members[0].kernel,
        "density": _mean(densities),
        "reason": members[0].reason,
        "calls": sum(step.calls[component, run.layer, run.part] for run in members),
    }
    if component == ATTENTION and any(layer in measured for layer in layers):
        group["densities"] = [None if density is None else round(density, 4) for density in densities]
    if parts := sorted({run.part for run in members if run.part}):
        group["parts"] = parts
    return group


def _mean(values: Iterable[float | None]) -> float | None:
    """None where there are no values, or one of them is not known."""
    known = list(values)
    return None if not known or None in known else sum(known) / len(known)  # pyright: ignore


def summary(report: dict[str, Any]) -> str:
    """Schedule, steps by profile, kernels by component, and deviations."""
    asked = f", run as {report['asked_method']}" if report["asked_method"] else ""
    lines = [f"schedule {report['schedule']}{asked}"]
    if not report["steps"]:
        return "\n".join([*lines, "nothing has run yet"])
    grid = " x ".join(map(str, report["grid"]))
    density = "unknown" if report["density"] is None else f"{report['density']:.2f}"
    lines.append(
        f"{plural(len(report['steps']), 'step')} on a grid of {grid} tokens, mean density of attention {density}"
    )
    profiles: dict[str, list[dict[str, Any]]] = {}
    for step in report["steps"]:
        profiles.setdefault(step["profile"], []).append(step)
    for name, steps in profiles.items():
        share = "" if steps[0]["density"] is None else f", density {steps[0]['density']:.2f}"
        sigmas = f"sigma {steps[0]['sigma']:.3f} to {steps[-1]['sigma']:.3f}"
        lines.append(f"  {name}: {plural(len(steps), 'step')}, {sigmas}, {steps[0]['method']}{share}")
    for component, kernels in report["components"].items():
        lines.append(f"{component}: " + ", ".join(f"{calls} calls of {name}" for name, calls in kernels.items()))
    if skipped := report["skipped_by_cache"]:
        calls = skipped + sum(step["calls"] for step in report["steps"])
        lines.append(f"step cache: {skipped} of {calls} calls of layers skipped")
    if report["attention_backend"]:
        lines.append(f"attention backend {report['attention_backend']}: dense 16-bit layers only")
    for row in report["fallbacks"]:
        lines.append(f"not as asked: {row['detail']} ({row['reason']}, {row['count']} times)")
    return "\n".join(lines)
