import json
import runpy
import sys

from fpsgen.report.kernel import lines as text_lines
from tools.figures import render

COMMON = {"shape": "480p", "heads": 12, "batch": 2, "tiles": [6, 8, 8], "commit": "c", "device": "d", "versions": {}}


def test_rows_of_the_bench_become_a_table(tmp_path, monkeypatch, capsys):
    figures = {
        "density": 0.118,
        "median_ms": 1.1311,
        "relative_error": 0.0123,
        "p10_ms": 1.105,
        "p90_ms": 1.146,
        "tflops": 687.3,
    }
    rows = [
        COMMON | {"method": "fa3", "peer": True, "missing": "not installed"},
        COMMON | figures | {"method": "sdpa-cudnn", "peer": True},
        COMMON | figures | {"method": "fps", "peer": False, "kernel": "hopper", "attend_tflops": 782.4},
    ]
    path = tmp_path / "kernel.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["kernel", str(path)])
    runpy.run_module("fpsgen.report.kernel", run_name="__main__")
    made = json.loads(capsys.readouterr().out)
    lines = render(made, "kernel").splitlines()
    name = "| 480p, 12 heads, batch 2, tiles (6, 8, 8) |"
    assert lines[2] == f"{name} sdpa-cudnn | peer | 11.8% | 1.131 | 1.10-1.15 | 687 | 1.2e-02 |  |  |  |  |"
    assert lines[3] == f"{name} fps | hopper | 11.8% | 1.131 | 1.10-1.15 | 687 | 1.2e-02 | 782 |  |  |  |"
    assert made["rows"][1]["attend_tflops"] == 782.4


def test_only_columns_that_are_shown_are_explained():
    """On a CPU quantization is not timed apart, nor what the host takes."""
    row = COMMON | {"method": "fps", "peer": False, "kernel": "cpu", "density": 0.1, "median_ms": 1.0, "p10_ms": 1.0}
    row |= {"p90_ms": 1.0, "tflops": 1.0, "relative_error": 0.1, "host_us": None, "captured": False}
    explained = {"attend": "attend:", "host": "host:", "to dense": "to dense:"}
    for more in ({}, {"host_us": 9.0, "attend_tflops": 5.0}, {"captured": True, "error_to_dense": 0.2}):
        text = "\n".join(text_lines([row | more]))
        head = next(line for line in text.splitlines() if "p10-p90" in line)
        assert {name: name in head for name in explained} == {name: mark in text for name, mark in explained.items()}
