"""A trained model as a folder that diffusers and fpsgen load: the source's parts, new weights, their schedule."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fpsgen.errors import DISK, FpsgenError
from fpsgen.files import cannot_write, write_text
from fpsgen.models.catalog.folder import EXTRAS, INDEX, check_folder
from fpsgen.models.catalog.manifest import write_manifest
from fpsgen.text import show
from fpsgen.train.config import TrainConfig

CARD = "README.md"


def export_folder(source: Path, transformer: Any, config: TrainConfig, out: Path, errors: dict[str, Any]) -> Path:
    """Write `out` whole or not at all; `out` must not exist. transformer: with its final weights, stored in bf16.

    errors: held-out velocity errors for the model card. Sets trained = true in the schedule: only this function does.
    Raises FpsgenError DISK.
    """
    if out.exists():
        raise FpsgenError(f"{show(out)} exists already", "name another folder with -o, or remove it", DISK)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        shutil.copytree(source, part, ignore=lambda folder, names: _left_out(str(folder), names, source))
        stored = transformer.state_dict()
        weights = {name: x.detach().to(torch.bfloat16) for name, x in stored.items()}
        transformer.save_pretrained(part / "transformer", state_dict=weights)
        schedule = replace(config.parsed_schedule(), name=config.name, trained=True)
        write_text(schedule.to_toml(), part / "schedule.toml", overwrite=True)
        write_text(_card(config, errors), part / CARD, overwrite=True)
        check_folder(part)
        write_manifest(part)
        part.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _left_out(folder: str, names: list[str], source: Path) -> set[str]:
    if Path(folder) != source:
        return set()
    kept = {INDEX, *EXTRAS, "vae", "text_encoder", "tokenizer", "scheduler"}
    return {name for name in names if name not in kept or name in ("manifest.json", "schedule.toml")}


def _card(config: TrainConfig, errors: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {errors['before'][name]:.4g} | {errors['after'][name]:.4g} |" for name in sorted(errors["before"])
    ]
    return "\n".join(
        [
            f"# {config.name}",
            "",
            f"{config.model}, trained to expect the attention of its own schedule.toml with fpsgen (an independent "
            "re-implementation of FPSAttention, arXiv 2506.04648).",
            "",
            f"Distilled from its own dense attention: {len(config.prompts) - config.held_out} prompts, "
            f"{config.teacher_steps} steps each, {config.steps} optimizer steps of {config.batch}, lr {config.lr}"
            + (f", LoRA of rank {config.lora_rank} merged." if config.lora_rank else "."),
            "",
            "Error of the velocity on held-out prompts, relative to the dense teacher's mean square:",
            "",
            "| profile | before | after |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
