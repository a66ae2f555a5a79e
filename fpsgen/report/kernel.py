"""Rows of `fpsgen bench kernel` as a table: `python -m fpsgen.report.kernel kernel.jsonl ... > figures/name.json`.

Every row keeps what was measured and gains the texts of its cells. A peer that is not there is left out: the table says
what was measured, the bench says what was missing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = {
    "what": "Shape",
    "method": "Method",
    "runs": "Kernel",
    "kept": "Density",
    "median": "ms, median",
    "range": "p10-p90",
    "rate": "TFLOP/s",
    "attend": "Attend, TFLOP/s",
    "blocks": "with padding",
    "prep": "Prepare, ms",
    "turned": "with norm, RoPE",
}


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What figures.render takes."""
    return {"columns": COLUMNS, "rows": [row | _cells(row) for row in rows if "missing" not in row]}


def _cells(row: dict[str, Any]) -> dict[str, str]:
    tiles = "" if row["tiles"] == "fit" else ", tiles ({}, {}, {})".format(*row["tiles"])
    batch = f", batch {row['batch']}" if row["batch"] > 1 else ""
    return {
        "what": f"{row['shape']}, {row['heads']} heads{batch}{tiles}",
        "runs": "peer" if row["peer"] else row["kernel"],
        "kept": f"{row['density']:.1%}",
        "median": f"{row['median_ms']:.3f}",
        "range": f"{row['p10_ms']:.2f}-{row['p90_ms']:.2f}",
        "rate": f"{row['tflops']:.0f}",
        "attend": _number(row, "attend_tflops", 0),
        "blocks": _number(row, "attend_block_tflops", 0),
        "prep": _number(row, "prepare_ms", 2),
        "turned": _number(row, "prepare_norm_rope_ms", 2),
    }


def _number(row: dict[str, Any], key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f}" if key in row else ""


if __name__ == "__main__":
    lines = [line for name in sys.argv[1:] for line in Path(name).read_text(encoding="utf-8").splitlines()]
    print(json.dumps(table([json.loads(line) for line in lines]), indent=1))
