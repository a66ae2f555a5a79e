"""Which model is meant, where it lies, and why this one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen.errors import MODEL, FpsgenError
from fpsgen.models.catalog.registry import AUTO, ModelSpec, models, resolve


@dataclass(frozen=True)
class ModelChoice:
    spec: ModelSpec
    folder: Path | None
    reason: str
    passed: tuple[Any, ...] = ()
    geometry: Any = None
    vocabulary: Any = None


def choose(
    name: str = AUTO, res: Any = None, device: str = "auto", machine: Any = None, missing_ok: bool = False
) -> ModelChoice:
    try:
        return ModelChoice(*resolve(name))
    except FpsgenError as error:
        spec = next((spec for spec in models() if name in (spec.name, spec.source)), None)
        if error.code != MODEL or not missing_ok or spec is None:
            raise
        return ModelChoice(spec, None, "chosen by name")
