"""Rows of `fpsgen bench` back from their files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.fields import Field, Spec, fields, many, mapping, or_null, parse_json, raw, real, switch, text, whole
from fpsgen.files import read_text
from fpsgen.text import show

SCHEMAS = ("fpsgen.bench/1", "fpsgen.bench/2")
LIMIT = 64 << 20  # bytes
_REMEDY = "name a file that fpsgen bench wrote"
_COUNT = whole(0, 10**12)
_SECONDS = real(0, 1e9)
_SPREAD: Spec = {"median": _SECONDS, "min": _SECONDS, "max": _SECONDS}


def _table(spec: Spec, wanted: str) -> Field:
    def check(value: Any) -> dict[str, Any]:
        try:
            return fields(value, spec, "", more=True)
        except FpsgenError as error:
            raise ValueError from error

    return Field(check, wanted)


def _figure(low: float, high: float) -> Field:
    return or_null(real(low, high))


_SIZE = or_null(many(_COUNT, 3, 3))
_PROFILE: Spec = {
    **dict.fromkeys(("profile", "method", "kernel"), text(200)),
    **dict.fromkeys(("tile", "window"), _SIZE),
    "steps": _COUNT,
    "density": _figure(0, 1),
    "step_s": _SPREAD,
}
_ROW: Spec = {
    **dict.fromkeys(("method", "baseline", "device", "created", "model", "schedule"), text(1000)),
    **dict.fromkeys(("width", "height", "frames", "tokens", "steps", "seed"), _COUNT),
    **dict.fromkeys(("step_s", "total_s"), _SPREAD),
    "prompt": text(100_000),
    "guidance": real(0, 1e9),
    "versions": mapping(or_null(text(200))),
    "commit": or_null(text(200, empty=True)),  # empty where fpsgen runs from no checkout
    "random_weights": switch(),
    "stages_s": mapping(_table(_SPREAD, "the median, min and max of a stage")),
    "profiles": many(_table(_PROFILE, "what ran by one profile"), 0, 1000, default=()),
    "steps_s": many(_SECONDS, 0, 100_000, default=()),
    "peak_memory": {"cuda_bytes": or_null(_COUNT)},
    "kernels": mapping(_COUNT),
    "speedup_denoise": real(0, 1e9),
    "attention_share": _figure(0, 100),
    "density": _figure(0, 1),
    **dict.fromkeys(("psnr_db", "vmaf", "xpsnr_db"), _figure(-1e4, 1e4)),
    **dict.fromkeys(("ssim", "flicker", "stlpips"), _figure(-1, 1e4)),
    **dict.fromkeys(("bf16_backend", "linear", "cache"), or_null(text(200))),
    "cfg_until": _figure(0, 1),
    "fused": or_null(switch()),
    "video": or_null(raw(4096)),
    "command": text(100_000, "", empty=True),
}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one file, in order, each value checked. Raises FpsgenError BAD_INPUT naming file and line."""
    return [_row(line, place) for line, place in _lines(path)]


def rows_of_command_line(name: str, doc: str | None) -> list[dict[str, Any]]:
    """What `python -m fpsgen.report.NAME FILE ...` was given: rows of any kind, in order. Ends the process where a file
    has none.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m fpsgen.report.{name}", description=(doc or "").split("\n")[0].rstrip(":")
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="rows as JSON lines, as fpsgen bench writes them")
    try:
        return [
            parse_json(line, place, example=_REMEDY)
            for path in parser.parse_args().files
            for line, place in _lines(path)
        ]
    except FpsgenError as error:
        parser.exit(error.code, f"error: {error.message}\nfix: {error.remedy}\n")


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Lines of a file, and what to call each of them; empty ones are left out. Raises FpsgenError BAD_INPUT."""
    for number, line in enumerate(read_text(path, LIMIT, show(path)).split("\n"), 1):
        if line.strip():
            yield line, f"{show(path)} line {number}"


def _row(line: str, place: str) -> dict[str, Any]:
    row = parse_json(line, place, example=_REMEDY)
    if row.get("schema") not in SCHEMAS:
        fix = "give bench.jsonl, which fpsgen bench writes, or log.jsonl of fpsgen train"
        raise FpsgenError(f"{place} is no row of fpsgen bench", fix, BAD_INPUT)
    row |= fields(row, _ROW, place, more=True, example=_REMEDY)
    if not row["stages_s"].get("denoise", {}).get("median"):
        raise FpsgenError(f"{place}: stages_s has no time of denoising", _REMEDY, BAD_INPUT)
    return row
