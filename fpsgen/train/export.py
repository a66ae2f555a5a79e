"""A trained model for others: a folder that diffusers and fpsgen load, or a LoRA file; both carry their schedule.

Only what is written here says trained = true.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, DISK, USAGE, FpsgenError
from fpsgen.files import atomic, cannot_write, read_json, write_text, writing_tensors
from fpsgen.models.catalog.cache import HUB_ID
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.models.catalog.folder import EXTRAS, INDEX, MANIFEST, SCHEDULE, check_folder, folder_size
from fpsgen.models.catalog.manifest import write_manifest
from fpsgen.models.catalog.registry import shipped
from fpsgen.models.catalog.verify import check_intact
from fpsgen.models.wan.lora_file import KEY, SCHEMA
from fpsgen.text import show
from fpsgen.train import checkpoint
from fpsgen.train.config import TrainConfig
from fpsgen.train.disk import check_space, use_default_modes
from fpsgen.train.lora import add_lora, merge_lora

CARD, RUN = "README.md", "run.json"
Tensors = dict[str, torch.Tensor]


def export_folder(
    choice: ModelChoice, config: TrainConfig, weights: Tensors, out: Path, errors: dict[str, Any]
) -> Path:
    """Write `out` whole or not at all; `out` must not exist. The source's parts, with a transformer of these weights
    (an adapter is merged), stored in bf16 but for what diffusers keeps in fp32.

    choice: the run's model. weights: those trained, by name. errors: held-out errors for the model card. Raises
    FpsgenError DISK, MODEL.
    """
    source = choice.folder
    assert source is not None
    if out.exists():
        raise _exists(out)
    check_intact(source)
    check_space(out.resolve().parent, folder_size(source), "the model")
    transformer = trained_transformer(source, config, weights)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        in_bf16(transformer)
        with writing_tensors():
            transformer.save_pretrained(part / "transformer")
        ignore = lambda folder, names: _left_out(str(folder), names, source)  # noqa: E731
        shutil.copytree(source, part, ignore=ignore, dirs_exist_ok=True)
        use_default_modes(part)
        write_text(trained_schedule(config).to_toml(), part / SCHEDULE, overwrite=True)
        write_text(_card(choice, config, errors), part / CARD, overwrite=True)
        check_folder(part)
        write_manifest(part)
        part.rename(out)
    except shutil.Error as error:  # of copytree: source, target and reason of each file
        raise cannot_write(out, OSError(error.args[0][0][2])) from error
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def export_lora(config: TrainConfig, weights: Tensors, out: Path) -> Path:
    """Write an adapter in diffusers' format, bf16; its metadata holds the schedule and the run. Raises FpsgenError
    DISK.
    """
    if out.exists():
        raise _exists(out)
    stored = {
        f"transformer.{name.replace('.default', '')}": x.detach().to("cpu", torch.bfloat16).contiguous()
        for name, x in weights.items()
    }
    run = replace(config, model=_without_folder(config.model), data=_without_folder(config.data))
    about = {"schema": SCHEMA, "model": run.model}
    about |= {"schedule": trained_schedule(config).to_toml(), "run": json.loads(run.to_json())}
    with atomic(out) as part, writing_tensors():
        save_file(stored, part, {"format": "pt", KEY: json.dumps(about)})
    return out


@dataclass(frozen=True)
class Exported:
    """path: folder or file. step: of the checkpoint; steps: that the run has. row: for models.toml, "" for a file."""

    path: Path
    step: int
    steps: int
    row: str

    def to_json(self) -> str:
        return json.dumps({"path": str(self.path), "step": self.step, "steps": self.steps, "row": self.row})


def export_run(run: Path, out: Path | None, lora: bool) -> Exported:
    """Export a run's newest whole checkpoint, by default into the run's folder. Raises FpsgenError: BAD_INPUT for what
    is no run or has no checkpoint, USAGE for `lora` of a run without an adapter, MODEL, DISK.
    """
    config = TrainConfig.from_json(run / RUN)
    if lora and not config.lora_rank:
        raise FpsgenError(f"run {config.name} trains all weights, no LoRA", "export a folder: leave --lora out", USAGE)
    found = checkpoint.latest(run)
    if found is None:
        raise FpsgenError(f"{show(run)} has no whole checkpoint", "train it first: fpsgen train", BAD_INPUT)
    step, tensors, _ = found
    if lora:
        path = export_lora(config, tensors["average"], out or run / f"lora-{step:07d}.safetensors")
        return Exported(path, step, config.steps, "")
    choice = choose(config.model)
    path = export_folder(choice, config, tensors["average"], out or run / f"model-{step:07d}", _errors(run))
    return Exported(path, step, config.steps, registry_row(choice, config, str(path.resolve())))


def _errors(run: Path) -> dict[str, Any]:
    """Held-out errors of a run that came to its end; none of others."""
    path = run / "report.json"
    return read_json(path, 1 << 24, str(path))["held_out_error"] if path.exists() else {"before": {}, "after": {}}


def trained_schedule(config: TrainConfig) -> Schedule:
    return replace(config.parsed_schedule(), name=config.name, trained=True)


def registry_row(choice: ModelChoice, config: TrainConfig, source: str) -> str:
    """A row for a user's models.toml, by which the model has a name. source: its folder or repository."""
    known, spec = shipped(), choice.spec
    like = next(
        (other.name for other in known if other.name == spec.name or other.parameters == spec.parameters), "nano"
    )
    row = {"name": f"{config.name}-trained", "source": source, "like": like}
    row |= {"description": f"{like}, trained for schedule {config.name} with fpsgen", "trained_schedule": True}
    if spec.licence != "unknown":
        row["licence"] = spec.licence
    row |= {"width": config.width, "height": config.height, "frames": config.frames, "shift": config.shift}
    return "\n".join(["[[model]]", *(f"{key} = {json.dumps(value)}" for key, value in row.items())])


def trained_transformer(source: Path, config: TrainConfig, weights: Tensors) -> Any:
    """The source's transformer in fp32 with these weights in it."""
    transformer = WanTransformer3DModel.from_pretrained(
        str(source / "transformer"), dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    if config.lora_rank:
        add_lora(transformer, config.lora_rank, config.seed)
    with torch.no_grad():
        parameters = dict(transformer.named_parameters())
        for name, x in weights.items():
            parameters[name].copy_(x)
    if config.lora_rank:
        merge_lora(transformer)
    return transformer


def in_bf16(transformer: Any) -> None:
    """Round its weights to bf16, but for those that diffusers loads in fp32 whatever dtype is asked for."""
    kept = set(transformer._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if not kept.intersection(name.split(".")):
            parameter.data = parameter.data.to(torch.bfloat16)


def _exists(out: Path) -> FpsgenError:
    return FpsgenError(f"{show(out)} exists already", "name another one with -o, or remove it", DISK)


def _left_out(folder: str, names: list[str], source: Path) -> set[str]:
    if Path(folder) != source:
        return set()
    kept = {INDEX, *EXTRAS, "vae", "text_encoder", "tokenizer", "scheduler"}
    return {name for name in names if name not in kept or name in (MANIFEST, SCHEDULE)}


def _without_folder(place: str) -> str:
    """A name that says nothing of this machine: a folder's own; repositories and models' names as they are."""
    return Path(place).name if os.path.isabs(place) or os.path.isdir(place) else place


def _card(choice: ModelChoice, config: TrainConfig, errors: dict[str, Any]) -> str:
    """The model card: what the hub reads first, then what was trained, how, and how to run it."""
    spec = choice.spec
    head = ["library_name: diffusers", "pipeline_tag: text-to-video"]
    if HUB_ID.fullmatch(spec.source) and not os.path.isdir(spec.source):
        head.append(f"base_model: {spec.source}")
    if spec.licence != "unknown":
        head.append(f"license: {spec.licence.lower()}")
    rows = [
        f"| {name} | {errors['before'][name]:.4g} | {errors['after'][name]:.4g} |" for name in sorted(errors["before"])
    ]
    how = []
    if config.uses_teacher:
        prompts = len(config.prompts) - config.held_out
        how.append(f"its own dense attention at {prompts} prompts, {config.teacher_steps} steps each")
    if config.data:
        how.append("videos with captions (flow matching)")
    adapter = f", LoRA of rank {config.lora_rank}" if config.lora_rank else ""
    linear = "FP8" if config.parsed_schedule().fp8_linear else "16 bit"
    settings = f"{config.steps} optimizer steps of {config.batch}, lr {config.lr}{adapter}"
    return "\n".join(
        [
            "---",
            *head,
            "---",
            "",
            f"# {config.name}",
            "",
            f"{_without_folder(config.model)}, trained to expect the attention of its own schedule.toml with fpsgen "
            "(an independent re-implementation of FPSAttention, arXiv 2506.04648).",
            "",
            f"Trained on {' and '.join(how)}: {settings}, linear layers in {linear}.",
            "",
            "Error of the velocity on held-out samples, relative to the mean square of what it should be:",
            "",
            "| profile | before | after |",
            "|---|---|---|",
            *rows,
            "",
            "```",
            'fpsgen generate "a cat surfing" -m OWNER/REPOSITORY',
            "```",
            "",
            "It runs by its schedule.toml. A row for models.toml, with the repository or folder where this one lies:",
            "",
            "```toml",
            registry_row(choice, config, "OWNER/REPOSITORY"),
            "```",
            "",
        ]
    )
