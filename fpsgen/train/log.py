"""What is reported of a run: a line a step in log.jsonl, the same for TensorBoard where it is installed, and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fpsgen.errors import NUMERIC, FpsgenError
from fpsgen.files import write_text
from fpsgen.logs import append_line
from fpsgen.report.training import errors_before, page, read_log, validation_videos

LOG, PAGE, BOARD = "log.jsonl", "page.html", "tensorboard"
WINDOW = 20  # losses of a profile in a mean
DIVERGED, SUSPECT = 10.0, 5.0  # times the mean at the beginning


class Log:
    """Of a run in a folder. judged_from: losses of the steps up to this one say nothing of those that follow, since the
    density still changes.
    """

    def __init__(self, folder: Path, judged_from: int = 0) -> None:
        self.folder, self._judged_from = folder, judged_from
        self._rows: list[dict[str, Any]] = []
        self._losses: dict[str, list[float]] = {}
        self._board: Any = None

    def begin(self, step: int) -> None:
        """Go on after `step` steps: lines beyond them are of steps that will be done again."""
        path = self.folder / LOG
        kept = [row for row in read_log(path) if row["step"] <= step]
        if path.exists():
            write_text("".join(json.dumps(row) + "\n" for row in kept), path, overwrite=True)
        for row in kept:
            self._take(row)
        self._board = _writer(self.folder / BOARD, step)

    def add(self, row: dict[str, Any]) -> None:
        """One step. Raises FpsgenError DISK; NUMERIC where losses have risen to DIVERGED times the first ones."""
        append_line(self.folder / LOG, json.dumps(row))
        self._take(row)
        if self._board is not None:
            for name, value in _scalars(row).items():
                self._board.add_scalar(name, value, row["step"])
        self._refuse(DIVERGED, row["step"])

    def check(self, step: int) -> None:
        """Raises FpsgenError NUMERIC where losses have risen to SUSPECT times the first ones: no checkpoint then."""
        self._refuse(SUSPECT, step)

    def show(self, name: str) -> Path:
        """Write the page."""
        html = page(self._rows, name, validation_videos(self.folder), errors_before(self.folder))
        return write_text(html, self.folder / PAGE, overwrite=True)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(row.get("seconds", 0.0) for row in self._rows)

    def _take(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if row["step"] <= self._judged_from:
            return
        for name, part in row["objectives"].items():
            self._losses.setdefault(f"{name} in profile {part['profile']}", []).append(part["loss"])

    def _refuse(self, factor: float, step: int) -> None:
        for name, losses in self._losses.items():
            if len(losses) < 2 * WINDOW:
                continue
            first, last = sum(losses[:WINDOW]) / WINDOW, sum(losses[-WINDOW:]) / WINDOW
            if last > factor * first:
                raise FpsgenError(
                    f"step {step}: the loss of {name} rose from {first:.3g} to {last:.3g}",
                    "lower lr and use another folder; the last checkpoint from before is kept",
                    NUMERIC,
                )


def _writer(folder: Path, step: int) -> Any:
    """TensorBoard's, None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _scalars(row: dict[str, Any]) -> dict[str, float]:
    found = {"loss/total": row["loss"], "grad_norm": row["grad_norm"], "lr": row["lr"]}
    if row["density"] is not None:
        found["density"] = row["density"]
    if row.get("seconds"):
        found["samples_per_second"] = row["samples"] / row["seconds"]
    found |= {f"held_out/{profile}": error for profile, error in row.get("held_out", {}).items()}
    for name, part in row["objectives"].items():
        found[f"loss/{name}/{part['profile']}"] = part["loss"]
        if "dense_loss" in part:
            found[f"dense_loss/{name}/{part['profile']}"] = part["dense_loss"]
    return found
