"""LoRA files in diffusers' format. Those that fpsgen trained carry their schedule in the file's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from safetensors import SafetensorError

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, ENVIRONMENT, FpsgenError
from fpsgen.fields import Field, choice, fields, many, mapping, or_null, parse_json, raw, real, text, whole
from fpsgen.files import open_tensors
from fpsgen.models.peft import check_peft
from fpsgen.text import show

KEY, SCHEMA = "fpsgen", "fpsgen.lora/1"
SETTINGS = "lora_adapter_metadata"  # of peft, as diffusers stores them
_PREFIX = "transformer."
_TENSOR = re.compile(r"transformer\.(.+)\.lora_[AB]\.(?:weight|bias)")


def _modules(value: Any) -> Any:
    """Names of the layers that have an adapter, or one pattern."""
    return (text(10_000) if isinstance(value, str) else many(text(1000), 1, 100_000)).check(value)


_SETTINGS = {
    "r": whole(1, 1 << 16),
    "lora_alpha": real(0, 1e6),
    "rank_pattern": or_null(mapping(whole(1, 1 << 16))),
    "alpha_pattern": or_null(mapping(real(0, 1e6))),
    "target_modules": or_null(Field(_modules, "a list of names of layers")),
}


def _schedule(path: Path, metadata: dict[str, str]) -> Schedule | None:
    """The schedule that an adapter was trained with, None where it does not say. Raises FpsgenError BAD_INPUT."""
    what = f"LoRA {show(path)}"
    about = metadata.get(KEY)
    if about is None:
        return None
    spec = {"schema": choice([SCHEMA]), "schedule": raw(1 << 20)}
    try:
        return Schedule.from_toml(fields(parse_json(about, what), spec, what, more=True)["schedule"])
    except ValueError as error:
        raise FpsgenError(f"{what}: {show(error, 200)}", "export it again", BAD_INPUT) from error


def add_lora_file(pipe: Any, path: Path) -> None:
    """Merge an adapter into the transformer of a WanPipeline, and attach its schedule, which fpsgen.apply then takes as
    the checkpoint's own. Raises FpsgenError: BAD_INPUT for a file that does not fit, ENVIRONMENT without peft
    or with an old one.
    """
    check_peft()
    metadata = _metadata(path)
    schedule = _schedule(path, metadata)
    _check_settings(path, metadata)
    place = {"weight_name": path.name, "local_files_only": True, "use_safetensors": True}
    folder = str(path.resolve().parent)
    try:
        with _quiet_diffusers():
            wrong = _judge(type(pipe).lora_state_dict(folder, **place), pipe.transformer)
            if not wrong:
                pipe.load_lora_weights(folder, **place)
    except Exception as error:  # whatever the libraries raise for a file that they cannot use
        if "PEFT" in str(error):
            raise FpsgenError("LoRA needs a newer peft", "pip install -U peft", ENVIRONMENT) from error
        raise _unfit(path, show(error, 200) or type(error).__name__) from error
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise _unfit(path, wrong[0] + more)
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    pipe.transformer.fpsgen_schedule = schedule


def _metadata(path: Path) -> dict[str, str]:
    try:
        with open_tensors(path) as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        what = f"LoRA {show(path)} is no safetensors file: {show(error, 120)}"
        raise FpsgenError(what, "name another file", BAD_INPUT) from error


def _check_settings(path: Path, metadata: dict[str, str]) -> None:
    """Judge what the file says to peft, before the libraries do. Raises FpsgenError BAD_INPUT."""
    written = metadata.get(SETTINGS)
    if written is None:
        return
    what = f"{SETTINGS} of LoRA {show(path)}"
    found = parse_json(written, what, example="export it again")
    own = {key.removeprefix(_PREFIX): value for key, value in found.items() if key.startswith(_PREFIX)}
    fields(own, {key: _SETTINGS[key] for key in own if key in _SETTINGS}, what, more=True, example="export it again")


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """What diffusers logs of a file that it cannot use, it raises too."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _judge(tensors: dict[str, torch.Tensor], transformer: Any) -> list[str]:
    """What is wrong with an adapter in diffusers' names: the libraries pass over what they do not know."""
    modules = dict(transformer.named_modules())
    wrong = [] if tensors else ["it holds no tensors"]
    for key, x in tensors.items():
        found = _TENSOR.fullmatch(key)
        layer = modules.get(found[1]) if found else None
        if found is None or not isinstance(layer, torch.nn.Linear):
            wrong.append(f"{show(key, 120)} belongs to no linear layer of the transformer")
            continue
        down, up = (tensors.get(f"transformer.{found[1]}.lora_{name}.weight") for name in "AB")
        if down is None or up is None:
            wrong.append(f"{show(key, 120)} is there without its other half")
        elif down.dim() != 2 or up.dim() != 2 or not _fits(down, up, layer):
            sizes = f"{list(down.shape)} and {list(up.shape)}"
            wrong.append(f"{show(found[1], 120)} is {sizes}, for {layer.in_features} to {layer.out_features} channels")
        elif not x.is_floating_point() or not bool(x.float().isfinite().all()):
            wrong.append(f"{show(key, 120)} holds numbers that are not finite, or no such numbers")
    return wrong


def _fits(down: torch.Tensor, up: torch.Tensor, layer: torch.nn.Linear) -> bool:
    rank = down.shape[0]
    return rank > 0 and down.shape == (rank, layer.in_features) and up.shape == (layer.out_features, rank)


def _unfit(path: Path, why: str) -> FpsgenError:
    return FpsgenError(
        f"LoRA {show(path)} does not fit the model: {why}", "name the model it was made for with -m", BAD_INPUT
    )
