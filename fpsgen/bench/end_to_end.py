"""The same prompt, seed and noise through several methods: what each costs, and how far its video is from the
baseline's.

Always strict: a step that does not run by the plan is an error, not a figure. Every method is warmed up on its own.
Repeats are interleaved in random order, so that a machine that slows down slows all methods.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from fpsgen.bench.plan import BASELINE, EVERY_STEP, OURS, methods_to_run, warm_steps
from fpsgen.bench.progress import Progress
from fpsgen.bench.provenance import provenance
from fpsgen.bench.rows import Runs, append_rows, bench_row
from fpsgen.evaluate import stlpips
from fpsgen.evaluate.quality import quality
from fpsgen.files import make_folder, write_text
from fpsgen.pipeline.events import Events, Timing
from fpsgen.pipeline.loaded_model import LoadedModel, dtype_name, load_model
from fpsgen.pipeline.output import write_output
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.run import render
from fpsgen.report.page import page


def run(
    base: GenerateRequest,
    compare: tuple[str, ...],
    repeats: int,
    random_weights: bool,
    timing: Timing,
    command: str = "",
) -> list[dict]:
    """One row per method, baseline first; rows.bench_row says what the keys mean.

    base: the video; its output names the folder for MP4s (none with random weights). command: the line that was
    typed, kept in the rows. Raises as pipeline.run.run does.
    """
    if not random_weights:
        stlpips.available()
    model = load_model(base, timing, random_weights)
    names = methods_to_run(compare)
    runs = {name: Runs(name) for name in names}
    order = [name for _ in range(repeats) for name in names]
    random.Random(base.sampling.seed).shuffle(order)
    warm = {name: warm_steps(name, base.sampling.steps, model.device.type) for name in names}
    progress = Progress(timing, sum(warm.values()) + len(order) * base.sampling.steps)
    with timing.stage("bench"):
        for name in names:
            short = base.replace(sampling={"steps": warm[name]})
            _measure(model, short, Runs(name), progress.named(f"{name} warm-up"))
        for name in order:
            _measure(model, base, runs[name], progress.named(name))
    if not random_weights:
        with timing.stage("compare"):
            for name in names:
                runs[name].path = _save(runs[name], base)
            for name in names:
                runs[name].quality = _quality(runs[name], runs[names[0]])
    common = {**provenance(model.device), "command": command, "random_weights": model.random}
    common["dtype"] = dtype_name(model.dtype)
    return [bench_row(runs[name], runs[names[0]], base, common) for name in names]


def _measure(model: LoadedModel, base: GenerateRequest, runs: Runs, events: Events) -> None:
    """One video by one method, added to `runs`."""
    timing = Timing(events)
    made = render(model, as_method(base, runs.method), timing)
    for stage, seconds in timing.stages.items():
        runs.stages.setdefault(stage, []).append(seconds)
    runs.totals.append(sum(timing.stages.values()))
    runs.steps.append(list(timing.steps))
    runs.attention.append(made.attention_s)
    runs.report, runs.frames = made.attention, made.frames
    if model.device.type == "cuda":
        import torch

        runs.cuda_bytes = torch.cuda.max_memory_allocated(model.device)
    runs.recipe = made.recipe


def as_method(base: GenerateRequest, name: str) -> GenerateRequest:
    """The request run as one method, strict. bf16 is diffusers as it comes: linear layers, rounding, VAE, every step
    with guidance and none skipped; its attention runs on the fastest backend that is there (dense_backend).
    """
    request = base.replace(attention={"method": None if name == OURS else name, "strict": True})
    plain = {"linear": "bf16", "exact": True, **EVERY_STEP}
    return request.with_settings(**plain) if name == BASELINE else request


def _quality(runs: Runs, baseline: Runs) -> dict[str, float | None]:
    assert runs.frames is not None
    if runs is baseline:
        return quality(runs.frames, None)
    return quality(runs.frames, baseline.frames, runs.path, baseline.path)


def _save(runs: Runs, base: GenerateRequest) -> Path:
    assert runs.frames is not None
    path = base.output.path.with_name(f"{runs.method}.mp4")
    request = base.replace(output={"path": path, "numbered": False, "overwrite": True})
    return write_output(runs.frames, request, runs.recipe)


def save(rows: list[dict[str, Any]], root: Path, place: Path) -> Path:
    """Append the rows to bench.jsonl in `root`, write the page in `place`; the path to print."""
    append_rows(rows, root / "bench.jsonl")
    make_folder(place)
    return write_text(page(rows), place / "index.html", overwrite=True)
