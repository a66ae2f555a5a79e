"""`fpsgen batch`: a video for every line of a file; what is done already is left alone."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fpsgen.cli import console
from fpsgen.cli.options import argument, examples, takes_settings
from fpsgen.errors import PARTIAL, FpsgenError
from fpsgen.report.lines import duration
from fpsgen.settings.gather import gather
from fpsgen.text import plural

if TYPE_CHECKING:
    from fpsgen.batch.jobs import Batch, Job
    from fpsgen.batch.ledger import Ledger
    from fpsgen.batch.run import Outcome
    from fpsgen.cli.progress import Quiet

EXAMPLES = examples(
    "fpsgen batch prompts/nano.txt",
    "fpsgen batch prompts.jsonl -m wan2.1-1.3b -o videos/ --steps 30",
    "echo 'a cat surfing' | fpsgen batch -",
    'A line of a .jsonl file: {"prompt": "a cat surfing", "seed": 1, "output": "cat.mp4"}',
)

File = Annotated[str, argument("FILE", ".txt (a prompt per line), .jsonl (options too), - (stdin).")]


@takes_settings("batch")
def batch(file: File, given: dict[str, Any]) -> None:
    """Make a video for every line of a file. Run it again to go on: what is done is skipped.

    Options are the default of every line. stdout: the paths. Exit code 3: some videos failed, the others are there.
    """
    make_batch(file, given, "batch")


def make_batch(file: str, given: dict[str, Any], command: str) -> None:
    """What `fpsgen batch` and `fpsgen generate --prompts` do. Raises typer.Exit PARTIAL where a job failed."""
    from fpsgen.batch.jobs import read_batch
    from fpsgen.cli.model_choice import choose_model

    settings = gather(given)
    file = sample_or(file)
    jobs = read_batch(file, given, settings.overwrite, choose_model)
    if settings.dry_run:
        show(jobs, settings.json, command)
        return

    from fpsgen.batch.run import run
    from fpsgen.cli import progress
    from fpsgen.models.catalog.machine import this_machine
    from fpsgen.pipeline.memory import check_machine

    machine = this_machine()
    for job in jobs.jobs:
        check_machine(job.request, machine)
    outcomes: list[Outcome] = []
    with progress.working(settings.quiet, settings.debug, jobs.warnings) as (events, timing):
        shown = ShownProgress(events)
        events.note("batch", f"{plural(len(jobs.jobs), 'video')} into {jobs.folder}, model {models_of(jobs)}")
        try:
            for outcome in run(jobs, shown, timing):
                outcomes.append(outcome)
                if not settings.json and outcome.path is not None:
                    print(outcome.path, flush=True)
        except BaseException as error:
            mended = ", once this is mended" if isinstance(error, FpsgenError) else ""
            if shown.began or not mended:
                left = len(jobs.jobs) - sum(outcome.path is not None for outcome in outcomes)
                count = plural(len(jobs.jobs), "video")
                events.note("batch", f"stopped with {left} of {count} to go; the same command goes on{mended}")
            raise
        events.note("batch", summary(outcomes, timing.total))
    if settings.json:
        console.print_json(command, [outcome.as_json() for outcome in outcomes], timing.warnings)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        again = "the same command tries them again"
        console.note(f"failed: line {', '.join(str(outcome.job.number) for outcome in failed)}; {again}")
        raise typer.Exit(PARTIAL)


def sample_or(file: str) -> str:
    """`file`, or the sample of that name that comes with fpsgen ("prompts/nano.txt") where there is no such file."""
    from fpsgen.assets import prompts_dir

    folder, _, name = file.rpartition("/")
    sample = prompts_dir() / name
    if folder != "prompts" or os.path.lexists(file) or not name or not sample.is_file():
        return file
    console.note(f"{file} is the sample that comes with fpsgen: {sample}")
    return str(sample)


class ShownProgress:
    """Jobs for a person: which one runs, what it took, how long the rest will take. A batch.run.BatchProgress."""

    def __init__(self, events: Quiet) -> None:
        self._events = events
        self.began = False  # whether any job has begun
        self._place = ""
        self._left = 0
        self._spent: list[float] = []

    def job_start(self, job: Job, index: int, total: int) -> Quiet:
        self.began = True
        self._place, self._left = f"[{index}/{total}]", total - index
        self._events.job(self._place, job.prompt, self._rest(self._left + 1), self._left + 1)
        return self._events

    def job_end(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            what, fix = outcome.error.message, outcome.error.remedy
            self._events.warn(f"{self._place} line {outcome.job.number} failed: {what} ({fix})")
            return
        self._spent.append(outcome.seconds)
        eta = f", ETA {duration(self._rest(self._left) or 0)}" if self._left else ""
        name = outcome.path.name if outcome.path else ""
        self._events.note(self._place, f"{name} in {outcome.seconds:.1f} s{eta}")

    def _rest(self, jobs: int) -> float | None:
        return sum(self._spent) / len(self._spent) * jobs if self._spent else None


def summary(outcomes: list[Outcome], seconds: float) -> str:
    """What became of all jobs, on one line."""
    counts = {name: sum(outcome.status == name for outcome in outcomes) for name in ("made", "skipped", "failed")}
    parts = [f"{count} {'done before' if name == 'skipped' else name}" for name, count in counts.items() if count]
    return f"{', '.join(parts)}, in {seconds:.1f} s"


def models_of(jobs: Batch) -> str:
    """Their models by name, and why the first was chosen."""
    names = list(dict.fromkeys(job.shared.model.spec.name for job in jobs.jobs))
    return f"{names[0]} ({jobs.jobs[0].shared.model.reason})" if len(names) == 1 else ", ".join(names)


def show(jobs: Batch, as_json: bool, command: str) -> None:
    """`--dry-run`: the jobs, and which of them are done."""
    from fpsgen.batch.ledger import Ledger
    from fpsgen.pipeline.memory import refusal

    ledger = Ledger(jobs.folder)
    rows = [dry_row(job, ledger) for job in jobs.jobs]
    refusals = dict.fromkeys(refusal(job.shared) for job in jobs.jobs)
    warnings = [*jobs.warnings, *(f"this machine cannot make it: {text}" for text in refusals if text)]
    if as_json:
        console.print_json(command, [{"dry_run": True, **row} for row in rows], warnings)
        return
    for text in warnings:
        console.warning(text)
    for row in rows:
        print(f"{row['line']:>4}  {row['status']:<7}  {row['size']}, {plural(row['steps'], 'step')}  {row['path']}")
    sys.stdout.flush()


def dry_row(job: Job, ledger: Ledger) -> dict[str, Any]:
    """What a job would make, and whether that is there. Raises FpsgenError DISK where another file is in its place."""
    from fpsgen.batch.run import finished

    shared, video = job.shared, job.shared.video
    done = finished(job, ledger)
    row = {"line": job.number, "status": "done" if done else "to make", "prompt": job.prompt}
    row |= {"model": shared.model.spec.name, "size": f"{video.width}x{video.height}x{video.frames}"}
    return row | {"steps": shared.sampling.steps, "seed": job.seed, "path": str(done or job.path)}
