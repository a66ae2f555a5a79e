"""Make the jobs of a batch that are not done: each model loaded once, one failure stops nobody else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fpsgen.batch.jobs import Batch, Job
from fpsgen.batch.ledger import Ledger, locked
from fpsgen.errors import DISK, INTERNAL, FpsgenError
from fpsgen.pipeline.events import Events, Timing
from fpsgen.signals import check_stop

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
            "prompt": self.job.request.prompt.text,
            "seed": self.job.request.sampling.seed,
            "seconds": round(self.seconds, 3),
            "error": error,
        }


class BatchProgress(Protocol):
    """Who is told of the jobs while they run, beside the events of each video."""

    def job_start(self, job: Job, index: int, total: int) -> Events: ...

    def job_end(self, outcome: Outcome) -> None: ...


def run(batch: Batch, progress: BatchProgress, timing: Timing) -> Iterator[Outcome]:
    """Yields an outcome per job: those that are done first, then as they are made, model by model.

    A job's own error (out of memory, no real video, anything unforeseen) is its outcome. What every job would meet
    ends the run: FpsgenError from loading the model, DISK, LOCKED. Finished videos stay whatever happens.
    """
    with locked(batch.folder):
        ledger = Ledger(batch.folder)
        waiting = []
        for job in batch.jobs:
            path = None if job.request.output.overwrite else ledger.done(job)
            if path is None:
                _check_free(job)
                waiting.append(job)
            else:
                yield Outcome(job, SKIPPED, path)
        index = 0
        for group in _by_model(waiting):
            from fpsgen.pipeline.loaded_model import load_model

            model = load_model(group[0].request, timing)
            for job in group:
                check_stop()
                index += 1
                outcome = _make(job, model, progress.job_start(job, index, len(waiting)), timing)
                if outcome.path is not None:
                    ledger.add(job, outcome.path, outcome.seconds)
                progress.job_end(outcome)
                yield outcome
            del model  # its memory is needed for the next


def _make(job: Job, model: Any, events: Events, shared: Timing) -> Outcome:
    from fpsgen.pipeline.run import run as generate

    start = time.monotonic()
    timing = Timing(events)
    timing.warnings += shared.warnings  # each is told once in a run, not once in a job
    try:
        result = generate(job.request, timing, model)
    except FpsgenError as error:
        if error.code == DISK:
            raise
        return Outcome(job, FAILED, None, time.monotonic() - start, error)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        problem = FpsgenError(
            f"internal error: {type(error).__name__}: {text}", "run that prompt alone with --debug", INTERNAL
        )
        return Outcome(job, FAILED, None, time.monotonic() - start, problem)
    finally:
        shared.warnings += [text for text in timing.warnings if text not in shared.warnings]
    return Outcome(job, MADE, result.path, time.monotonic() - start)


def _check_free(job: Job) -> None:
    """A job with a name of its own must not meet a file that is not its; other names are numbered when taken."""
    path = job.request.output.path
    if job.named and path.exists() and not job.request.output.overwrite:
        what = f"line {job.number}: {path} exists and holds something else"
        raise FpsgenError(what, "move it away, or add --overwrite", DISK)


def _by_model(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that share a loaded model, in order of first appearance."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        request = job.request
        groups.setdefault((request.model.folder, request.machine), []).append(job)
    return list(groups.values())
