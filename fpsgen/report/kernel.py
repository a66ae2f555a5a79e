"""Rows of `fpsgen bench kernel` as text, and as a table of the documents:
`python -m fpsgen.report.kernel kernel.jsonl ... > figures/name.json`.

Every row keeps what was measured and gains the texts of its cells. A peer that is not there is left out: the table says
what was measured, the bench says what was missing.
"""

from __future__ import annotations

import json
from typing import Any

from fpsgen.report.lines import columns
from fpsgen.report.rows import rows_of_command_line

COLUMNS = {
    "what": "Shape",
    "method": "Method",
    "runs": "Kernel",
    "kept": "Density",
    "median": "ms, median",
    "range": "p10-p90",
    "rate": "TFLOP/s",
    "error": "Error to fp64",
    "attend": "attention alone, TFLOP/s",
    "blocks": "with padding",
    "prep": "quantization, ms",
    "with_norm_rope": "with norm, RoPE",
}
EXPLAINED = {  # columns of the text
    "TFLOP/s": "TFLOP/s: of kept pairs of real tokens",
    "error": "error: to fp64 over the same keys",
    "to dense": "to dense: error to fp64 over all keys",
    "attend": "attend: TFLOP/s without quantization",
    "host": "host: microseconds that the CPU takes for a call",
}


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What figures.render takes."""
    return {"columns": COLUMNS, "rows": [row | _cells(row) for row in rows if "missing" not in row]}


def line(row: dict[str, Any]) -> str:
    """One row as it comes."""
    if "missing" in row:
        return f"{_group(row)}: {row['method']} {row['missing']}"
    return f"{_group(row)}: {row['method']} at density {row['density']:.1%}, {row['median_ms']:.3f} ms"


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as text, a block for each shape, with the columns that have a figure there. 80 columns hold it."""
    shown = [f"{rows[0]['device']}, commit {rows[0]['commit'] or 'unknown'}"]
    blocks = []
    for name in dict.fromkeys(map(_group, rows)):
        block = [["", "density", "ms", "p10-p90", "TFLOP/s", "error", "to dense", "attend", "host"]]
        for row in rows:
            if _group(row) != name:
                continue
            if "missing" in row:
                block.append([row["method"], row["missing"], *[""] * 7])
                continue
            spread = f"{row['p10_ms']:.4g}-{row['p90_ms']:.4g}"
            rate = f"{row['tflops']:.{0 if row['tflops'] >= 10 else 1}f}"
            figures = [f"{row['density']:.1%}", f"{row['median_ms']:.3f}", spread, rate]
            host = f"{row['host_us']:.0f}" if row["host_us"] is not None else ""
            dense = f"{row['error_to_dense']:.1e}" if row["captured"] else ""  # of random data it says nothing
            rest = [f"{row['relative_error']:.1e}", dense, _number(row, "attend_tflops", 0), host]
            block.append([row["method"], *figures, *rest])
        blocks.append((name, _filled(block)))
    heads = {head for _, block in blocks for head in block[0]}
    shown += [text for head, text in EXPLAINED.items() if head in heads]
    return [*shown, *(text for name, block in blocks for text in (f"{name}:", *columns(block)))]


def _filled(block: list[list[str]]) -> list[list[str]]:
    """Without the columns that only have a head; the first two stay."""
    kept = [index for index in range(len(block[0])) if index < 2 or any(line[index] for line in block[1:])]
    return [[line[index] for index in kept] for line in block]


def _group(row: dict[str, Any]) -> str:
    return f"{row['shape']}{_tiles(row)}, {row['heads']} heads" + (
        f", batch {row['batch']}" if row["batch"] > 1 else ""
    )


def _cells(row: dict[str, Any]) -> dict[str, str]:
    batch = f", batch {row['batch']}" if row["batch"] > 1 else ""
    return {
        "what": f"{row['shape']}, {row['heads']} heads{batch}{_tiles(row)}",
        "runs": "peer" if row["peer"] else row["kernel"],
        "kept": f"{row['density']:.1%}",
        "median": f"{row['median_ms']:.3f}",
        "range": f"{row['p10_ms']:.2f}-{row['p90_ms']:.2f}",
        "rate": f"{row['tflops']:.0f}",
        "error": f"{row['relative_error']:.1e}" if "relative_error" in row else "",
        "attend": _number(row, "attend_tflops", 0),
        "blocks": _number(row, "attend_block_tflops", 0),
        "prep": _number(row, "prepare_ms", 2),
        "with_norm_rope": _number(row, "prepare_norm_rope_ms", 2),
    }


def _tiles(row: dict[str, Any]) -> str:
    tiles = row["tiles"]
    return "" if tiles == "fit" else f", tiles {tiles}" if isinstance(tiles, str) else f", tiles {tuple(tiles)}"


def _number(row: dict[str, Any], key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f}" if key in row else ""


if __name__ == "__main__":
    print(json.dumps(table(rows_of_command_line("kernel", __doc__)), indent=1))
