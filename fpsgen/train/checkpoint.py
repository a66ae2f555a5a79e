"""Checkpoints of a run: folders of safetensors whose list of digests is written last. A folder that lacks it, or does
not match it, does not count: the one before it does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fpsgen.errors import FpsgenError, lacks_permission
from fpsgen.files import cannot_write, make_folder, read_json, sync, write_text, writing_tensors
from fpsgen.models.catalog.manifest import sha256
from fpsgen.train.disk import use_default_modes

STATE = "checkpoint.json"
SCHEMA = "fpsgen.checkpoint/1"


def save(
    folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any], keep: int
) -> Path:
    """Write folder/step-N with one file for each name of `tensors`, then forget all but the last `keep`. Later ones are
    broken, since a run goes on from the newest whole one: they go first.

    state: JSON's types. Raises FpsgenError DISK; nothing under a final name is left then.
    """
    path = folder / f"step-{step:07d}"
    part = folder / f".step-{step:07d}.part"
    shutil.rmtree(part, ignore_errors=True)
    make_folder(part)
    try:
        files = []
        for name, values in tensors.items():
            file = part / f"{name}.safetensors"
            with writing_tensors():
                save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, file)
            sync(file)
            files.append({"name": file.name, "size": file.stat().st_size, "sha256": sha256(file)})
        row = {"schema": SCHEMA, "step": step, "state": state, "files": files}
        write_text(json.dumps(row, indent=1) + "\n", part / STATE)
        use_default_modes(part)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
        sync(folder)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    found = _found(folder)
    whole = found[: found.index(path) + 1]
    for old in (*found[len(whole) :], *whole[:-keep]):
        shutil.rmtree(old, ignore_errors=True)
    return path


def latest(folder: Path) -> tuple[int, dict[str, dict[str, torch.Tensor]], dict[str, Any]] | None:
    """Step, tensors by file and state of the newest whole checkpoint; None if there is none."""
    return next((found for path in reversed(_found(folder)) if (found := read(path)) is not None), None)


def read(path: Path) -> tuple[int, dict[str, dict[str, torch.Tensor]], dict[str, Any]] | None:
    """Step, tensors by file and state of one checkpoint; None if it is not whole. Raises what says that this user may
    not read it: FpsgenError BAD_INPUT, PermissionError.
    """
    try:
        row = read_json(path / STATE, 1 << 24, str(path / STATE))
        whole = row["schema"] == SCHEMA and all(
            (path / file["name"]).stat().st_size == file["size"] and sha256(path / file["name"]) == file["sha256"]
            for file in row["files"]
        )
        if whole and type(row["step"]) is int and isinstance(row["state"], dict):
            names = [Path(file["name"]).stem for file in row["files"]]
            return row["step"], {name: load_file(path / f"{name}.safetensors") for name in names}, row["state"]
    except (FpsgenError, OSError, KeyError, TypeError) as error:
        if lacks_permission(error):
            raise
    return None


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())
