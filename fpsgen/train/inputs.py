"""What a run reads beside its settings: a model's files and prepared videos. It does not go on with others."""

from __future__ import annotations

import json
from pathlib import Path

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.files import read_json, write_text
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.models.catalog.manifest import sha256
from fpsgen.text import show
from fpsgen.train.config import TrainConfig
from fpsgen.train.prep.identity import of_model
from fpsgen.train.prep.shards import DATA

INPUTS = "inputs.json"


def choose_model(config: TrainConfig) -> ModelChoice:
    """The run's model. Raises FpsgenError MODEL; BAD_INPUT where it cannot make videos of the run's size."""
    choice = choose(config.model)
    refused = choice.geometry.refuses(config.width, config.height, config.frames)
    if refused:
        what = f"run {show(config.name)}, model {choice.spec.name}: {refused}"
        raise FpsgenError(what, "change width, height or frames in the run's file", BAD_INPUT)
    return choice


def check_inputs(folder: Path, choice: ModelChoice, data: str, write: bool = True) -> None:
    """Note in a run's folder what it reads, or compare it with what is noted there. data: folder of prepared videos,
    "" without. Raises FpsgenError BAD_INPUT naming what changed since the run began.
    """
    path = folder / INPUTS
    known = read_json(path, 1 << 20, show(path)) if path.exists() else {}
    found = {"model": of_model(choice)["model_files"]}
    table = Path(data) / DATA
    if data and table.is_file():
        found["data"] = sha256(table)
    changed = [name for name, digest in found.items() if known.get(name, digest) != digest]
    if changed:
        what = f"{' and '.join(changed)} changed since the run in {show(folder)} began"
        raise FpsgenError(what, "put back what it began with, or name another folder with -o", BAD_INPUT)
    if write:
        write_text(json.dumps(known | found) + "\n", path, overwrite=True)
