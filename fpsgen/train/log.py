"""What is told of a run: one line a step in log.jsonl, the same for TensorBoard where it is installed, and a page."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fpsgen.errors import NUMERIC, FpsgenError
from fpsgen.fields import Field, Spec, fields, mapping, or_null, parse_json, real, text, whole
from fpsgen.files import append_line, read_bytes, write_text
from fpsgen.report.training import page
from fpsgen.text import show

LOG, PAGE, BOARD = "log.jsonl", "page.html", "tensorboard"
LIMIT = 1 << 30  # bytes of a log
WINDOW = 20  # losses of a profile in a mean
DIVERGED, SUSPECT = 10.0, 5.0  # times the mean at the beginning


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; blank lines and those that a kill cut short are passed over. Raises FpsgenError BAD_INPUT."""
    rows = []
    data = read_bytes(path, LIMIT, show(path)) if os.path.lexists(path) else b""
    for line in data.decode("utf-8", "replace").split("\n"):
        with suppress(FpsgenError):
            row = parse_json(line, "a line")
            rows.append(row | fields(row, _ROW, "a line", more=True))
    return rows


def _part(value: Any) -> dict[str, Any]:
    """What a step did for one objective."""
    loss = real(-1e30, 1e30)
    optional = {"dense_loss": loss} if isinstance(value, dict) and "dense_loss" in value else {}
    try:
        fields(value, {"profile": text(1000), "loss": loss, **optional}, "", more=True)
    except FpsgenError as error:
        raise ValueError from error
    return value


_ROW: Spec = {
    "step": whole(0, 1 << 40),
    "samples": whole(0, 1 << 40),
    "seconds": real(0, 1e9, 0.0),
    "density": or_null(real(0, 1)),
    **dict.fromkeys(("loss", "grad_norm", "lr"), real(-1e30, 1e30)),
    "objectives": mapping(Field(_part, "profile and loss")),
}


class Log:
    """Of a run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        return write_text(page(self._rows, name, sorted(self.folder.glob("*.mp4"))), self.folder / PAGE, overwrite=True)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(row.get("seconds", 0.0) for row in self._rows)

    def _take(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
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
    for name, part in row["objectives"].items():
        found[f"loss/{name}/{part['profile']}"] = part["loss"]
        if "dense_loss" in part:
            found[f"dense_loss/{name}/{part['profile']}"] = part["dense_loss"]
    return found
