"""tools/precision_speed on a CPU, on a small grid: the same rows, without the kernel that no CPU has."""

import torch

from tools import precision_speed


def test_rows_say_what_both_take(monkeypatch):
    monkeypatch.setattr(precision_speed, "GRIDS", {"small": (5, 9, 16)})
    monkeypatch.setattr(precision_speed, "HEADS", 1)
    times = {"whole_e4m3": 2.0, "whole_int8": 2.1}
    monkeypatch.setattr(precision_speed, "alternately", lambda calls, *_: times if calls.keys() == times.keys() else {})
    rows = list(precision_speed.rows(torch.device("cpu"), 0.01))
    assert [row["kept"] for row in rows] == ["25.0%", "33.3%", "33.3%", "100.0%"]
    assert all((row["whole_e4m3"], row["whole_int8"], row["whole"]) == ("2.000", "2.100", "1.050") for row in rows)
    assert not any("attend" in row for row in rows)


def test_all_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    found = precision_speed.alternately(calls, 0.001, torch.device("cpu"))
    assert found.keys() == calls.keys() and all(time >= 0 for time in found.values())
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert turns == list("ab" * precision_speed.ROUNDS)
