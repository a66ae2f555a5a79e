"""What limits attention: rows of a CPU, with a pretended nvidia-smi."""

from __future__ import annotations

import pytest
import torch

from tools import power


def test_limits_read_clock_and_power_while_calls_repeat(monkeypatch):
    shape = ((4, 4, 8), 1, torch.device("cpu"))
    monkeypatch.setattr(power, "SMI", ["no-such-command"])
    rows = power.clock(*shape, seconds=0.02, rounds=1)
    assert [row["what"] for row in rows] == ["fps, fit", "fp8, dense", "fps, tiles (6, 8, 8)", "sdpa"]
    assert all(row["mhz"] == "" and row["samples"][0]["sustained"] > 0 for row in rows)
    monkeypatch.setattr(power, "SMI", ["sh", "-c", "while :; do echo '1800, 700.5'; sleep 0.005; done"])
    rows = power.clock(*shape, seconds=0.1, rounds=2)
    for row in rows:
        assert (row["mhz"], row["watt"]) == ("1800", "700") and len(row["samples"]) == 2
        assert float(row["per_clock"]) == pytest.approx(
            sum(sample["sustained"] for sample in row["samples"]) / 2 / 1800 * 1e6, abs=1
        )
