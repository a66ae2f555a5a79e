"""Rows of an evaluation, summed up."""

from __future__ import annotations

import pytest

from fpsgen.report.evaluate import AXES, MEDIANS, summarize


def row(psnr: float | None, steps: int, mse: float, **shows: bool) -> dict:
    common = {"variant": "fps", "method": "as scheduled", "schedule": "paper", "linear": "bf16", "density": 0.25}
    error = {"steps": steps, "mse": mse, "snr_db": 10.0, "cosine": 0.9}
    seen = dict.fromkeys(AXES, True) | shows
    return common | dict.fromkeys(MEDIANS) | {"psnr_db": psnr, "velocity": {"early": error}, "shows": seen}


def test_figures_of_a_variant_are_those_of_its_rows():
    (entry,) = summarize([row(10.0, 1, 4.0), row(20.0, 3, 8.0, motion=False), row(60.0, 2, 8.0, colour=False)])
    assert entry["psnr_db"] == 20 and entry["psnr_db_quartiles"] == [15, 40] and entry["videos"] == 3
    assert entry["mse"] == pytest.approx((4 + 3 * 8 + 2 * 8) / 6, rel=1e-5)  # a step counts, not a video
    assert entry["shows"] == {"subject": 100, "colour": 66.7, "motion": 66.7, "background": 100, "all": 33.3}
    assert entry["ssim"] is None and entry["density"] == 0.25
