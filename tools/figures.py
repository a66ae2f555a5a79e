"""Tables of README, CHANGELOG and docs/, written from the committed rows in figures/.

`python -m tools.figures` rewrites what stands between the markers of each table in these documents; with
--check it changes nothing and fails where they differ. figures/<name>.json fills `<!-- figures:<name> -->` up to
`<!-- /figures:<name> -->`:

    {"columns": {"shape": "Tokens", "median_ms": "Median, ms"}, "rows": [{"shape": "...", "median_ms": 1.2, ...}]}

Every row names where it comes from: "commit" (a list of those that it is made of), "device" and "versions". These stand
in one line under the table.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tools.command_line import parser_of

PROVENANCE = ("commit", "device", "versions")
ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
_BLOCK = re.compile(r"(<!-- figures:([a-z0-9-]+) -->\n)(.*?)(<!-- /figures:\2 -->)", re.DOTALL)


def render(table: dict[str, Any], name: str) -> str:
    """A Markdown table with its provenance. Raises ValueError where a row lacks a column or its origin."""
    columns, rows = table["columns"], table["rows"]
    for number, row in enumerate(rows, 1):
        missing = [key for key in (*columns, *PROVENANCE) if key not in row]
        if missing:
            raise ValueError(f"figures/{name}.json: row {number} lacks {', '.join(missing)}")
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[key]) for key in columns) + " |" for row in rows]
    lines += ["", *(f"<sub>Measured on {origin}.</sub>" for origin in _origins(rows))]
    return "\n".join(lines) + "\n"


def fill(text: str, folder: Path) -> str:
    """The document with every marked block filled from `folder`; a block without rows yet stays empty."""

    def block(match: re.Match[str]) -> str:
        source = folder / f"{match[2]}.json"
        body = render(json.loads(source.read_text(encoding="utf-8")), match[2]) if source.is_file() else ""
        return f"{match[1]}{body}{match[4]}"

    return _BLOCK.sub(block, text)


def main(arguments: list[str] | None = None) -> int:
    """Fill or check the documents of a checkout; the exit code."""
    parser = parser_of("figures", __doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of the checkout")
    options = parser.parse_args(arguments)
    used, stale = set(), []
    for path in (options.root / name for name in DOCUMENTS):
        text = path.read_text(encoding="utf-8")
        used |= {match[2] for match in _BLOCK.finditer(text)}
        filled = fill(text, options.root / "figures")
        if filled != text:
            stale.append(path.name)
            if not options.check:
                path.write_text(filled, encoding="utf-8")
    files = {path.stem: path.read_text(encoding="utf-8") for path in (options.root / "figures").glob("*.json")}
    unused = sorted(name for name, text in files.items() if name not in used and "columns" in json.loads(text))
    for name in unused:
        print(f"figures/{name}.json has no place in {', '.join(DOCUMENTS)}", file=sys.stderr)
    for name in stale:
        print(f"{name}: {'tables are out of date; run it without --check' if options.check else 'tables rewritten'}")
    return 1 if unused or (stale and options.check) else 0


def _cell(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _origins(rows: list[dict[str, Any]]) -> list[str]:
    """Where rows come from: each machine with its versions once, and the commits that ran there."""
    commits: dict[str, dict[str, None]] = {}
    for row in rows:
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        names = row["commit"] if isinstance(row["commit"], list) else [str(row["commit"])]
        commits.setdefault(f"{row['device']}, {versions}", {}).update(dict.fromkeys(map(_commit, names)))
    return [f"{machine}, commit{'s' * (len(names) > 1)} {', '.join(names)}" for machine, names in commits.items()]


def _commit(name: str) -> str:
    """As `git log --oneline` has it; a working tree that had changes of its own says so."""
    number, dash, _ = name.partition("-")
    return number[:7] + (" with uncommitted changes" if dash else "")


if __name__ == "__main__":
    sys.exit(main())
