"""What decides the content of prepared data. A folder that was begun with something else is not gone on with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.files import read_json, write_text
from fpsgen.models.catalog.choice import ModelChoice
from fpsgen.models.catalog.folder import MANIFEST, model_files
from fpsgen.models.catalog.manifest import sha256
from fpsgen.text import show
from fpsgen.train.prep.source import Source

IDENTITY = "prep.json"
SCHEMA = "fpsgen.prep/1"


def check_identity(folder: Path, values: dict[str, Any]) -> str:
    """Write prep.json, or compare it with `values` where it is there. Returns the digest of all.

    Raises FpsgenError BAD_INPUT where they differ, naming what does.
    """
    values = json.loads(json.dumps({"schema": SCHEMA} | values))
    path = folder / IDENTITY
    if not path.exists():
        write_text(json.dumps(values, indent=1) + "\n", path)
    was = read_json(path, 1 << 20, str(path))
    other = [name.replace("_", " ") for name, value in values.items() if was.get(name) != value]
    if other:
        what = f"{show(folder)} was prepared with other {', '.join(other)}"
        raise FpsgenError(what, "name another folder with -o, or give the same settings and data", BAD_INPUT)
    return _digest(values)


def of_model(choice: ModelChoice) -> dict[str, Any]:
    """By names and sizes of the model's files, and by their digests where a manifest has them."""
    assert choice.folder is not None
    folder = choice.folder
    files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in model_files(folder)]
    manifest = folder / MANIFEST
    digests = sha256(manifest) if manifest.is_file() else ""
    return {"model": choice.spec.name, "model_files": _digest([choice.spec.revision, files, digests])}


def of_sources(sources: Sequence[Source]) -> dict[str, Any]:
    """By names, captions and sizes."""
    rows = [(source.name, source.caption, source.problem, _size(source)) for source in sources]
    return {"videos_and_captions": _digest(rows)}


def _size(source: Source) -> int | None:
    if source.length is not None:
        return source.length
    return source.path.stat().st_size if os.path.isfile(source.path) else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
