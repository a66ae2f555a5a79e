"""Rows of `fpsgen bench` back from their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fpsgen.errors import BAD_INPUT, FpsgenError

SCHEMAS = ("fpsgen.bench/1", "fpsgen.bench/2")
LIMIT = 64 << 20  # bytes
_NEEDED = {
    "method": str,
    "baseline": str,
    "device": str,
    "created": str,
    "model": str,
    "prompt": str,
    "schedule": str,
    "versions": dict,
    "stages_s": dict,
    "step_s": dict,
    "total_s": dict,
    "peak_memory": dict,
    "kernels": dict,
    "speedup_denoise": float,
    **dict.fromkeys(("width", "height", "frames", "tokens", "steps", "seed"), int),
}
_OPTIONAL = ("commit", "random_weights", "attention_share", "density", "psnr_db", "ssim", "video", "guidance")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one file, in order. Raises FpsgenError BAD_INPUT naming file and line."""
    try:
        if path.stat().st_size > LIMIT:
            raise FpsgenError(f"{path} is larger than 64 MiB", "name a file that fpsgen bench wrote", BAD_INPUT)
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise FpsgenError(f"{path} cannot be read: {why}", "name a bench.jsonl file", BAD_INPUT) from None
    return [_row(text, f"{path} line {number}") for number, text in enumerate(texts, 1) if text.strip()]


def _row(text: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise FpsgenError(f"{place} is not JSON", "name a file that fpsgen bench wrote", BAD_INPUT) from None
    if not isinstance(row, dict) or row.get("schema") not in SCHEMAS:
        raise FpsgenError(f"{place} is no row of fpsgen bench", f"their schemas are {', '.join(SCHEMAS)}", BAD_INPUT)
    wrong = [key for key, kind in _NEEDED.items() if not _is(row.get(key), kind)]
    wrong += [key for key in _OPTIONAL if key not in row]
    if not wrong:
        spreads = (row["step_s"], row["total_s"], *row["stages_s"].values())
        wrong += [] if "denoise" in row["stages_s"] else ["stages_s"]
        wrong += [] if all(isinstance(x, dict) and _is(x.get("median"), float) for x in spreads) else ["times"]
    if wrong:
        raise FpsgenError(f"{place}: {wrong[0]} cannot be used", "name a file that fpsgen bench wrote", BAD_INPUT)
    return row


def _is(value: object, kind: type) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number if kind is float else isinstance(value, kind) and not isinstance(value, bool)
