"""`fpsgen batch`: a video for every line of a file; what is done already is left alone."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fpsgen.cli import console, options
from fpsgen.errors import PARTIAL

if TYPE_CHECKING:
    from fpsgen.batch.jobs import Batch, Job
    from fpsgen.batch.run import Outcome
    from fpsgen.cli.progress import Quiet

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help=".txt (a prompt per line), .jsonl (options too), - (stdin).", show_default=False
    ),
]


def batch(
    file: File,
    model: options.Model = None,
    res: options.Res = None,
    aspect: options.Aspect = None,
    frames: options.Frames = None,
    seconds: options.Seconds = None,
    fps: options.Fps = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    shift: options.Shift = None,
    negative: options.Negative = None,
    seed: options.Seed = None,
    method: options.Method = None,
    schedule: options.Schedule = None,
    strict: options.Strict = False,
    output: options.Folder = None,
    overwrite: options.Overwrite = False,
    no_metadata: options.NoMetadata = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    debug: options.Debug = False,
) -> None:
    """Make a video for every line of a file. Run it again to go on: what is done is skipped.

    Options are the default of every line. stdout: the paths. Exit code 3: some videos failed, the others are there.
    """
    make(file, options.flags(locals()), overwrite, as_json, quiet, dry_run, debug, "batch")


def make(
    file: str,
    given: dict[str, Any],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    debug: bool,
    command: str,
) -> None:
    """What `fpsgen batch` and `fpsgen generate --prompts` do. Raises typer.Exit PARTIAL where a job failed."""
    from fpsgen.batch.jobs import read_batch

    jobs = read_batch(file, given, overwrite)
    if dry_run:
        show(jobs, as_json, command)
        return

    from fpsgen.batch.run import run
    from fpsgen.cli import progress
    from fpsgen.pipeline.events import Timing

    debug = console.debugging(debug)
    console.quiet_libraries(debug)
    outcomes: list[Outcome] = []
    with progress.choose(quiet) as events:
        told = Told(events)
        timing = Timing(events)
        for text in jobs.warnings:
            timing.warn(text)
        events.note("batch", f"{len(jobs.jobs)} videos into {jobs.folder}, model {models_of(jobs)}")
        try:
            with console.library_warnings(timing.warn, debug):
                for outcome in run(jobs, told, timing):
                    outcomes.append(outcome)
                    if not as_json and outcome.path is not None:
                        print(outcome.path, flush=True)
        except BaseException:
            left = len(jobs.jobs) - sum(outcome.path is not None for outcome in outcomes)
            events.note("batch", f"stopped with {left} of {len(jobs.jobs)} videos to go; the same command goes on")
            raise
        events.note("batch", summary(outcomes, timing.total))
    if as_json:
        console.print_json(command, [outcome.as_json() for outcome in outcomes], timing.warnings)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        again = "the same command tries them again"
        console.note(f"failed: line {', '.join(str(outcome.job.number) for outcome in failed)}; {again}")
        raise typer.Exit(PARTIAL)


class Told:
    """Jobs for a person: which one runs, what it took, how long the rest will take."""

    def __init__(self, events: Quiet) -> None:
        self._events = events
        self._start = time.monotonic()
        self._place = ""
        self._left = 0
        self._spent: list[float] = []

    def job_start(self, job: Job, index: int, total: int) -> Quiet:
        self._place, self._left = f"{index}/{total}", total - index
        self._events.brief = True
        return self._events

    def job_end(self, outcome: Outcome) -> None:
        from fpsgen.cli.progress import clock

        if outcome.error is not None:
            what, fix = outcome.error.message, outcome.error.remedy
            self._events.warn(f"{self._place} line {outcome.job.number} failed: {what} ({fix})")
            return
        self._spent.append(outcome.seconds)
        rest = sum(self._spent) / len(self._spent) * self._left
        eta = f", ETA {clock(rest)}" if self._left else ""
        name = outcome.path.name if outcome.path else ""
        self._events.note(self._place, f"{name} in {outcome.seconds:.1f} s{eta}")


def summary(outcomes: list[Outcome], seconds: float) -> str:
    """What became of all jobs, on one line."""
    counts = {name: sum(outcome.status == name for outcome in outcomes) for name in ("made", "skipped", "failed")}
    parts = [f"{count} {'done before' if name == 'skipped' else name}" for name, count in counts.items() if count]
    return f"{', '.join(parts)}, in {seconds:.1f} s"


def models_of(jobs: Batch) -> str:
    """Their models by name, and why the first was chosen."""
    names = list(dict.fromkeys(job.request.model.name for job in jobs.jobs))
    return f"{names[0]} ({jobs.reason})" if len(names) == 1 else ", ".join(names)


def show(jobs: Batch, as_json: bool, command: str) -> None:
    """`--dry-run`: the jobs, and which of them are done."""
    from fpsgen.batch.ledger import Ledger

    ledger = Ledger(jobs.folder)
    rows = []
    for job in jobs.jobs:
        request = job.request
        done = None if request.overwrite else ledger.done(job)
        size = f"{request.width}x{request.height}x{request.frames}"
        row = {"line": job.number, "status": "done" if done else "to make", "prompt": request.prompt}
        row |= {"model": request.model.name, "size": size, "steps": request.steps, "seed": request.seed}
        rows.append(row | {"path": str(done or request.output)})
    if as_json:
        console.print_json(command, [{"dry_run": True, **row} for row in rows], list(jobs.warnings))
        return
    for text in jobs.warnings:
        console.warning(text)
    for row in rows:
        print(f"{row['line']:>4}  {row['status']:<7}  {row['size']}, {row['steps']} steps  {row['path']}")
    sys.stdout.flush()
