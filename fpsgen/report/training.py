"""The page of a training run, from the rows of its log: losses by profile beside dense attention's, and more. It
fetches nothing: charts and validation videos are inside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fpsgen.errors import FpsgenError
from fpsgen.fields import Field, Spec, fields, mapping, or_null, real, text, whole
from fpsgen.files import read_json
from fpsgen.logs import read_objects
from fpsgen.report import charts
from fpsgen.report.lines import columns, duration
from fpsgen.report.template import embedded, fill
from fpsgen.text import plural

LIMIT = 1 << 30  # bytes of a log
POINTS = 150  # of a curve
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
DENSE = "#888888"
HELD_OUT = "held-out error of the averaged weights, relative"  # title of its chart
BEFORE = "before.json"  # in a run's folder: held-out errors before training
Row = dict[str, Any]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; lines that are none are passed over. Raises FpsgenError BAD_INPUT."""
    rows = []
    for row in read_objects(path, LIMIT):
        with suppress(FpsgenError):
            spec = {**_ROW, **({"held_out": mapping(real(0, 1e30))} if "held_out" in row else {})}
            rows.append(row | fields(row, spec, "a line", more=True))
    return rows


def _objective(value: Any) -> dict[str, Any]:
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
    "objectives": mapping(Field(_objective, "profile and loss")),
}


def errors_before(folder: Path) -> dict[str, float]:
    """Held-out errors before training, by profile; none where they cannot be read. folder: of the run."""
    with suppress(FpsgenError):
        table = read_json(folder / BEFORE, 1 << 20, BEFORE)
        return fields({"held_out": table}, {"held_out": mapping(real(0, 1e30))}, BEFORE)["held_out"]
    return {}


def page(
    rows: Sequence[Row], name: str, videos: Sequence[Path] = (), before: Mapping[str, float] = MappingProxyType({})
) -> str:
    """rows: of log.jsonl, in order. videos: MP4s to show. before: held-out errors before training, by profile."""
    drawn = [(title, _chart(rows, title, curves, before)) for title, curves in _curves(rows).items()]
    return fill(
        "training.html",
        name=name,
        summary=_summary(rows),
        table=table(rows),
        charts=[{"title": title, "svg": svg, "keys": keys} for title, (svg, keys) in drawn if svg],
        videos=[{"name": path.stem, "data": embedded(path)} for path in videos if os.path.isfile(path)],
    )


def validation_videos(folder: Path) -> list[Path]:
    """MP4s that a run made of its checkpoints, the earliest first. folder: of the run."""
    return sorted(folder.glob("step-*.mp4"))


def table(rows: Sequence[Row]) -> list[str]:
    """One line for each loss and profile: steps, the mean at the beginning and at the end, dense attention's last."""
    shown = [["loss, profile", "steps", "first tenth", "last tenth", "dense"]]
    for name, profile in _parts(rows):
        parts = [part for row in rows if (part := row["objectives"].get(name)) and part["profile"] == profile]
        losses = [part["loss"] for part in parts]
        few = max(1, len(losses) // 10)
        dense = [part["dense_loss"] for part in parts if "dense_loss" in part]
        cells = [f"{sum(some) / few:.4g}" for some in (losses[:few], losses[-few:])]
        shown.append([f"{name}, {profile}", str(len(losses)), *cells, f"{dense[-1]:.4g}" if dense else "-"])
    return columns(shown)


def _summary(rows: Sequence[Row]) -> str:
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    samples = sum(row["samples"] for row in rows)
    if not rows or not seconds:
        return "no step yet"
    done = f"{plural(rows[-1]['step'], 'step')}, {plural(samples, 'sample')}"
    return f"{done}, {duration(seconds)} of training, {samples / seconds:.3g} samples/s"


def _parts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return sorted({(name, part["profile"]) for row in rows for name, part in row["objectives"].items()})


def _curves(rows: Sequence[Row]) -> dict[str, list[tuple[str, str, Callable[[Row], float | None]]]]:
    """(name, colour, value of a row) of each curve, by chart."""
    found: dict[str, Any] = {}
    for number, (name, profile) in enumerate(_parts(rows)):
        chart = found.setdefault(f"loss: {name}", [])
        chart.append((profile, COLOURS[number % len(COLOURS)], _part(name, profile, "loss")))
    for name, profile in _parts(rows):
        sparse, dense = _pairwise(name, profile)
        title = f"sparse beside dense, same samples: {name}, {profile}"
        found[title] = [("sparse", COLOURS[0], sparse), ("dense", DENSE, dense)]
    profiles = sorted({name for row in rows for name in row.get("held_out", ())})
    for number, profile in enumerate(profiles):
        chart = found.setdefault(HELD_OUT, [])
        value = lambda row, profile=profile: row.get("held_out", {}).get(profile)  # noqa: E731
        chart.append((profile, COLOURS[number % len(COLOURS)], value))
    for key in ("grad_norm", "density"):
        found[key.replace("_", " ")] = [(key.replace("_", " "), COLOURS[0], lambda row, key=key: row.get(key))]
    rate = lambda row: row["samples"] / row["seconds"] if row.get("seconds") else None  # noqa: E731
    return found | {"samples a second": [("samples/s", COLOURS[0], rate)]}


def _part(name: str, profile: str, key: str) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        part = row["objectives"].get(name)
        return part.get(key) if part and part["profile"] == profile else None

    return value


def _pairwise(name: str, profile: str) -> tuple[Callable[[Row], float | None], Callable[[Row], float | None]]:
    """Losses of steps of a profile that were measured with dense attention as well."""

    def value(row: Row, key: str) -> float | None:
        part = row["objectives"].get(name, {})
        return part[key] if "dense_loss" in part and part["profile"] == profile else None

    return lambda row: value(row, "loss"), lambda row: value(row, "dense_loss")


def _chart(
    rows: Sequence[Row], title: str, curves: Sequence[Any], before: Mapping[str, float]
) -> tuple[str, list[dict[str, str]]]:
    drawn = []
    for name, colour, value in curves:
        points = _means([(row["step"], value(row)) for row in rows])
        if title == HELD_OUT and name in before:
            points.insert(0, (0, before[name]))
        if points:
            drawn.append((name, colour, points))
    steps = (0, rows[-1]["step"] if rows else 0)
    return charts.curves(drawn, "step", title, steps), [{"name": name, "colour": colour} for name, colour, _ in drawn]


def _means(values: Sequence[tuple[int, float | None]]) -> list[tuple[float, float]]:
    """Means (step, value) over equal parts of five steps or more; of steps without a value there is no point."""
    count = min(POINTS, max(1, len(values) // 5))
    found = []
    for index in range(count):
        part = values[index * len(values) // count : (index + 1) * len(values) // count]
        known = [(step, value) for step, value in part if value is not None]
        if known:
            found.append((sum(step for step, _ in known) / len(known), sum(value for _, value in known) / len(known)))
    return found
