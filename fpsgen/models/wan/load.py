"""Load a Wan pipeline from disk: safetensors only, each tensor accounted for, fp32 VAE, flow scheduler.

A model folder is data. Its classes and values come from closed lists (catalog.folder), nothing in it is run, and the
network is not used, whatever the environment says.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors import SafetensorError
from transformers import UMT5Config, UMT5EncoderModel

from fpsgen.errors import ENVIRONMENT, MODEL, FpsgenError
from fpsgen.files import open_tensors
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.models.catalog.folder import WEIGHTED, PipelineFolder, broken, check_folder
from fpsgen.models.catalog.verify import check_intact
from fpsgen.models.wan.scheduler import make_scheduler
from fpsgen.text import show

TIED = {"encoder.embed_tokens.weight", "shared.weight"}  # one tensor under two names; files hold either
DECODER = re.compile(r"(decoder\.|lm_head\.).*")  # of a whole UMT5; the pipeline uses the encoder
DTYPES = ("F32", "F16", "BF16", "F64")
_SCALE = re.compile(r"[._](scale_(weight|input)|(weight|input)_scale(_inv|_2)?|scaled_fp8)$")
_FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0")


def load(
    source: ModelChoice | str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    transformer: bool = True,
) -> WanPipeline:
    """A WanPipeline on `device`, in eval mode; transformer and text encoder in `dtype`, the VAE in fp32.

    dtype: None is default_dtype(device).
    source: a model that was chosen, a pipeline folder, a name of the registry, or a hub id that is in the cache.
    transformer: False where it is not needed, only VAE and text encoder; the pipeline's is None then.
    Nothing is downloaded. Every file is compared with its digest where one is known (once, see verify.check_intact);
    tensors that the files lack, and tensors that the model does not take, are errors.
    Raises FpsgenError: MODEL, or ENVIRONMENT where memory does not suffice.
    """
    pipeline, dtype = _judged(source), dtype or default_dtype(torch.device(device))
    folder = pipeline.folder
    check_intact(folder)
    parts = [part for part in WEIGHTED if transformer or part != "transformer"]
    held = {part: _tensors(pipeline, part) for part in parts}
    if pipeline.replaced_scheduler:
        text = f"UniPCMultistepScheduler takes the place of the model's {pipeline.replaced_scheduler}"
        warnings.warn(f"{text}, which cannot predict flow", stacklevel=2)
    with _quiet(), _offline():
        try:
            pipe = _assemble(pipeline, dtype, transformer)
        except torch.OutOfMemoryError:
            raise
        except MemoryError as error:
            raise FpsgenError(
                f"memory does not suffice to load {show(folder)}", "choose a smaller model with --model", ENVIRONMENT
            ) from error
        except FpsgenError:
            raise
        except Exception as error:  # whatever the libraries raise for a file that they cannot use
            raise broken(folder, show(error, 200) or type(error).__name__) from error
    for part in parts:
        module = getattr(pipe, part)
        _check_names(part, set(module.state_dict()), held[part], folder)
        module.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    pipe = pipe.to(device)
    for part in parts:
        _check_values(part, getattr(pipe, part).parameters(), folder)
    return pipe


def default_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU, else fp32."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _judged(source: ModelChoice | str | Path) -> PipelineFolder:
    if not isinstance(source, ModelChoice):
        folder = Path(source).expanduser()
        if folder.is_dir():
            return check_folder(folder)
        source = choose(str(source))
    if source.pipeline is None:
        raise ValueError(f"{source.spec.name} is not on this machine")
    return source.pipeline


def _assemble(pipeline: PipelineFolder, dtype: torch.dtype, transformer: bool) -> WanPipeline:
    """The parts, each by the class that fpsgen knows for it; without the transformer unless it is wanted."""
    folder, configs = pipeline.folder, pipeline.configs
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    text = {key: value for key, value in configs["text_encoder"].items() if key != "model_type"}
    denoiser = None
    if transformer:
        denoiser = WanTransformer3DModel.from_pretrained(str(folder / "transformer"), dtype=dtype, **options)
    pipe = WanPipeline(
        transformer=denoiser,
        vae=AutoencoderKLWan.from_pretrained(str(folder / "vae"), dtype=torch.float32, **options),
        text_encoder=UMT5EncoderModel.from_pretrained(
            str(folder / "text_encoder"), config=UMT5Config(**text), dtype=dtype, **options
        ),
        tokenizer=getattr(transformers, pipeline.tokenizer).from_pretrained(
            str(folder / "tokenizer"), local_files_only=True
        ),
        scheduler=make_scheduler(pipeline),
        expand_timesteps=pipeline.expand_timesteps,
    )
    if len(pipe.tokenizer) > text["vocab_size"]:
        size = text["vocab_size"]
        raise broken(folder, f"the tokenizer has {len(pipe.tokenizer)} tokens, the text encoder {size} of them")
    pipe.register_to_config(_name_or_path=str(folder))
    return pipe


def _tensors(pipeline: PipelineFolder, part: str) -> set[str]:
    """Names of the tensors in a part's files. Raises FpsgenError MODEL for kinds that are no weights."""
    found: dict[str, str] = {}
    for path in pipeline.weights[part]:
        try:
            with open_tensors(path, MODEL) as file:
                for name in file.keys():  # noqa: SIM118 - not a dictionary
                    if name in found:
                        raise broken(pipeline.folder, f"{part} has the tensor {show(name, 80)} in two files")
                    found[name] = file.get_slice(name).get_dtype()
        except (OSError, SafetensorError) as error:
            raise broken(pipeline.folder, f"{part}/{path.name}: {show(error)}") from error
    fp8 = [name for name, dtype in found.items() if dtype in _FP8]
    if fp8:
        scales = [name for name in found if _SCALE.search(name)]
        beside = f" and {len(scales)} scales ({show(scales[0], 60)})" if scales else ""
        what = f"{part} is an FP8 file, not supported yet: {len(fp8)} FP8 tensors ({show(fp8[0], 80)}){beside}"
        error = broken(pipeline.folder, what)
        raise FpsgenError(error.message, "choose a model with 16-bit or 32-bit weights", error.code)
    other = [name for name, dtype in found.items() if dtype not in DTYPES]
    if other:
        what = f"{len(other)} tensors of {part} are {found[other[0]]}, not {', '.join(DTYPES)}"
        raise broken(pipeline.folder, f"{what}, first {show(other[0], 80)}")
    return set(found)


def _check_names(part: str, model: set[str], files: set[str], folder: Path) -> None:
    """Model and files must hold the same tensors: from_pretrained only logs what is missing, and what is too much."""
    tied = TIED if part == "text_encoder" and files & TIED else set()
    missing = sorted(model - files - tied)
    if missing:
        raise broken(folder, f"{part} lacks {len(missing)} tensors, first {missing[0]}")
    extra = sorted(files - model - tied)
    if part == "text_encoder":
        extra = [name for name in extra if not DECODER.fullmatch(name)]
    if extra:
        what = f"{part} has {len(extra)} tensors that the model does not take, first {show(extra[0], 80)}"
        raise broken(folder, what)


@torch.no_grad()
def _check_values(part: str, weights: Iterable[torch.Tensor], folder: Path) -> None:
    """A part whose weights are all zero was not written; one number that is not finite spoils every frame."""
    extremes = torch.stack([torch.stack(weight.aminmax()).float() for weight in weights])
    if not bool(extremes.isfinite().all()):
        raise broken(folder, f"{part} has weights that are not finite")
    if not bool(extremes.any()):
        raise broken(folder, f"the weights of {part} are all zero")


@contextmanager
def _offline() -> Iterator[None]:
    """Nothing within the block reaches the hub: as if HF_HUB_OFFLINE were set."""
    from huggingface_hub import constants

    was, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of diffusers and transformers meanwhile; both are set back as they were."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    logs = (diffusers_logging, transformers_logging)
    were = [log.is_progress_bar_enabled() for log in logs]
    for log in logs:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, was in zip(logs, were, strict=True):
            if was:
                log.enable_progress_bar()
