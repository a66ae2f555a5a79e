"""Where a figure comes from: device, versions, commit. And how repeated timings become one figure."""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import fpsgen
from fpsgen.models.catalog.machine import driver_version
from fpsgen.pipeline.recipe import versions
from fpsgen.text import plural

PACKAGES = ("torch", "triton", "diffusers")


def provenance(device: torch.device) -> dict[str, Any]:
    """What every row carries: created, device, driver, versions, commit ("" outside a checkout)."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {_processor()}",
        "driver": driver_version() if device.type == "cuda" else None,
        "versions": versions(PACKAGES),
        "commit": commit(),
    }


def commit() -> str:
    """The commit of the checkout that fpsgen runs from, "-dirty" behind it where files were changed; else ""."""
    root = Path(fpsgen.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """median, min, max and the number of values."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "n": len(values),
    }


def _processor() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    return f"{name}, {plural(torch.get_num_threads(), 'thread')}"
