"""Progress of bytes that are fetched or checked."""

from __future__ import annotations

import time
from typing import Any

from fpsgen.cli import console
from fpsgen.report.lines import amount


class Bytes:
    """Bytes as they pass: a bar on a terminal, a line for every tenth elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool, title: str) -> None:
        self._quiet, self._title = quiet, title
        self._bar: Any = None
        self._tenth = 0
        self._start = time.monotonic()
        self._first = -1

    def __enter__(self) -> Bytes:
        if not self._quiet and console.can_draw():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as Speed

            columns = (TextColumn("{task.description}", markup=False), BarColumn(16), DownloadColumn(), Speed())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bar.add_task(self._title, total=None)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(0, completed=done, total=total, description=name[-30:])
            return
        self._first = done if self._first < 0 else self._first
        tenth = done * 10 // total if total else 10
        if self._quiet or tenth <= self._tenth:
            return
        self._tenth = tenth
        pace = (done - self._first) / max(time.monotonic() - self._start, 1e-3)
        console.note(f"{self._title}  {amount(done)} of {amount(total)}, {amount(pace)}/s")
