"""The hostile suite: faults by the hundred, each kind with a control that shows that it would be seen.

HOSTILE_ROWS=figures/hostile.json python -m pytest tests/hostile -m slow
writes what was counted as rows of that file, a row of the same name anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COLUMNS = {"run": "Fault", "tried": "Tried", "as_promised": "As promised", "control": "Control", "detail": "Counted"}


@pytest.fixture
def row(request) -> Callable[..., None]:
    """row("bit flips", tried=1000, as_promised=1000, control="...", detail="...") keeps a figure."""

    def keep(run: str, **values: Any) -> None:
        path = os.environ.get("HOSTILE_ROWS")
        if not path:
            return
        import torch

        from fpsgen.bench.provenance import provenance

        file = Path(path)
        table = json.loads(file.read_text()) if file.is_file() else {"columns": COLUMNS, "rows": []}
        rows = [old for old in table["rows"] if old["run"] != run]
        rows.append({"run": run, **values, **provenance(torch.device("cpu"))})
        table["rows"] = sorted(rows, key=lambda entry: entry["run"])
        file.write_text(json.dumps(table, indent=1) + "\n")

    return keep
