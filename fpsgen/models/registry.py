"""The models that fpsgen knows (weights/registry.toml), and which of them is meant and where it lies. No torch here."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from fpsgen.assets import weights_dir
from fpsgen.errors import MODEL, FpsgenError
from fpsgen.models.folder import check_folder, read_json

AUTO = "auto"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ModelSpec:
    """One model and its defaults. Sizes in pixels; parameters in thousand millions; memory and downloads in GB.

    source: hub repository, or folder if embedded or local. trained_schedule: its weights were tuned with a schedule
    of their own, schedule.toml in its folder.
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
        row["resolutions"] = {name: (width, height) for name, (width, height) in row["resolutions"].items()}
        rows.append(ModelSpec(**row))
    return tuple(rows)


def models() -> tuple[ModelSpec, ...]:
    """The models of weights/registry.toml, smallest first."""
    return read_registry(weights_dir() / "registry.toml")


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
    if _HUB_ID.fullmatch(name) and not folder.exists():
        found = cached(name, "main")
        if found is None:
            raise _missing(name, name, "main", None)
        check_folder(found)
        return replace(describe(found), name=name, source=name, revision=found.name), found, "chosen by repository"
    what = "is a file, not a model folder" if folder.exists() else "is not known, and no such folder exists"
    known = ", ".join([AUTO, *(spec.name for spec in models())])
    raise FpsgenError(f"model {name!r} {what}", f"choose from {known}, a folder, or OWNER/REPOSITORY", MODEL)


def describe(folder: Path) -> ModelSpec:
    """A spec for a folder that the registry does not know: the defaults of the known model nearest to it in size."""
    config = read_json(folder / "transformer" / "config.json")
    width = int(config.get("num_attention_heads", 0)) * int(config.get("attention_head_dim", 0))
    like = models()[0 if width < 1024 else 1 if width < 4096 else 2]
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
    return cached(spec.source, spec.revision)


def _require(spec: ModelSpec) -> Path:
    folder = on_disk(spec)
    if folder is None:
        raise _missing(spec.name, spec.source, spec.revision, spec)
    check_folder(folder)
    return folder


def _missing(name: str, source: str, revision: str, spec: ModelSpec | None) -> FpsgenError:
    if spec is not None and spec.embedded:
        return FpsgenError(
            f"model {name} is not in {weights_dir() / source}", "install fpsgen again: it comes with it", MODEL
        )
    size = f" ({spec.download_gb:g} GB)" if spec is not None else ""
    pin = "" if revision == "main" else f" --revision {revision}"
    return FpsgenError(f"model {name} is not on this machine{size}", f"fetch it: hf download {source}{pin}", MODEL)


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
    smallest = models()[0]
    raise FpsgenError(
        f"no model is on this machine: {'; '.join(passed)}; {smallest.name} is missing",
        "install fpsgen again (nano comes with it), or fetch one: hf download " + models()[1].source,
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
