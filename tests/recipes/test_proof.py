"""The proof's rows as a table and charts."""

from __future__ import annotations

import json
import re

import pytest

from recipes.nano import proof, proof_report
from tools.figures import render

ORIGIN = {"commit": "abc", "device": "a device", "versions": {"torch": "2"}}


def make_row(arm: str, seed: int, psnr: float | None = None, trained: bool = False) -> dict:
    row = {"arm": arm, "seed": seed, "schedule": "s", "density": 0.25, "size": {"steps": 4}, **ORIGIN}
    row |= {"psnr_db": psnr, "ssim": None if psnr is None else 0.5, "score": {"all": 90.0 + seed}}
    row["validation"] = {"distill": {"a": 0.1, "b": 0.3}, "flow": {"a": 0.1}}
    if trained:
        row["curve"] = [{"step": step, "distill": {"a": 0.1 / step}} for step in (2, 4)]
        row["losses"] = [{"step": step, "profile": "a", "loss": 1 / step} for step in (1, 2, 3, 4)]
    return row


ROWS = [make_row("dense", 0), make_row("dense", 1), make_row("fps", 0, 10.0), make_row("fps", 1, 13.0)]
TRAINED = [make_row(arm, 0, 20.0, True) for arm in ("fps distilled", "fps, flow matching", "dense, flow matching")]


def test_a_line_has_means_and_spreads_over_the_seeds():
    dense, fps = proof_report.summary(ROWS)
    assert (dense["arm"], dense["seeds"], dense["psnr"], dense["right"]) == ("dense", 2, "-", "90.5 (1)")
    assert (fps["psnr"], fps["error"], fps["ssim"]) == ("11.50 (3)", "0.2 (0)", "0.500 (0)")
    assert "11.50 (3)" in render(proof_report.figure(ROWS), "proof")


def test_runs_of_different_sizes_do_not_share_a_table():
    with pytest.raises(ValueError, match="sizes"):
        proof_report.summary([*ROWS, make_row("sta", 0, 9.0) | {"size": {"steps": 5}}])


def test_charts_have_a_curve_for_each_arm(tmp_path):
    proof_report.write_report([*ROWS, *TRAINED], tmp_path)
    error, flow = ((tmp_path / f"proof-{name}.svg").read_text() for name in ("error", "flow"))
    assert error.count("<polyline") == 1 and flow.count("<polyline") == 2
    points = re.search(r'points="([^"]*)"', error)
    assert points is not None and len(points[1].split()) == 3  # untrained, and two checkpoints
    assert json.loads((tmp_path / "proof.json").read_text())["seeds"][0]["arm"] == "dense"


def test_more_arms_than_colours_are_all_drawn():
    arms = [make_row(f"fps distilled {number}", 0, 20.0, True) for number in range(len(proof_report.COLOURS) + 1)]
    assert proof_report.error_chart([*ROWS, *arms]).count("<polyline") == len(arms)


def test_an_arm_with_more_steps_is_in_the_table_alone():
    longer = make_row("fps distilled, longer", 0, 21.0, True)
    longer["losses"] = [{"step": step, "profile": "a", "loss": 1 / step} for step in (4, 8)]
    rows = [*ROWS, *TRAINED, longer]
    assert proof_report.error_chart(rows).count("<polyline") == 1
    assert "fps distilled, longer" in "\n".join(proof_report.table(rows))


def test_no_chart_without_a_trained_arm(tmp_path):
    proof_report.write_report(ROWS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["proof.json"]


def test_losses_are_means_of_parts_of_a_run():
    log = [
        {"step": step, "objectives": {"flow": {"profile": "ab"[step % 2], "loss": float(step)}}}
        for step in range(1, 81)
    ]
    log[1]["objectives"]["flow"]["dense_loss"] = 0.5
    found = proof.losses(log)
    assert len(found) == 80 and {entry["step"] for entry in found} == set(range(2, 81, 2))
    assert found[0] == {"step": 2, "profile": "b", "loss": 1.0}
    assert found[1] == {"step": 2, "profile": "a", "loss": 2.0, "dense_loss": 0.5, "beside_dense_loss": 2.0}
