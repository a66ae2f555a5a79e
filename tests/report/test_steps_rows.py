"""Rows of `bench steps` and `bench waterfall` as lines of text."""

from __future__ import annotations

from fpsgen.report import steps, waterfall


def step(profile: str, snr: float, cosine: float, density: float | None = 0.25) -> dict:
    return {"method": "fps", "profile": profile, "density": density, "snr_db": snr, "cosine": cosine}


def test_steps_are_summed_up_by_profile():
    rows = [step("early", 10, 0.9), step("early", 30, 0.7), step("late", 40, 0.99, None)]
    early, late = steps.summary(rows)
    assert early == {
        "method": "fps", "profile": "early", "steps": "2", "density": "25%", "snr": "20.0", "cosine": "0.7000"
    }  # fmt: skip
    assert (late["steps"], late["density"], late["snr"], late["cosine"]) == ("1", "-", "40.0", "0.9900")
    assert [line.split()[:2] for line in steps.table(rows)[1:]] == [["fps", "early"], ["fps", "late"]]


def test_a_waterfall_shows_what_each_part_is_worth():
    plain = {"stage": "tile order", "denoise_s": {"median": 8.0}, "vae_s": None, "error": None}
    fast = {"stage": "attention", "denoise_s": {"median": 2.0}, "attention_s": {"median": 0.5}, "vae_s": 1.25}
    rows = [
        plain | {"attention_s": {"median": 4.0}, "faster_denoise": 1.0, "faster_total": 1.0},
        fast | {"faster_denoise": 4.0, "faster_total": 3.1, "error": {"cosine": 0.99, "snr_db": 21.5}},
    ]
    first, second = (line.split()[-6:] for line in waterfall.table(rows)[1:])
    assert first == ["8.00", "4.00", "-", "1.00x", "1.00x", "-"]
    assert second == ["2.00", "0.50", "1.25", "4.00x", "3.10x", "21.5"]
    assert ">VAE<" in waterfall.chart(rows) and ">VAE<" not in waterfall.chart(rows[:1])
