"""LoRA files in diffusers' format. Those that fpsgen trained carry their schedule in the file's metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, ENVIRONMENT, FpsgenError
from fpsgen.fields import choice, fields, parse_json, raw
from fpsgen.text import show

KEY, SCHEMA = "fpsgen", "fpsgen.lora/1"


def lora_schedule(path: Path) -> Schedule | None:
    """The schedule that an adapter was trained with, None where it does not say. Raises FpsgenError BAD_INPUT."""
    what = f"LoRA {show(path)}"
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise FpsgenError(
            f"{what} is no safetensors file: {show(error, 120)}", "name another file", BAD_INPUT
        ) from error
    if about is None:
        return None
    spec = {"schema": choice([SCHEMA]), "schedule": raw(1 << 20)}
    try:
        return Schedule.from_toml(fields(parse_json(about, what), spec, what, more=True)["schedule"])
    except ValueError as error:
        raise FpsgenError(f"{what}: {show(error, 200)}", "export it again", BAD_INPUT) from error


def add_lora_file(pipe: Any, path: Path) -> None:
    """Merge an adapter into the transformer of a WanPipeline, and attach its schedule, which fpsgen.apply then takes as
    the checkpoint's own. Raises FpsgenError: BAD_INPUT for a file that does not fit, ENVIRONMENT without peft.
    """
    schedule = lora_schedule(path)
    try:
        pipe.load_lora_weights(str(path.resolve().parent), weight_name=path.name, local_files_only=True)
        adapted = any(hasattr(module, "lora_A") for module in pipe.transformer.modules())
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        if "PEFT" in str(error):
            raise FpsgenError(
                "LoRA needs peft, which is not installed", "pip install 'fpsgen[train]'", ENVIRONMENT
            ) from error
        raise _unfit(path, show(error, 200)) from error
    if not adapted:
        raise _unfit(path, "none of its tensors belong to the transformer")
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    pipe.transformer.fpsgen_schedule = schedule


def _unfit(path: Path, why: str) -> FpsgenError:
    return FpsgenError(
        f"LoRA {show(path)} does not fit the model: {why}", "name the model it was made for with -m", BAD_INPUT
    )
