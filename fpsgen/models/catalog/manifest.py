"""manifest.json: name, size and sha256 of every file of a model folder; for folders that do not come from the hub."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from fpsgen.errors import MODEL
from fpsgen.fields import Field, choice, fields, many, parse_json, whole
from fpsgen.files import read_text, write_text
from fpsgen.models.catalog.folder import MANIFEST, broken, model_files

SCHEMA = "fpsgen.manifest/1"
_LIMIT = 4 << 20


def write_manifest(folder: Path) -> Path:
    """Write the manifest of a model folder from what lies in it now, as the last step of making one."""
    rows = []
    for path in model_files(folder):
        if path.name != MANIFEST:
            name = path.relative_to(folder).as_posix()
            rows.append({"name": name, "size": path.stat().st_size, "sha256": sha256(path)})
    return write_text(_text(rows), folder / MANIFEST, overwrite=True)


def read_manifest(folder: Path) -> dict[str, tuple[int, str]] | None:
    """Name -> (size, sha256), None where there is no manifest. Raises FpsgenError MODEL for one that is not as
    `write_manifest` writes it, byte by byte.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    text = read_text(path, _LIMIT, f"{MANIFEST} of {folder}", MODEL)
    table = fields(
        parse_json(text, f"{MANIFEST} of {folder}", MODEL),
        {"schema": choice([SCHEMA]), "files": many(Field(_row, "a file with name, size and sha256"), 1, 10_000)},
        f"{MANIFEST} of {folder}",
        MODEL,
    )
    rows = list(table["files"])
    if text != _text(rows):
        raise broken(folder, f"{MANIFEST} was changed")
    return {row["name"]: (row["size"], row["sha256"]) for row in rows}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(rows: list[dict]) -> str:
    return json.dumps({"schema": SCHEMA, "files": rows}, indent=1) + "\n"


def _row(value: object) -> dict:
    if not isinstance(value, dict) or list(value) != ["name", "size", "sha256"] or not isinstance(value["name"], str):
        raise ValueError
    whole(0, 1 << 50).check(value["size"])
    if len(str(value["sha256"])) != 64:
        raise ValueError
    return value
