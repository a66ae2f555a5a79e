"""A report of Handle.report() in a few lines, for people."""

from __future__ import annotations

from typing import Any


def summary(report: dict[str, Any]) -> str:
    """Schedule, steps by profile, kernels by component, and deviations."""
    asked = f", run as {report['asked_method']}" if report["asked_method"] else ""
    lines = [f"schedule {report['schedule']}{asked}"]
    if not report["steps"]:
        return "\n".join([*lines, "nothing has run yet"])
    grid = " x ".join(map(str, report["grid"]))
    density = "unknown" if report["density"] is None else f"{report['density']:.2f}"
    lines.append(f"{len(report['steps'])} steps on a grid of {grid} tokens, mean density of attention {density}")
    profiles: dict[str, list[dict[str, Any]]] = {}
    for step in report["steps"]:
        profiles.setdefault(step["profile"], []).append(step)
    for name, steps in profiles.items():
        share = "" if steps[0]["density"] is None else f", density {steps[0]['density']:.2f}"
        sigmas = f"sigma {steps[0]['sigma']:.3f} to {steps[-1]['sigma']:.3f}"
        lines.append(f"  {name}: {len(steps)} steps, {sigmas}, {steps[0]['method']}{share}")
    for component, kernels in report["components"].items():
        lines.append(f"{component}: " + ", ".join(f"{calls} calls of {name}" for name, calls in kernels.items()))
    if report["attention_backend"]:
        lines.append(f"attention backend {report['attention_backend']}: dense 16-bit layers only")
    for row in report["fallbacks"]:
        lines.append(f"not as asked: {row['detail']} ({row['reason']}, {row['count']} times)")
    return "\n".join(lines)
