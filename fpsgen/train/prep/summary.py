"""What was kept and what was dropped, as a table."""

from __future__ import annotations

from typing import Any

NAMES = {
    "missing": "no such file",
    "caption": "no caption that can be used",
    "unreadable": "does not decode",
    "duration": "shorter than a clip",
    "fps": "fewer frames a second than the data",
    "bars": "black bars take too much",
    "size": "smaller than the data",
    "colour": "one colour",
    "flow": "too little or too much motion",
    "duplicate": "like a clip before it",
}


def table(data: dict[str, Any]) -> list[str]:
    """Lines of Markdown. data: what data.json holds. Videos that are dropped count as one clip."""
    rows = [("kept", "", data["samples"]), ("of these held out", "", len(data["held_out"]))]
    rows += [(f"dropped: {name}", NAMES.get(name, ""), count) for name, count in data["dropped"].items()]
    return ["| clips | why | number |", "| --- | --- | ---: |", *(f"| {a} | {b} | {n} |" for a, b, n in rows)]
