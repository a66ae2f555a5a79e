"""README's tables come from committed rows, and a stale one is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.figures import DOCUMENTS, fill, main, render

ROOT = Path(__file__).resolve().parents[2]
ROW = {"shape": "a|b", "ms": 1.25, "commit": "0123456789abcdef", "device": "H100", "versions": {"torch": "2.13"}}
TABLE = {"columns": {"shape": "Shape", "ms": "ms"}, "rows": [ROW]}
EMPTY = "x\n<!-- figures:speed -->\n<!-- /figures:speed -->\ny\n"


def test_a_table_and_its_origin():
    assert render(TABLE, "speed").split("\n") == [
        "| Shape | ms |",
        "| --- | --- |",
        "| a\\|b | 1.25 |",
        "",
        "<sub>Measured on H100, torch 2.13, commit 0123456.</sub>",
        "",
    ]


def test_commits_of_one_machine_are_one_line():
    commits = ["0123456789abcdef", "0123456", "fedcba9876-dirty"]
    rows = [ROW | {"commit": commit} for commit in commits] + [ROW | {"device": "H200"}]
    assert render(TABLE | {"rows": rows}, "speed").split("\n")[-3:] == [
        "<sub>Measured on H100, torch 2.13, commits 0123456, fedcba9 with uncommitted changes.</sub>",
        "<sub>Measured on H200, torch 2.13, commit 0123456.</sub>",
        "",
    ]


@pytest.mark.parametrize("key", ["ms", "commit", "device", "versions"])
def test_a_row_without_its_origin_is_refused(key):
    row = {name: value for name, value in ROW.items() if name != key}
    with pytest.raises(ValueError, match=f"row 1 lacks {key}"):
        render(TABLE | {"rows": [row]}, "speed")


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "README.md").write_text(EMPTY)
    (tmp_path / "CHANGELOG.md").write_text("nothing\n")
    (tmp_path / "figures").mkdir()
    (tmp_path / "docs").mkdir()
    for name in DOCUMENTS:
        if name.startswith("docs/"):
            (tmp_path / name).write_text("nothing\n")
    return tmp_path


def test_fill_and_check(checkout):
    arguments = ["--root", str(checkout)]
    assert main([*arguments, "--check"]) == 0  # no rows yet
    (checkout / "figures" / "speed.json").write_text(json.dumps(TABLE))
    assert main([*arguments, "--check"]) == 1 and (checkout / "README.md").read_text() == EMPTY
    assert main(arguments) == 0 and "| a\\|b | 1.25 |" in (checkout / "README.md").read_text()
    assert main([*arguments, "--check"]) == 0
    (checkout / "figures" / "speed.json").write_text(json.dumps(TABLE | {"rows": [ROW | {"ms": 0.25}]}))
    assert main([*arguments, "--check"]) == 1  # README has 1.25


def test_rows_without_a_place_are_noticed(checkout):
    (checkout / "figures" / "lost.json").write_text(json.dumps(TABLE))
    assert main(["--root", str(checkout), "--check"]) == 1


def test_this_checkout_is_up_to_date():
    assert main(["--root", str(ROOT), "--check"]) == 0  # no rows without a place either
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert fill(text, ROOT / "figures") == text
