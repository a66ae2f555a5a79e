"""The paper's table beside ours comes from the committed rows."""

from __future__ import annotations

import json
from pathlib import Path

from tools.paper_table import SHAPES, main, table

FIGURES = Path(__file__).resolve().parents[2] / "figures"
SHAPE = {"shape": "720p", "heads": 12, "batch": 1, "tiles": "fit", "commit": "c", "device": "d", "versions": {}}


def kernel(method: str, ms: float, density: float = 1.0, **more) -> dict:
    return SHAPE | {"method": method, "median_ms": ms, "density": density} | more


ROWS = [
    *(kernel("sdpa-cudnn", 60.0), kernel("fa3-bf16", 48.0), kernel("fp8", 30.0)),
    *(kernel("sta", 12.0, 0.2), kernel("sta", 5.0, 0.1), kernel("fps", 8.0, 0.19), kernel("fps", 2.0, 0.05)),
    kernel("fps", 1.0, 0.2, heads=40),
]


def test_ratios_are_of_the_same_shape_and_the_nearest_density():
    lines = {line["method"]: line for line in table(ROWS, [])["rows"]}
    assert (lines["fps"]["fa3"], lines["fps"]["cudnn"], lines["fps"]["density"]) == ("6.00x", "7.50x", "19.0%")
    assert lines["sta"]["fa3"] == "4.00x" and lines["fp8"]["cudnn"] == "2.00x"
    assert {line[model] for line in lines.values() for model in SHAPES} == {"not measured"}
    whole = {
        "model": "wan2.1-14b",
        "height": 720,
        "method": "fps",
        "baseline": "bf16",
        "schedule": "paper",
        "density": 0.22,
    }
    small = whole | {"model": "wan2.1-1.3b", "speedup_denoise": 5.5, "bf16_backend": "cudnn"}
    others = [{"height": 480}, {"schedule": "safe"}, {"bf16_backend": "fa3"}]  # after it, so they would win
    rows = [whole | {"speedup_denoise": 4.5}, small, *(small | other | {"speedup_denoise": 1.0} for other in others)]
    rows.append(small | {"method": "sta", "schedule": "paper-sta", "speedup_denoise": 3.5})
    found = {line["method"]: [line[model] for model in SHAPES] for line in table(ROWS, rows)["rows"]}
    assert found == {
        "fp8": ["not measured"] * 2,
        "sta": ["not measured", "3.50x at 22%"],
        "fps": ["4.50x at 22%", "5.50x at 22%"],
    }
    without = [row for row in ROWS if row["method"] != "fa3-bf16"]
    assert {line["fa3"] for line in table(without, [])["rows"]} == {""}


def test_this_checkout_is_up_to_date(tmp_path):
    assert main(["--check", "--figures", str(FIGURES)]) == 0
    for name in ("kernel", "bench"):
        (tmp_path / f"{name}.json").write_text((FIGURES / f"{name}.json").read_text())
    stale = json.loads((FIGURES / "paper.json").read_text())
    stale["rows"][0]["fa3"] = "9.99x"
    (tmp_path / "paper.json").write_text(json.dumps(stale, indent=1) + "\n")
    assert main(["--check", "--figures", str(tmp_path)]) == 1
    assert main(["--figures", str(tmp_path)]) == 0 == main(["--check", "--figures", str(tmp_path)])
