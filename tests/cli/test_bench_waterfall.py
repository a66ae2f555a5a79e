"""bench waterfall: one part more at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fpsgen.bench import waterfall
from fpsgen.report.waterfall import chart, table

SMALL = ("--res", "64x32", "--frames", "5", "--steps", "3", "--seed", "3", "--schedule", "paper")
NAMES = [stage.name for stage in waterfall.stages_on(torch.device("cpu"))]


def test_rows_add_up_and_name_their_errors(fpsgen, tiny_dir):
    assert fpsgen("bench", "waterfall", "-m", tiny_dir, *SMALL, "--repeats", "2") == 0, fpsgen.err
    rows = [json.loads(line) for line in Path("outputs/bench/waterfall.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [*NAMES, waterfall.DECODER]  # no FP8 linear layers on a CPU
    assert [line for line in fpsgen.err.splitlines() if "warning" in line and waterfall.FP8_LINEAR in line]
    assert rows[0]["faster_denoise"] == 1 == rows[0]["faster_total"] and rows[0]["error"] is None
    for row in rows:
        ratio = rows[0]["denoise_s"]["median"] / row["denoise_s"]["median"]
        assert row["faster_denoise"] == pytest.approx(ratio, rel=0.05) and row["denoise_s"]["n"] == 2
    stock, order, attention, fused, decoder = rows
    assert order["density"] == 1 and order["error"]["snr_db"] > 80  # the same sums in another order
    assert attention["error"]["snr_db"] < 60 < order["error"]["snr_db"]
    assert stock["vae_s"] == fused["vae_s"] and decoder["denoise_s"] == fused["denoise_s"]
    assert Path("outputs/bench/waterfall.svg").read_text().count("<rect") == 3 * len(rows) + 3
    assert "x" in table(rows)[1] and max(map(len, table(rows))) <= 80 and "dB" in chart(rows)


@pytest.mark.parametrize(
    "option", [("--cache", "first-block"), ("--cfg-until", "0.5"), ("--exact",), ("--linear", "fp8")]
)
def test_options_that_would_change_nothing_are_refused(fpsgen, option):
    """The stages say what a forward runs with."""
    fpsgen("bench", "waterfall", *option)
    fpsgen.refused(2, option[0])


def test_random_weights_have_no_error(fpsgen):
    options = ("--random-weights", "-m", "nano", "--res", "32x32", "--frames", "5", "--steps", "1", "--json")
    assert fpsgen("bench", "waterfall", *options) == 0, fpsgen.err
    assert not [text for text in fpsgen.json["warnings"] if "schedule" in text]  # they were trained for none
    rows = fpsgen.json["results"]
    assert [row["stage"] for row in rows] == NAMES
    assert all(row["error"] is None and row["vae_s"] is None and row["random_weights"] for row in rows)


def test_nobody_is_warned_of_a_schedule_that_the_stages_chose(fpsgen):
    """nano was trained with a schedule, and the tile order's is another; one that was named still is."""
    options = ("-m", "nano", "--frames", "5", "--steps", "1", "--repeats", "1", "--json")
    for more, warned in (((), False), (("--schedule", "balanced"), True)):
        assert fpsgen("bench", "waterfall", *options, *more) == 0, fpsgen.err
        about = [text for text in fpsgen.json["warnings"] if "trained with schedule" in text]
        assert bool(about) == warned and not any("tile order" in text for text in about), about


def test_tile_order_runs_dense_and_moves_tokens(tiny_dir):
    """An order that was never taken would cost nothing, and say nothing of what it costs."""
    from diffusers import WanPipeline

    from fpsgen.models.patch import forward_state
    from fpsgen.models.patch.apply import apply

    pipe = WanPipeline.from_pretrained(tiny_dir)
    moved = []
    real = forward_state.move_patches
    with pytest.MonkeyPatch.context() as patch, apply(pipe, waterfall.tile_order(), strict=True):
        patch.setattr(forward_state, "move_patches", lambda *a, **k: moved.append(1) or real(*a, **k))
        pipe(prompt="a cat", height=32, width=64, num_frames=5, num_inference_steps=2, output_type="latent")
    assert moved
