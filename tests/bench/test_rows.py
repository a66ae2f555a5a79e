"""A bench's row says what was measured: every repeat counts, for the whole and for each profile."""

from __future__ import annotations

import json

import pytest

from fpsgen.bench.rows import Runs, append_rows, bench_row
from fpsgen.bench.suite import Variant, _of_variant
from fpsgen.bench.timing import quantile
from fpsgen.models.catalog.choice import choose
from fpsgen.pipeline.plan import plan
from fpsgen.settings.gather import Settings


def runs(method: str, steps: list[list[float]]) -> Runs:
    """Repeats of two steps each: the first by profile early, the second by late."""
    made = Runs(method)
    for repeat in steps:
        made.steps.append(repeat)
        made.stages.setdefault("denoise", []).append(sum(repeat))
        made.totals.append(sum(repeat) + 1)
        made.attention.append(sum(repeat) / 4)
    kinds = [{"profile": name, "method": method, "kernel": "k", "density": 0.5} for name in ("early", "late")]
    made.report = {
        "schedule": "s",
        "steps": kinds,
        "kernels": {"k": 2},
        "bf16_backend": "fa3",
        "density": 0.5,
        "components": {"linear": {"fp8_emulated": 2}},
    }
    made.recipe = {"cache": "none", "cfg_until": 0.5}
    return made


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return plan("a cat", Settings({"model": "nano", "seed": 1, "steps": 2}), choose("nano")).request


def test_times_of_profiles_are_of_all_repeats(base):
    ours = runs("fps", [[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    row = bench_row(ours, ours, base, {})
    times = {entry["profile"]: entry["step_s"] for entry in row["profiles"]}
    assert times["early"] == {"median": 3.0, "min": 1.0, "max": 5.0, "n": 3}
    assert times["late"] == {"median": 4.0, "min": 2.0, "max": 9.0, "n": 3}
    assert (row["linear"], row["cache"], row["cfg_until"]) == ("fp8", "none", 0.5)
    assert row["step_s"] == {"median": 3.5, "min": 1.0, "max": 9.0, "n": 6} and row["steps_s"] == [3.0, 4.0]


def test_speed_ups_are_the_baselines_medians_over_ours(base):
    baseline, ours = (
        runs("bf16", [[4.0, 4.0], [9.0, 9.0], [5.0, 5.0]]),
        runs("fps", [[1.0, 1.0], [2.0, 2.0], [1.0, 1.5]]),
    )
    row = bench_row(ours, baseline, base, {})
    assert row["speedup_denoise"] == pytest.approx(10 / 2.5) and row["speedup_total"] == pytest.approx(
        11 / 3.5, abs=1e-3
    )
    assert row["baseline"] == "bf16" and bench_row(baseline, baseline, base, {})["speedup_denoise"] == 1


def test_a_row_says_what_linear_layers_ran_in_where_the_schedule_chose():
    report = {
        "schedule": "s",
        "density": None,
        "kernels": {},
        "bf16_backend": "auto",
        "components": {"linear": {"fp8_scaled_mm": 4}},
    }
    assert _of_variant(Variant("fps", linear=None), report)["linear"] == "fp8"
    assert _of_variant(Variant("fps", linear=None), report | {"components": {}})["linear"] == "bf16"


def test_quantiles_are_values_that_were_measured():
    times = [float(number) for number in range(10, -1, -1)]
    assert [quantile(times, share) for share in (0, 0.1, 0.5, 0.9, 1)] == [0, 1, 5, 9, 10] and quantile([3.0], 0.9) == 3


def test_a_row_begins_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "new" / "bench.jsonl"
    append_rows([{"a": 1}], path)
    path.write_bytes(path.read_bytes()[:-3])  # a kill
    append_rows([{"b": 2}, {"c": 3}], path)
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == [{"b": 2}, {"c": 3}]
