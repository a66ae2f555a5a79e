"""The tool that measures training steps, in its smallest form."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fpsgen.attention.presets import PRESETS
from fpsgen.train import estimate
from fpsgen.train.config import preset
from tools import train_costs
from tools.figures import render


@pytest.mark.slow
def test_a_row_is_what_the_estimate_reads(tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    assert train_costs.main(["--out", str(out), "--cases", "nano", "--steps", "1"]) == 0
    row = json.loads(out.read_text())
    assert set(row["by_profile"]) == {"early", "middle", "late"} and row["dense_seconds"] > 0
    assert row["by_profile"]["early"]["density"] < row["by_profile"]["middle"]["density"] < 1
    monkeypatch.setattr(estimate, "cost_rows", lambda: (row,))
    run = replace(preset("nano-demo"), schedule=PRESETS["paper"].to_toml())
    assert estimate.measured(run, "nano", "cpu")["seconds"] == row["seconds"]
    assert estimate.measured(run, "wan2.1-1.3b", "cpu") is None
    assert estimate.measured(replace(run, schedule=PRESETS["safe"].to_toml(), linear="fp8"), "nano", "cpu") is None
    assert train_costs.main(["--out", str(out), "--cases", "nano"]) == 0  # has its row
    assert len(out.read_text().splitlines()) == 1
    assert train_costs.main(["--out", str(out), "--figures", str(tmp_path / "training.json")]) == 0
    table = json.loads((tmp_path / "training.json").read_text())
    assert "Dense attention, seconds" in render(table, "training") and table["rows"] == [row]
