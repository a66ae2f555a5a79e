"""What a pipeline folder holds, judged from its small files alone: no torch, no diffusers.

A folder is data. Classes come from closed lists, and what would make a library fetch or run code is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fpsgen.errors import MODEL, FpsgenError, lacks_permission, may_not_be_read
from fpsgen.fields import fields
from fpsgen.files import read_json as read_json_file
from fpsgen.models.catalog.configs import CONFIGS, KEPT_SCHEDULERS, PARTS, check_fit, refuse_code
from fpsgen.text import show

INDEX = "model_index.json"  # a hub snapshot without it is not whole
MANIFEST, SCHEDULE, VOCABULARY = "manifest.json", "schedule.toml", "vocabulary.json"  # beside model_index.json
EXTRAS = (SCHEDULE, VOCABULARY, MANIFEST)
PIPELINE = "WanPipeline"
WEIGHTED = ("transformer", "vae", "text_encoder")
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIG_NAMES = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}  # others: config.json
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?", re.ASCII)
_SMALL = re.compile(r"\w[\w-]*(\.[\w-]+)*\.(json|model|txt)", re.ASCII)
_LIMIT = 32 << 20  # bytes of a JSON file; a tokenizer.json has 17 MB
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class PipelineConfigs(NamedTuple):
    """What the small files of a pipeline say, see PipelineFolder."""

    configs: dict[str, dict[str, Any]]
    scheduler: str
    tokenizer: str
    expand_timesteps: bool


@dataclass(frozen=True)
class PipelineFolder:
    """A folder that was judged. configs: by part, with the values that its class takes, defaults filled in; weights:
    by part. scheduler, tokenizer: names of their classes.
    """

    folder: Path
    configs: dict[str, dict[str, Any]]
    weights: dict[str, tuple[Path, ...]]
    scheduler: str
    tokenizer: str
    expand_timesteps: bool  # a timestep per token, as Wan2.2 5B takes it

    @property
    def replaced_scheduler(self) -> str | None:
        """The class of the folder's scheduler, if it cannot predict flow and UniPC takes its place."""
        return None if self.scheduler in KEPT_SCHEDULERS else self.scheduler

    def __hash__(self) -> int:
        return hash(self.folder)


def check_folder(folder: str | Path) -> PipelineFolder:
    """Judge a text-to-video Wan pipeline with safetensors weights: its classes, its configurations and whether they
    fit together, and that every file is there, shards included. Raises FpsgenError MODEL saying what is wrong.
    """
    folder = Path(folder)
    judged = check_configs(str(folder), lambda name: folder / name)
    weights = {part: weight_files(folder / part) for part in WEIGHTED}
    for part in PARTS:
        if os.path.exists(folder / part / "adapter_config.json"):
            raise broken(folder, f"{part} holds an adapter (adapter_config.json), which fpsgen does not load")
    if not any(os.path.isfile(folder / "tokenizer" / name) for name in TOKENIZER_FILES):
        raise broken(folder, "the tokenizer's files are missing")
    return PipelineFolder(folder, judged.configs, weights, judged.scheduler, judged.tokenizer, judged.expand_timesteps)


def check_configs(where: str, path_of: Callable[[str], Path]) -> PipelineConfigs:
    """Judge the small files of a pipeline: classes, configurations, whether they fit together. where: the folder or
    repository. path_of: where a file of it lies, by its name in it. Raises FpsgenError MODEL.
    """
    index = read_json(path_of(INDEX), f"{INDEX} of {where}")
    scheduler, tokenizer = check_index(index, where)
    configs = {}
    for part in PARTS:
        name = f"{part}/{CONFIG_NAMES.get(part, 'config.json')}"
        what = f"{name} of {where}"
        table = read_json(path_of(name), what)
        refuse_code(table, what)
        configs[part] = fields(table, CONFIGS[part], what, MODEL, more=True, example=_REMEDY)
        if part == "scheduler":
            configs[part] |= {"config": table}
    check_fit(configs, where)
    return PipelineConfigs(configs, scheduler, tokenizer, index.get("expand_timesteps") is True)


def check_index(index: dict[str, Any], what: str) -> tuple[str, str]:
    """The classes of scheduler and tokenizer that a model_index.json names; all parts must be of the closed lists.
    what: the folder or repository. Raises FpsgenError MODEL.
    """
    kind = index.get("_class_name")
    if kind != PIPELINE:
        remedy = "choose a text-to-video Wan2.1 model with --model"
        raise FpsgenError(f"{show(what)} holds a {show(kind, 60)}, not a {PIPELINE}", remedy, MODEL)
    refuse_code(index, f"{INDEX} of {what}")
    for part, (library, classes) in PARTS.items():
        entry = index.get(part)
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(name, str) for name in entry):
            raise broken(what, f"{INDEX} names no {part}")
        if entry[0] != library or entry[1] not in classes:
            named = show(".".join(entry), 80)
            raise FpsgenError(
                f"{show(what)} has {named} as {part}, which is not a class that fpsgen loads",
                f"choose a Wan2.1 model in diffusers' format; {part} is {library}.{classes[0]} there",
                MODEL,
            )
    for part, entry in index.items():
        if isinstance(entry, list) and part not in PARTS and entry[:1] != [None]:
            named = show(".".join(map(str, entry)), 80)
            raise FpsgenError(
                f"{show(what)} has the component {show(part, 60)} ({named}), which fpsgen does not handle",
                "choose a text-to-video Wan2.1 model with --model",
                MODEL,
            )
    return index["scheduler"][1], index["tokenizer"][1]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of one part. Raises FpsgenError MODEL if one is missing or only pickles are there."""
    stem = STEMS[folder.name]
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if os.path.isfile(whole) and os.path.isfile(index):
        raise broken(folder.parent, f"{folder.name} has both {whole.name} and {index.name}")
    if os.path.isfile(whole):
        return (whole,)
    if not os.path.isfile(index):
        pickled = sorted(name for name in os.listdir(folder) if name.endswith(PICKLES)) if os.path.isdir(folder) else []
        what = f"pickled weights only ({show(pickled[0], 60)})" if pickled else f"no {whole.name}"
        raise broken(folder.parent, f"{folder.name} has {what}")
    names = shards(index, folder.name, folder.parent, lambda name: os.path.isfile(folder / name))
    return tuple(folder / name for name in names)


def shards(index: Path, part: str, where: Path | str, has: Callable[[str], bool]) -> list[str]:
    """The files of one part that its index names. has: whether a name is there. Raises FpsgenError MODEL."""
    shown = f"{STEMS[part]}.safetensors.index.json"
    table = read_json(index, f"{part}/{shown} of {where}").get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise broken(where, f"{shown} has no weight_map")
    names = sorted(set(table.values()))
    if any(os.path.basename(name) != name or not name.endswith(".safetensors") for name in names):
        raise broken(where, f"{shown} points outside {part}")
    missing = [name for name in names if not has(name)]
    if missing:
        what = f"{len(missing)} of {len(names)} weight files are missing, first {show(missing[0], 80)}"
        raise broken(where, what)
    return names


def wanted(name: str) -> bool:
    """Whether fpsgen reads this file of a pipeline, by its path in it."""
    part, _, file = name.rpartition("/")
    if not part:
        return file == INDEX or file in EXTRAS
    if part in WEIGHTED:
        return file == "config.json" or bool(_WEIGHTS.fullmatch(file))
    return part in PARTS and bool(_SMALL.fullmatch(file))


def model_files(folder: Path) -> list[Path]:
    """Files of a pipeline folder that are read, sorted; links whose target is gone are among them. Raises FpsgenError
    MODEL for a part that may not be read.
    """
    found = [folder / name for name in (INDEX, *EXTRAS)]
    for part in PARTS:
        try:
            found += sorted((folder / part).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            raise may_not_be_read(f"{part} of {show(folder)}", MODEL) from error
        except OSError as error:
            raise broken(folder, f"{part} cannot be read: {error.strerror}") from error
    return [path for path in found if os.path.isfile(path) or path.is_symlink()]


def folder_size(folder: Path) -> int:
    """Bytes of the files of a pipeline folder that are read."""
    return sum(path.stat().st_size for path in model_files(folder) if os.path.exists(path))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises FpsgenError MODEL."""
    try:
        return read_json_file(path, _LIMIT, what, MODEL)
    except FpsgenError as error:
        if lacks_permission(error):
            raise
        raise FpsgenError(error.message, _REMEDY, MODEL) from error


def broken(folder: Path | str, what: str) -> FpsgenError:
    """The error for a model folder that cannot be used."""
    return FpsgenError(f"the model in {show(folder)} is not intact: {what}", _REMEDY, MODEL)


_REMEDY = "fetch it again, or choose another with --model"
