"""Videos that show how a run gets on, and what it came to: made by the same path as `fpsgen generate`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from fpsgen.cli.progress import Quiet
from fpsgen.evaluate.compare import compare_videos
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.models.patch.schedule_choice import ScheduleWarning
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.loaded_model import LoadedModel, load_model
from fpsgen.pipeline.plan import plan
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.run import render, run
from fpsgen.settings.gather import gather
from fpsgen.train.config import TrainConfig

SEED = 0


def request_of(config: TrainConfig, choice: ModelChoice, path: Path, device: str) -> GenerateRequest:
    """A video of the run's last prompt, of its size, steps and guidance."""
    values = {
        "res": f"{config.width}x{config.height}",
        "frames": str(config.frames),
        "steps": str(config.teacher_steps),
    }
    values |= {"guidance": str(config.guidance), "shift": str(config.shift), "seed": str(SEED)}
    values |= {"model": config.model, "output": str(path), "device": device, "overwrite": True}
    return plan(config.prompts[-1] if config.prompts else "a cat surfing", gather(values), choice).request


class Validation:
    """Makes a video with a pipeline under training, whose transformer is unpatched and holds the averaged weights."""

    def __init__(self, config: TrainConfig, device: str, timing: Timing) -> None:
        self._config, self._device, self._timing = config, device, timing

    def __call__(self, pipe: Any, choice: ModelChoice, path: Path, writes: bool) -> None:
        config = self._config
        request = request_of(config, choice, path, self._device)
        request = request.replace(attention={"schedule": config.parsed_schedule()})
        transformer = pipe.transformer
        model = LoadedModel(pipe, transformer.device, transformer.dtype)
        timing = Timing(Quiet())
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", ScheduleWarning)
            if writes:
                run(request, timing, model)
            else:
                render(model, request, timing)


def sample_and_measure(
    config: TrainConfig, folder: Path, out: Path, device: str, timing: Timing
) -> dict[str, dict[str, Any]]:
    """Three videos of one prompt and seed in `out`: dense.mp4 and untrained.mp4 of the run's model, dense and by the
    run's schedule, and trained.mp4 of the exported folder. videos: their paths by name; psnr_db, ssim: of the other two
    to the dense one.
    """
    base = choose(config.model)
    wanted = {
        "dense": (base, {"schedule": config.parsed_schedule(), "method": "bf16"}),
        "untrained": (base, {"schedule": config.parsed_schedule()}),
        "trained": (choose(str(folder)), {}),
    }
    videos: dict[str, Any] = {}
    loaded: tuple[ModelChoice, LoadedModel] | None = None
    for name, (choice, attention) in wanted.items():
        request = request_of(config, choice, out / f"{name}.mp4", device).replace(attention=attention)
        if name == "dense":
            request = request.with_settings(linear="bf16")
        if loaded is None or loaded[0] is not choice:
            loaded = (choice, load_model(request, timing))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScheduleWarning)  # that it was not trained is the point of one
            videos[name] = run(request, timing, loaded[1]).path
    found: dict[str, dict[str, Any]] = {"videos": {name: str(path) for name, path in videos.items()}}
    found |= {"psnr_db": {}, "ssim": {}}
    for name in ("untrained", "trained"):
        apart = compare_videos(videos["dense"], videos[name])
        found["psnr_db"][name] = round(apart.psnr_of_all, 2)
        found["ssim"][name] = round(float(apart.ssim.mean()), 4)
    return found
