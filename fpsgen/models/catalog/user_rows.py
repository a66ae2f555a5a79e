"""A user's own models: models.toml beside the config file, judged with the same bounds as the command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.fields import Field, Spec, choice, fields, many, mapping, real, switch, text, whole
from fpsgen.files import read_toml
from fpsgen.settings.table import SETTINGS
from fpsgen.text import show

if TYPE_CHECKING:
    from fpsgen.models.catalog.registry import ModelSpec

AUTO = "auto"
EXAMPLE = 'a row is [[model]] with name = "mine", source = "OWNER/REPOSITORY", like = "wan2.1-1.3b"'
_LIMIT = 1 << 20
_NOT_SET = object()


def read_user_rows(path: Path, shipped: tuple[ModelSpec, ...]) -> list[dict[str, Any]]:
    """Rows of a user's models.toml with all values of a ModelSpec: `[[model]]` with name, source (hub repository or
    folder) and like (a shipped model, whose values stand where the row sets none); none where there is no such file.

    Raises FpsgenError BAD_INPUT naming file, row and key.
    """
    if not os.path.lexists(path):
        return []
    known = {spec.name: spec for spec in shipped}
    table = read_toml(path, _LIMIT, str(path), BAD_INPUT)
    found = table.get("model", [])
    if not isinstance(found, list) or table.keys() - {"model"}:
        raise FpsgenError(f"{show(path)} holds something else than [[model]] rows", EXAMPLE, BAD_INPUT)
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(found, 1):
        place = f"{show(path)} row {number}"
        values = fields(row, _fields(tuple(known)), place)
        own = {key: value for key, value in values.items() if value is not _NOT_SET and key != "like"}
        if own["name"] in (AUTO, *known, *(other["name"] for other in rows)):
            raise FpsgenError(f"{place}: the name {own['name']!r} is taken", "choose another", BAD_INPUT)
        rows.append(_complete(known[values["like"]], own, place))
    return rows


def _complete(like: ModelSpec, own: dict[str, Any], place: str) -> dict[str, Any]:
    base = {field.name: getattr(like, field.name) for field in dataclasses.fields(like)}
    base |= {"embedded": False, "revision": "main", "description": f"like {like.name}", "licence": "unknown"}
    base |= {"download_gb": 0.0, "trained_schedule": False, "trained_sizes": (), "transformer": {}}
    row = base | own
    if "resolutions" in own:
        row["notes"] = {}
    sizes = {
        "width and height": (row["width"], row["height"]),
        **{f"resolutions.{name}": size for name, size in row["resolutions"].items()},
    }
    for name, (width, height) in sizes.items():
        wrong = like.geometry.refuses(width, height, row["frames"])
        if wrong:
            remedy = f"choose values that {like.name} could make, such as {like.width}x{like.height}"
            raise FpsgenError(f"{place}: {name}: {wrong}", remedy, BAD_INPUT)
    if row["max_sequence_length"] > like.max_sequence_length:
        what = f"{place}: max_sequence_length is {row['max_sequence_length']}, and {like.name} has room for"
        raise FpsgenError(f"{what} {like.max_sequence_length} tokens", "leave it out", BAD_INPUT)
    return row


def _fields(names: tuple[str, ...]) -> Spec:
    """The keys of a row; a value that is not set is taken from the model in `like`."""

    def setting(name: str) -> Field:
        """A number with the bounds that the option of this name has."""
        parser = SETTINGS[name].parser

        def check(value: Any) -> Any:
            if type(value) not in (int, float):
                raise ValueError
            return parser.read(repr(value))

        return Field(check, parser.wanted(), _NOT_SET)

    def optional(field: Callable[..., Field], *bounds: Any, **more: Any) -> Field:
        return field(*bounds, default=_NOT_SET, **more)

    return {
        "name": text(60),
        "source": text(1000),
        "like": choice(names),
        "revision": optional(text, 200),
        "description": optional(text, 300),
        "family": optional(text, 60),
        "licence": optional(text, 100),
        "parameters": optional(real, 0, 10_000),
        "download_gb": optional(real, 0, 100_000),
        "min_memory_gb": optional(real, 0, 10_000),
        "trained_schedule": optional(switch),
        "width": optional(whole, 16, 8192),
        "height": optional(whole, 16, 8192),
        **{name: setting(name) for name in ("frames", "fps", "steps", "guidance", "shift")},
        "max_sequence_length": optional(whole, 1, 100_000),
        "negative_prompt": optional(text, 10_000, empty=True),
        "resolutions": optional(mapping, many(whole(16, 8192), 2, 2), 100),
    }
