"""The models that fpsgen knows by name: weights/registry.toml, and the user's own models.toml. No torch here."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from fpsgen.assets import weights_dir
from fpsgen.models.catalog.geometry import Geometry, Size
from fpsgen.models.catalog.user_rows import read_user_rows
from fpsgen.settings.gather import user_config_file

USER_ROWS = "models.toml"  # beside the user's config file


@dataclass(frozen=True)
class ModelSpec:
    """One model and its defaults. Sizes in pixels; parameters in thousand millions; memory and downloads in GB.

    source: hub repository, or folder if embedded or local. trained_schedule: its weights were tuned with a schedule
    of their own, schedule.toml in its folder. resolutions: sizes by name; notes: what to say of some of them.
    trained_sizes: the only sizes that look right, empty where there is no such limit. transformer: its shape, for
    random weights; empty where the folder says it. mag_ratios: one for each of some steps, for the step cache MagCache;
    empty where they are not known.
    """

    name: str
    source: str
    embedded: bool
    revision: str
    description: str
    family: str
    licence: str
    parameters: float
    download_gb: float
    min_memory_gb: float
    trained_schedule: bool
    width: int
    height: int
    frames: int
    fps: int
    steps: int
    guidance: float
    shift: float
    max_sequence_length: int
    negative_prompt: str
    resolutions: dict[str, Size]
    notes: dict[str, str]
    trained_sizes: tuple[Size, ...]
    geometry: Geometry
    transformer: dict[str, int]
    mag_ratios: tuple[float, ...]

    def __hash__(self) -> int:
        return hash((self.name, self.source, self.revision))

    def note(self, size: Size) -> str:
        """What to say of a video of this size, also upright; "" if nothing."""
        sizes = (size, size[::-1])
        return next((text for name, text in self.notes.items() if self.resolutions[name] in sizes), "")

    def makes(self, res: str | Size | None) -> bool:
        """Whether a size is one that the model itself can make: a name of `resolutions`, or a width and height."""
        if res is None or isinstance(res, str):
            return res is None or res in self.resolutions
        if self.trained_sizes:
            return res in self.trained_sizes
        return not self.geometry.refuses(*res, self.frames)


@lru_cache(maxsize=4)
def read_registry(path: Path) -> tuple[ModelSpec, ...]:
    """Rows of a registry file, in its order. Raises ValueError for rows that are not ModelSpecs."""
    wanted = {field.name for field in fields(ModelSpec)}
    rows = []
    for row in tomllib.loads(path.read_text(encoding="utf-8"))["model"]:
        if row.keys() != wanted:
            raise ValueError(f"{path}: row {row.get('name')!r} has wrong keys: {sorted(row.keys() ^ wanted)}.")
        rows.append(make_spec(row))
    return tuple(rows)


def shipped() -> tuple[ModelSpec, ...]:
    """The models of weights/registry.toml, smallest first."""
    return read_registry(weights_dir() / "registry.toml")


def models() -> tuple[ModelSpec, ...]:
    """The shipped models, then the user's own. Raises FpsgenError BAD_INPUT for rows that cannot be used."""
    path = user_config_file().with_name(USER_ROWS)
    return shipped() + tuple(make_spec(row) for row in read_user_rows(path, shipped()))


def find_spec(name: str) -> ModelSpec | None:
    """The model of that name or with that source."""
    return next((spec for spec in models() if name in (spec.name, spec.source)), None)


def make_spec(row: dict[str, Any]) -> ModelSpec:
    """A row of a registry file as ModelSpec."""
    geometry = row["geometry"]
    if isinstance(geometry, dict):
        values: dict[str, Any] = {**geometry, "patch": tuple(geometry["patch"])}
        geometry = Geometry(**values)
    sizes = {name: (size[0], size[1]) for name, size in row["resolutions"].items()}
    trained = tuple((size[0], size[1]) for size in row["trained_sizes"])
    ratios = tuple(row["mag_ratios"])
    return ModelSpec(
        **row | {"resolutions": sizes, "trained_sizes": trained, "geometry": geometry, "mag_ratios": ratios}
    )
