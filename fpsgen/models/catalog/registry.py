"""The models that fpsgen knows (weights/registry.toml), and which of them is meant and where it lies. No torch here."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fpsgen.assets import weights_dir
from fpsgen.errors import BAD_INPUT, MODEL, FpsgenError
from fpsgen.models.catalog.folder import check_folder, read_json
from fpsgen.settings.gather import user_config_file
from fpsgen.text import show

AUTO = "auto"
USER_ROWS = "models.toml"  # beside the user's config file
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ModelSpec:
    """One model and its defaults. Sizes in pixels; parameters in thousand millions; memory and downloads in GB.

    source: hub repository, or folder if embedded or local. trained_schedule: its weights were tuned with a schedule
    of their own, schedule.toml in its folder. trained_sizes: (width, height) that it makes well, empty for any.
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
    resolutions: dict[str, tuple[int, int]]
    trained_sizes: tuple[tuple[int, int], ...]

    def __hash__(self) -> int:
        return hash((self.name, self.source, self.revision))


@lru_cache(maxsize=4)
def read_registry(path: Path) -> tuple[ModelSpec, ...]:
    """Rows of a registry file, in its order. Raises ValueError for rows that are not ModelSpecs."""
    wanted = {field.name for field in fields(ModelSpec)}
    rows = []
    for row in tomllib.loads(path.read_text(encoding="utf-8"))["model"]:
        if row.keys() != wanted:
            raise ValueError(f"{path}: row {row.get('name')!r} has wrong keys: {sorted(row.keys() ^ wanted)}.")
        rows.append(_spec(row))
    return tuple(rows)


def shipped() -> tuple[ModelSpec, ...]:
    """The models of weights/registry.toml, smallest first."""
    return read_registry(weights_dir() / "registry.toml")


def models() -> tuple[ModelSpec, ...]:
    """The shipped models, then the user's own. Raises FpsgenError BAD_INPUT for rows that cannot be used."""
    path = user_config_file().with_name(USER_ROWS)
    return shipped() + (read_user_rows(path) if path.is_file() else ())


def read_user_rows(path: Path) -> tuple[ModelSpec, ...]:
    """Models of a user's models.toml: `[[model]]` with name, source (hub repository or folder) and like (a shipped
    model, whose values stand where the row sets none). Raises FpsgenError BAD_INPUT naming file and row.
    """
    known = {spec.name: spec for spec in shipped()}
    example = 'a row is [[model]] with name = "mine", source = "OWNER/REPOSITORY", like = "wan2.1-1.3b"'
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("model", [])
    except (OSError, ValueError) as error:
        raise FpsgenError(f"{path} cannot be read: {show(error)}", example, BAD_INPUT) from error
    rows: list[ModelSpec] = []
    for number, row in enumerate(table if isinstance(table, list) else [table], 1):
        place = f"{path} row {number}"
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("name", "source")):
            raise FpsgenError(f"{place} has no name or source", example, BAD_INPUT)
        like = known.get(row.get("like", ""))
        if like is None:
            names = ", ".join(known)
            raise FpsgenError(f"{place}: like is {show(row.get('like'))!r}", f"choose from {names}", BAD_INPUT)
        taken = (*known, *(spec.name for spec in rows), AUTO)
        if row["name"] in taken or not row["name"].strip():
            raise FpsgenError(f"{place}: the name {show(row['name'])!r} is taken", "choose another", BAD_INPUT)
        base = {field.name: getattr(like, field.name) for field in fields(ModelSpec)}
        base |= {"embedded": False, "revision": "main", "description": f"like {like.name}", "licence": "unknown"}
        base |= {"download_gb": 0.0, "trained_schedule": False, "trained_sizes": ()}
        own = {key: value for key, value in row.items() if key != "like"}
        wrong = [key for key in own if key not in base or not _same_kind(own[key], base[key])]
        if wrong:
            keys = ", ".join(key for key in base if key != "embedded")
            raise FpsgenError(f"{place}: {', '.join(map(show, wrong))} cannot be used", f"keys are {keys}", BAD_INPUT)
        rows.append(_spec(base | own))
    return tuple(rows)


def _same_kind(value: object, like: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number if isinstance(like, float) else type(value) is type(like)


def _spec(row: dict[str, Any]) -> ModelSpec:
    sizes = {name: (width, height) for name, (width, height) in row["resolutions"].items()}
    trained = tuple((width, height) for width, height in row["trained_sizes"])
    return ModelSpec(**{**row, "resolutions": sizes, "trained_sizes": trained})


def resolve(name: str = AUTO) -> tuple[ModelSpec, Path, str]:
    """(model, its folder on this machine, why this one). Nothing is downloaded.

    name: "auto" (the best model on disk that fits this machine), a name of the registry, a folder, or a hub id.
    Raises FpsgenError MODEL where it is missing (with the command that fetches it), not intact, or not known.
    """
    if name == AUTO:
        return _best()
    spec = next((spec for spec in models() if name in (spec.name, spec.source)), None)
    if spec is not None:
        return spec, _require(spec), "chosen by name"
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        check_folder(folder)
        return describe(folder), folder.resolve(), "chosen by folder"
    if HUB_ID.fullmatch(name) and not folder.exists():
        found = cached(name, "main")
        if found is None:
            raise missing(name, None)
        check_folder(found)
        return replace(describe(found), name=name, source=name, revision=found.name), found, "chosen by repository"
    what = "is a file, not a model folder" if folder.exists() else "is not known, and no such folder exists"
    known = ", ".join([AUTO, *(spec.name for spec in models())])
    raise FpsgenError(f"model {name!r} {what}", f"choose from {known}, a folder, or OWNER/REPOSITORY", MODEL)


def describe(folder: Path) -> ModelSpec:
    """A spec for a folder that the registry does not know: the defaults of the known model nearest to it in size."""
    config = read_json(folder / "transformer" / "config.json")
    width = int(config.get("num_attention_heads", 0)) * int(config.get("attention_head_dim", 0))
    like = shipped()[0 if width < 1024 else 1 if width < 4096 else 2]
    tokens = read_json(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length", like.max_sequence_length)
    return replace(
        like,
        name=folder.resolve().name,
        source=str(folder),
        embedded=False,
        revision="local",
        description=f"local folder, defaults of {like.name}",
        licence="unknown",
        download_gb=0.0,
        max_sequence_length=int(min(tokens, like.max_sequence_length)),
        trained_sizes=(),
        trained_schedule=(folder / "schedule.toml").is_file(),
    )


def cached(repository: str, revision: str) -> Path | None:
    """Snapshot of a hub repository in the Hugging Face cache, or None. A commit that is not there: that of "main"."""
    from huggingface_hub import try_to_load_from_cache

    for name in dict.fromkeys((revision, "main")):
        found = try_to_load_from_cache(repository, "model_index.json", revision=name)
        if isinstance(found, str):
            return Path(found).parent
    return None


def on_disk(spec: ModelSpec) -> Path | None:
    """Folder of a model of the registry, if it is on this machine (not checked for being whole)."""
    if spec.embedded:
        folder = weights_dir() / spec.source
        return folder if (folder / "model_index.json").is_file() else None
    local = Path(spec.source).expanduser()
    if local.is_dir():
        return local.resolve()
    return cached(spec.source, spec.revision)


def _require(spec: ModelSpec) -> Path:
    folder = on_disk(spec)
    if folder is None:
        raise missing(spec.name, spec)
    check_folder(folder)
    return folder


def missing(name: str, spec: ModelSpec | None) -> FpsgenError:
    """The error for a model that is not on this machine, with the command that fetches it."""
    if spec is not None and spec.embedded:
        return FpsgenError(
            f"model {name} is not in {weights_dir() / spec.source}", "install fpsgen again: it comes with it", MODEL
        )
    size = f" ({spec.download_gb:g} GB)" if spec is not None and spec.download_gb else ""
    return FpsgenError(f"model {name} is not on this machine{size}", f"fetch it: fpsgen models pull {name}", MODEL)


def _best() -> tuple[ModelSpec, Path, str]:
    """The last model of the registry that is on disk, whole, and fits; the reason says why better ones were passed."""
    passed = []
    for spec in reversed(models()):
        folder = on_disk(spec)
        if folder is None:
            if not spec.embedded:
                passed.append(f"{spec.name} is not on disk")
            continue
        lack = _lacks(spec)
        if lack:
            passed.append(f"{spec.name} {lack}")
            continue
        try:
            check_folder(folder)
        except FpsgenError as error:
            passed.append(f"{spec.name} is not usable ({error.message})")
            continue
        why = "the best model that is on disk and fits"
        return spec, folder, f"{why}; {'; '.join(passed)}" if passed else why
    smallest = shipped()[0]
    raise FpsgenError(
        f"no model is on this machine: {'; '.join(passed)}; {smallest.name} is missing",
        f"install fpsgen again (nano comes with it), or fetch one: fpsgen models pull {shipped()[1].name}",
        MODEL,
    )


def _lacks(spec: ModelSpec) -> str:
    """What this machine lacks for a model, or nothing. torch is imported only where it matters."""
    if not spec.min_memory_gb:
        return ""
    import torch

    if not torch.cuda.is_available():
        return "needs a CUDA GPU"
    memory = max(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())) / 1e9
    return f"needs {spec.min_memory_gb:g} GB of GPU memory, not {memory:.0f}" if memory < spec.min_memory_gb else ""
