"""docs/windows.md shows what the code does, and every density in it is met."""

from __future__ import annotations

import re
from pathlib import Path

from tools.density_table import DENSITIES, PATH, main, table

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_is_what_the_code_does(tmp_path):
    assert main(["--root", str(ROOT), "--check"]) == 0
    (tmp_path / "docs").mkdir()
    assert main(["--root", str(tmp_path), "--check"]) == 1
    assert main(["--root", str(tmp_path)]) == 0 == main(["--root", str(tmp_path), "--check"])
    path = tmp_path / PATH
    path.write_text(re.sub(r"\d%", "x%", path.read_text(), count=1))
    assert main(["--root", str(tmp_path), "--check"]) == 1


def test_every_density_in_it_is_within_a_tenth_of_what_was_asked():
    rows = [line for line in table().splitlines() if re.match(r"\| (480|720)p", line)]
    assert len(rows) == 2 * 3 * 4
    for row in rows:
        kept = [float(cell) / 100 for cell in re.findall(r": ([0-9.]+)%", row)]
        assert len(kept) == len(DENSITIES)
        assert all(abs(k / d - 1) <= 0.105 for k, d in zip(kept, DENSITIES, strict=True)), (
            row
        )  # to a tenth of a percent
