"""One-line texts on a request and on what a run took, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fpsgen.attention.methods import BASELINE
from fpsgen.text import plural


def describe(request: Any) -> str:
    """What is being made. request: a GenerateRequest."""
    video, sampling = request.video, request.sampling
    scaled = f" scaled to {video.scaled_to[0]}x{video.scaled_to[1]}" if video.scaled_to else ""
    size = f"{video.width}x{video.height}{scaled}, {plural(video.frames, 'frame')} ({video.seconds:.1f} s)"
    steps = plural(sampling.steps, "step")
    return f"{size}, {steps}, guidance {sampling.guidance:g}, shift {sampling.shift:g}, seed {sampling.seed}"


def summary(report: dict[str, Any]) -> str:
    """What it took. report: of a GenerateResult."""
    memory = report["peak_memory"]
    known = {where: memory[key] for key, where in (("rss_bytes", "RAM"), ("cuda_bytes", "GPU")) if memory[key]}
    peak = ", ".join(f"{size / 1e9:.1f} GB {where}" for where, size in known.items())
    density = "" if report["density"] is None else f", attention density {report['density']:.2f}"
    return f"in {report['total_s']:.1f} s, peak {peak or 'unknown'}{density}"


def duration(seconds: float) -> str:
    """A duration as 05:12, or 1:05:12 from an hour on."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"


def versions(row: dict[str, Any]) -> str:
    """The versions that a row was made with."""
    return ", ".join(f"{name} {number}" for name, number in row["versions"].items())


def options(row: Mapping[str, Any]) -> str:
    """What a row was made with beside its schedule, as "linear fp8, cache first-block"; "-" for nothing."""
    cache, until = row.get("cache") or "none", row.get("cfg_until")
    found = ["linear fp8"] if row.get("linear") == "fp8" else []
    found += [f"cache {cache}"] if cache != "none" else []
    found += [f"cfg-until {until:g}"] if until is not None and until < 1 else []
    found += ["exact"] if row.get("fused") is False and row["method"] != BASELINE else []  # always so
    return ", ".join(found) or "-"


def amount(size: float) -> str:
    """Bytes for a person."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:.0f} bytes"


def with_figures(keys: Iterable[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns that have a figure in some row. rows: texts by column, "-" where there is no figure."""
    return [key for key in keys if any(row[key] != "-" for row in rows)]


def columns(lines: list[list[str]]) -> list[str]:
    """Aligned columns, the first to the left. A first cell alone, or with one long remark, does not widen columns."""
    widths = [max(len(line[i]) for line in lines if len(line[1]) < 20) for i in range(len(lines[0]))]
    shown = []
    for line in lines:
        rest = "  ".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        shown.append(f"{line[0].ljust(widths[0])}  {rest}".rstrip())
    return shown
