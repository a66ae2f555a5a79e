"""What a pipeline folder holds, judged from its small files alone: no torch, no diffusers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fpsgen.errors import MODEL, FpsgenError

PIPELINE = "WanPipeline"
PARTS = {  # component -> (library, classes)
    "transformer": ("diffusers", ("WanTransformer3DModel",)),
    "vae": ("diffusers", ("AutoencoderKLWan",)),
    "text_encoder": ("transformers", ("UMT5EncoderModel",)),
    "tokenizer": ("transformers", ()),  # any of that library
    "scheduler": ("diffusers", ()),
}
WEIGHTED = ("transformer", "vae", "text_encoder")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from `path`. Raises FpsgenError MODEL naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise broken(path.parent, f"{path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise broken(path.parent, f"{path.name} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise broken(path.parent, f"{path.name} is not a JSON object")
    return data


def broken(folder: Path, what: str) -> FpsgenError:
    """The error for a model folder that cannot be used."""
    return FpsgenError(
        f"the model in {folder} is not intact: {what}", "fetch it again, or choose another with --model", MODEL
    )


def check_folder(folder: str | Path) -> dict[str, Any]:
    """Check that `folder` is a whole text-to-video Wan pipeline with safetensors weights; returns its model_index.

    Judged: class and components (nothing but diffusers' and transformers' own classes), configurations, and that
    every weight file exists, shards included. Raises FpsgenError MODEL saying what is wrong.
    """
    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind != PIPELINE:
        raise FpsgenError(
            f"{folder} holds a {kind}, not a {PIPELINE}", "choose a text-to-video Wan2.1 model with --model", MODEL
        )
    for part, (library, classes) in PARTS.items():
        entry = index.get(part)
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(name, str) for name in entry):
            raise broken(folder, f"model_index.json names no {part}")
        if entry[0] != library or (classes and entry[1] not in classes):
            raise FpsgenError(
                f"{folder} has {entry[0]}.{entry[1]} as {part}; only {library}'s own classes are loaded",
                "choose a Wan2.1 model in diffusers' format with --model",
                MODEL,
            )
    for part, entry in index.items():
        if isinstance(entry, list) and part not in PARTS and entry[:1] != [None]:
            raise FpsgenError(
                f"{folder} has the component {part} ({'.'.join(map(str, entry))}), which fpsgen does not handle",
                "choose a text-to-video Wan2.1 model with --model",
                MODEL,
            )
    for part in WEIGHTED:
        read_json(folder / part / "config.json")
        weight_files(folder / part)
    read_json(folder / "scheduler" / "scheduler_config.json")
    read_json(folder / "tokenizer" / "tokenizer_config.json")
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise broken(folder, "the tokenizer's files are missing")
    return index


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component. Raises FpsgenError MODEL if one is missing or only pickles are there."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = sorted(set(read_json(indices[0]).get("weight_map", {}).values()))
        if any(os.path.basename(name) != name for name in names):
            raise broken(folder, f"{indices[0].name} points outside the folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise broken(folder, f"{len(missing)} of {len(names)} weight files are missing, first {missing[:1]}")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        what = f"{folder.name} has pickled weights only ({pickled[0].name})" if pickled else "it has no weights"
        raise broken(folder, what if pickled else f"{folder.name} has no weights")
    return files
