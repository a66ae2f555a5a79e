"""What there is to know of models, as `fpsgen models list` and `fpsgen models show` print it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fpsgen.report.lines import amount, columns
from fpsgen.text import show


def listed(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each row of `fpsgen models list --json`."""
    lines = [["name", "parameters", "download", "on disk", "GPU memory", "licence"]]
    for row in rows:
        lines.append(
            [
                show(row["name"]),
                _parameters(row["parameters_b"]),
                f"{row['download_gb']:g} GB" if row["download_gb"] else "-",
                amount(row["bytes_on_disk"]) if row["path"] else "no",
                f"{row['min_memory_gb']:g} GB" if row["min_memory_gb"] else "none",
                show(row["licence"]),
            ]
        )
    return columns(lines)


def described(choice: Any, bytes_on_disk: int, bytes_to_fetch: int, lack: str) -> list[str]:
    """All that is known of one model, a line for each fact. choice: a ModelChoice. lack: what this machine lacks for
    it.
    """
    spec, geometry = choice.spec, choice.geometry
    disk = f"no; {amount(bytes_to_fetch)} to fetch" if bytes_to_fetch else "no"
    if choice.folder:
        disk = f"{choice.folder} ({amount(bytes_on_disk)})"
    makes = f"sides in multiples of {geometry.side} up to {geometry.largest}"
    if spec.trained_sizes:
        makes = f"{_sizes(spec.trained_sizes)}; other sizes are scaled from these"
    entries = [
        ("name", spec.name),
        ("what", spec.description),
        ("licence", spec.licence),
        ("source", spec.source + ("" if spec.embedded else f" at {spec.revision}")),
        ("on disk", disk),
        ("parameters", _parameters(spec.parameters)),
        ("machine", lack or "fits this one"),
        ("default", _defaults(spec)),
        *(("size", f"{name} {_sizes([size])}{_noted(spec, name)}") for name, size in spec.resolutions.items()),
        ("makes", makes),
        ("lengths", f"{geometry.temporal}n+1 frames"),
        ("prompt", f"the first {spec.max_sequence_length} tokens of it"),
        ("schedule", "its own, which its weights were trained with" if spec.trained_schedule else "none of its own"),
    ]
    if choice.pipeline is not None:
        instead = ", in whose place UniPCMultistepScheduler is used" if choice.replaced_scheduler else ""
        entries.append(("scheduler", f"{choice.pipeline.scheduler}{instead}"))
    if words := choice.vocabulary:
        kinds = {"draws": words.subjects, "colours": words.colours, "motions": words.motions}
        entries += [(kind, ", ".join(names)) for kind, names in (kinds | {"places": words.backgrounds}).items()]
    entries.append(("negative", spec.negative_prompt or "(empty)"))
    return [f"{label:<10}  {show(text, 2000)}" for label, text in entries]


def _defaults(spec: Any) -> str:
    size = f"{spec.width}x{spec.height}, {spec.frames} frames at {spec.fps} a second"
    return f"{size}; {spec.steps} steps, guidance {spec.guidance:g}, shift {spec.shift:g}"


def _parameters(count: float) -> str:
    """Parameters, given in thousand millions."""
    return f"{count * 1e3:.0f} M" if count < 1 else f"{count:g} B"


def _sizes(sizes: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for width, height in sizes)


def _noted(spec: Any, name: str) -> str:
    return f" ({spec.notes[name]})" if name in spec.notes else ""
