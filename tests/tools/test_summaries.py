"""The headline and the paper's table beside ours come from the committed rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.summaries import SHAPES, headline, main, paper

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
    lines = {line["method"]: line for line in paper(ROWS, [])["rows"]}
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
        "commit": "w",
    }
    small = whole | {"model": "wan2.1-1.3b", "speedup_denoise": 5.5, "bf16_backend": "cudnn"}
    others = [{"height": 480}, {"schedule": "safe"}, {"bf16_backend": "fa3"}]  # after it, so they would win
    rows = [whole | {"speedup_denoise": 4.5}, small, *(small | other | {"speedup_denoise": 1.0} for other in others)]
    rows.append(small | {"method": "sta", "schedule": "paper-sta", "speedup_denoise": 3.5})
    found = {line["method"]: [line[model] for model in SHAPES] for line in paper(ROWS, rows)["rows"]}
    assert found == {
        "fp8": ["not measured"] * 2,
        "sta": ["not measured", "3.50x at 22%"],
        "fps": ["4.50x at 22%", "5.50x at 22%"],
    }
    commits = {line["method"]: line["commit"] for line in paper(ROWS, rows)["rows"]}
    assert commits == {"fp8": ["c"], "sta": ["c", "w"], "fps": ["c", "w"]}
    without = [row for row in ROWS if row["method"] != "fa3-bf16"]
    assert {line["fa3"] for line in paper(without, [])["rows"]} == {""}


def test_the_headline_takes_rows_of_its_sizes_and_schedules():
    origin = {"commit": "c", "device": "d", "versions": {"torch": "1", "triton": "2", "diffusers": "3"}}
    size = {"width": 1280, "height": 720, "method": "fps", "baseline": "bf16", "density": 0.2} | origin
    gains = {("wan2.1-14b", "paper"): 4.5, ("wan2.1-1.3b", "paper"): 5.5, ("wan2.1-1.3b", "safe"): 1.75}
    bench = [size | {"model": m, "schedule": s, "speedup_denoise": x} for (m, s), x in gains.items()]
    wrong = [{"height": 480, "width": 832}, {"method": "sta"}, {"baseline": "fps"}, {"schedule": "balanced"}]
    bench += [
        row | other | {"speedup_denoise": 9.0} for row in bench for other in wrong
    ]  # after them, so they would win
    whole = [
        {"what": f"Wan2.1-{m} 720p, 50 steps", "total": t, "loading": "20.4"} | origin
        for m, t in (("14B", "300.6"), ("1.3B", "60.0"))
    ]
    rates = [
        ("fa3-fp8", 1.0, 900.4, {}),
        ("fps", 0.2, 950.0, {}),
        ("fps", 0.105, 955.5, {}),
        ("fps", 0.05, 9.0, {"heads": 40}),
    ]
    attention = [kernel(m, 1.0, d, attend_tflops=x) | origin | more for m, d, x, more in rates]
    gradient = [
        {"shape": "720p", "precision": p, "density": d, "times_cudnn": x, "kept": f"{d:.0%}"} | origin
        for p, d, x in (("16 bit", 0.1, 3.0), ("FP8", 0.3, 2.0), ("FP8", 0.1, 6.14))
    ]
    rows = headline(attention, bench, whole, gradient)["rows"]
    assert [row["fpsgen"].split("**")[1] for row in rows] == [
        *("4.5 times", "5.5 times", "1.8 times", "301 s", "956 TFLOP/s", "6.1 times")
    ]
    assert rows[3]["fpsgen"].endswith(" 20 of them import and load") and "900" in rows[4]["fpsgen"]
    assert all(row["versions"] == {"torch": "1", "triton": "2"} for row in rows)
    with pytest.raises(ValueError, match="safe"):
        headline(attention, [row for row in bench if row["schedule"] != "safe"], whole, gradient)


@pytest.mark.parametrize(("name", "cell"), [("paper", "fa3"), ("headline", "fpsgen")])
def test_this_checkout_is_up_to_date(tmp_path, name, cell):
    assert main(["--check", "--figures", str(FIGURES)]) == 0
    for file in FIGURES.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    stale = json.loads((FIGURES / f"{name}.json").read_text())
    stale["rows"][0][cell] = "9.99x"
    (tmp_path / f"{name}.json").write_text(json.dumps(stale, indent=1) + "\n")
    assert main(["--check", "--figures", str(tmp_path)]) == 1
    assert main(["--figures", str(tmp_path)]) == 0 == main(["--check", "--figures", str(tmp_path)])
