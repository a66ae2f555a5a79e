"""Progress by stage: drawn with rich on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from fpsgen.cli import console
from fpsgen.pipeline.events import Timing
from fpsgen.report.lines import duration
from fpsgen.text import plural


class Quiet:
    """Shows nothing. The base of the other two. Satisfies fpsgen.pipeline.events.Events.

    brief: stages are shown while they run and leave no line behind.
    """

    def __init__(self) -> None:
        self.brief = False
        self._spent, self._pace = 0.0, ""
        self._before: int | None = None  # steps of the stage that an earlier run did, None before the first one
        self._unknown = 0  # jobs of which nothing but the steps of the first tells how long they take

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def stage_start(self, name: str) -> None:
        pass

    def stage_end(self, name: str, seconds: float) -> None:
        pass

    def step(self, index: int, total: int, seconds: float, note: str) -> None:
        pass

    def note(self, name: str, text: str) -> None:
        pass

    def job(self, place: str, prompt: str, rest: float | None, left: int) -> None:
        """A job of several begins; from here on its stages leave no line behind. rest: seconds that all still take,
        None while none has ended. left: how many are to be made, with this one.
        """
        self.brief = True
        self._unknown = 0 if rest else left

    def warn(self, text: str) -> None:
        pass

    def _speed(self, index: int, total: int, seconds: float) -> str:
        """Take a step, and say how fast they are: those of this run alone, which may have gone on in the middle."""
        self._before = index if self._before is None else self._before
        self._spent += seconds
        done, wanted = index + 1 - self._before, total - self._before
        self._pace = f", {plural(wanted, 'step')}, {self._spent / done:.2f} s/it"
        return pace(done, wanted, self._spent)


class Plain(Quiet):
    """One line for each stage, and one for each tenth of the denoising."""

    def __init__(self) -> None:
        super().__init__()
        self._stage = "denoise"
        self._tenth = 0

    def stage_start(self, name: str) -> None:
        self._stage, self._spent, self._before, self._tenth, self._pace = name, 0.0, None, 0, ""

    def stage_end(self, name: str, seconds: float) -> None:
        if not self.brief:
            self.note(name, f"{seconds:.1f} s{self._pace}")

    def step(self, index: int, total: int, seconds: float, note: str) -> None:
        done, speed = index + 1, self._speed(index, total, seconds)
        if done * 10 // total > self._tenth and done < total and not self.brief:
            self._tenth = done * 10 // total
            self.note(self._stage, f"{done}/{total} {speed}  {note}")
        if self._unknown and 1 < done < total:  # the first step warms up
            self.note("batch", f"ETA of all about {duration(self._spent / done * total * self._unknown)}")
            self._unknown = 0

    def note(self, name: str, text: str) -> None:
        console.note(f"{name:<8} {text}")

    def job(self, place: str, prompt: str, rest: float | None, left: int) -> None:
        super().job(place, prompt, rest, left)
        self.note(place, console.one_line(prompt, 60) + (f", ETA of all {duration(rest)}" if rest else ""))

    def warn(self, text: str) -> None:
        console.warning(text)


class Drawn(Quiet):
    """The running stage moves on the last line; those that have ended stay above it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # what the other columns leave
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[note]}", markup=False, table_column=rest),
            TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False, emoji=False),
            transient=True,
            expand=True,
        )
        self._task: Any = None
        self._job = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def stage_start(self, name: str) -> None:
        self._spent, self._before, self._pace = 0.0, None, ""
        self._task = self._progress.add_task(name, total=None, note=self._job)

    def stage_end(self, name: str, seconds: float) -> None:
        self._progress.remove_task(self._task)
        if not self.brief:
            self.note(name, f"{seconds:.1f} s{self._pace}")

    def step(self, index: int, total: int, seconds: float, note: str) -> None:
        done, speed = index + 1, self._speed(index, total, seconds)
        rest = self._spent / done * total * self._unknown - self._spent
        every = f"all about {duration(rest)}  " if self._unknown else ""
        text = f"{done}/{total} {speed}  {every}{self._job or note}"
        self._progress.update(self._task, total=total, completed=done, note=text)

    def note(self, name: str, text: str) -> None:
        self._print(f"{name:<8} {text}")

    def job(self, place: str, prompt: str, rest: float | None, left: int) -> None:
        super().job(place, prompt, rest, left)
        self._job = f"{place} " + (f"all {duration(rest)}  " if rest else "") + console.one_line(prompt, 40)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}")

    def _print(self, text: str) -> None:
        self._progress.console.print(console.one_line(text, 2000), markup=False, highlight=False, soft_wrap=True)


def choose(quiet: bool) -> Quiet:
    """The progress that suits stderr."""
    return Quiet() if quiet else Drawn() if console.can_draw() else Plain()


@contextmanager
def working(quiet: bool, debug: bool = False, warnings: Iterable[str] = ()) -> Iterator[tuple[Quiet, Timing]]:
    """Progress on stderr for the block, and a Timing that reports to it.

    warnings: said first; those that our own code raises meanwhile follow. Libraries are silent unless debug.
    """
    console.quiet_libraries(debug)
    with choose(quiet) as events:
        timing = Timing(events)
        for text in warnings:
            timing.warn(text)
        with console.library_warnings(timing.warn, debug):
            yield events, timing


def pace(done: int, total: int, spent: float) -> str:
    """Seconds for a step so far, and the time that the rest will take."""
    each = spent / done
    return f"{each:.2f} s/it ETA {duration(each * (total - done))}"
