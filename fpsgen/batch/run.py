"""Make the jobs of a batch that are not done: each model loaded once, one failure stops nobody else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fpsgen.batch.jobs import Batch, Job
from fpsgen.batch.ledger import Ledger, Unfinished, locked
from fpsgen.errors import DISK, INTERNAL, FpsgenError
from fpsgen.ffmpeg import check_ffmpeg
from fpsgen.files import read_json, sweep, system_error
from fpsgen.pipeline.events import Events, Timing
from fpsgen.pipeline.libraries import import_libraries
from fpsgen.pipeline.output import free_name, sidecar, taken, write_sidecar
from fpsgen.pipeline.plan import notes_of
from fpsgen.signals import check_stop
from fpsgen.text import show
from fpsgen.video import is_whole, read_recipe

MADE, SKIPPED, FAILED = "made", "skipped", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of a job. path: the MP4, None if it failed. seconds: 0 if skipped."""

    job: Job
    status: str
    path: Path | None
    seconds: float = 0.0
    error: FpsgenError | None = None

    def as_json(self) -> dict[str, Any]:
        error = self.error and {"code": self.error.code, "message": self.error.message, "remedy": self.error.remedy}
        return {
            "line": self.job.number,
            "status": self.status,
            "path": str(self.path) if self.path else None,
            "prompt": self.job.prompt,
            "seed": self.job.seed,
            "seconds": round(self.seconds, 3),
            "error": error,
        }


class BatchProgress(Protocol):
    """Receives the events of jobs while they run, beside the events of each video."""

    def job_start(self, job: Job, index: int, total: int) -> Events: ...

    def job_end(self, outcome: Outcome) -> None: ...


def run(batch: Batch, progress: BatchProgress, timing: Timing) -> Iterator[Outcome]:
    """Yields an outcome per job: those that are done first, then as they are made, model by model.

    A job's own error (out of memory, no real video, anything unforeseen) is its outcome. What every job would meet
    ends the run: FpsgenError from ffmpeg or from loading the model, DISK, LOCKED. Finished videos stay whatever
    happens. What a run that was killed left half done is completed first.
    """
    with locked(batch.folder) as held:
        if not held:
            timing.warn(f"{batch.folder} is on a file system without locks: run one batch at a time there")
        for folder in {batch.folder, *(job.path.parent for job in batch.jobs if job.own)}:
            sweep(folder)
        ledger = Ledger(batch.folder)
        waiting = []
        for job in batch.jobs:
            path = None if job.shared.output.overwrite else ledger.done(job) or complete(job, ledger)
            if path is None:
                _check_free(job)
                waiting.append(job)
            else:
                yield Outcome(job, SKIPPED, path)
        if waiting:
            check_ffmpeg()  # before there is work to lose
            import_libraries()
        index = 0
        for group in _by_model(waiting):
            from fpsgen.pipeline.loaded_model import load_model

            with timing.part(timing.events) as loading:
                model = load_model(group[0].request, loading)
            for job in group:
                check_stop()
                index += 1
                with timing.part(progress.job_start(job, index, len(waiting))) as own:
                    outcome = _make(job, ledger, model, own, loading.warnings)
                if outcome.path is not None:
                    ledger.add(job, outcome.path, outcome.seconds)
                progress.job_end(outcome)
                yield outcome
            del model  # its memory is needed for the next


def complete(job: Job, ledger: Ledger) -> Path | None:
    """The file of a job that a run finished and did not enter, entered now, its sidecar written if it lacks.

    None where there is no such file, or it is not whole. Raises FpsgenError DISK.
    """
    found = _whole(job, ledger)
    if found is None:
        return None
    recipe = read_recipe(found.path) if job.shared.output.metadata else None
    if recipe is not None:
        beside = sidecar(found.path)
        if not os.path.lexists(beside):
            write_sidecar(found.path, recipe, None, False)
        elif found.replaces and _recipe_beside(beside) != recipe:
            write_sidecar(found.path, recipe, None, True)
    ledger.add(job, found.path, None)
    return found.path


def finished(job: Job, ledger: Ledger) -> Path | None:
    """The file that `run` would skip the job for, None where it would make it. Changes nothing.

    Raises FpsgenError DISK where it would refuse it: another file stands under its name.
    """
    if job.shared.output.overwrite:
        return None
    path = ledger.done(job)
    if path is None and (found := _whole(job, ledger)):
        path = found.path
    if path is None:
        _check_free(job)
    return path


def _whole(job: Job, ledger: Ledger) -> Unfinished | None:
    """A whole video of the job that was not entered."""
    found, video = ledger.unfinished(job), job.shared.video
    return found if found is not None and is_whole(found.path, video.frames, video.fps) else None


def _recipe_beside(path: Path) -> Any:
    try:
        return read_json(path, 1 << 24, str(path)).get("recipe")
    except FpsgenError:
        return None


def _make(job: Job, ledger: Ledger, model: Any, timing: Timing, of_model: list[str]) -> Outcome:
    """of_model: warnings that came up when it was loaded; they concern each of its videos."""
    from fpsgen.pipeline.run import run as generate

    start = time.monotonic()
    request = job.request
    for text in (*notes_of(request), *of_model):
        timing.warn(text)
    if not job.named and not request.output.overwrite:
        request = request.replace(output={"path": free_name(request.output.path)})
    ledger.begin(job, request.output.path)
    try:
        result = generate(request, timing, model)
    except FpsgenError as error:
        if error.code == DISK:
            raise
        return Outcome(job, FAILED, None, time.monotonic() - start, error)
    except Exception as error:
        if found := system_error(error):
            raise found from error
        what = f"internal error: {type(error).__name__}: {show(error, 300)}"
        problem = FpsgenError(what, "run that prompt alone with --debug", INTERNAL)
        return Outcome(job, FAILED, None, time.monotonic() - start, problem)
    return Outcome(job, MADE, result.path, time.monotonic() - start)


def _check_free(job: Job) -> None:
    """A job with a name of its own must not meet a file that is not its; other names are numbered when taken."""
    if job.named and not job.shared.output.overwrite and (other := taken(job.path)):
        what = f"line {job.number}: {show(other)} exists and holds something else"
        raise FpsgenError(what, "move it away, or add --overwrite", DISK)


def _by_model(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that share a loaded model, in order of first appearance."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        key = (job.shared.model.folder, job.shared.machine, dict(job.shared.more).get("lora"))
        groups.setdefault(key, []).append(job)
    return list(groups.values())
