"""The ablations: equal densities where they are compared, tables from whole sets of rows alone."""

from __future__ import annotations

import json
import shlex

import pytest

from tools import ablations
from tools.ablations import ABLATIONS, GRID, tables
from tools.figures import render


def row(variant: str, prompt: str, psnr: float | None) -> dict:
    return {
        **{"schema": "fpsgen.evaluate/1", "variant": variant, "prompt": prompt, "seed": 0, "video": "x.mp4"},
        **{"method": "fp8", "schedule": "s", "linear": "bf16", "density": 0.5, "denoise_s": 1.0, "psnr_db": psnr},
        **{"ssim": psnr and 0.9, "vmaf": None, "xpsnr_db": None, "stlpips": None, "flicker": 1.0},
        **{"velocity": {"all": {"steps": 2, "mse": 0.1, "snr_db": psnr, "cosine": 0.9}} if psnr else {}},
        **{"shows": {"subject": True, "colour": True, "motion": psnr != 10, "background": True}, "key": "k"},
        **{"device": "d", "versions": {}, "commit": "c", "steps": 20, "guidance": 4.0, "dtype": "f", "command": "x"},
    }


def test_tiles_are_compared_at_one_density():
    schedules = [variant.schedule for text, variant in ABLATIONS["tile"]().items() if "window" in text]
    densities = {schedule.profiles[0].resolve(GRID)[3] for schedule in schedules}
    assert len(schedules) == 4 and densities == {0.375}


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_variants_have_names_of_their_own_and_run_on_nanos_grid(name):
    variants = ABLATIONS[name]()
    assert len({variant.name for variant in variants.values()}) == len(variants) > 2
    for variant in variants.values():
        for profile in variant.schedule.profiles:
            assert 0 < profile.resolve(GRID)[3] <= 1


def test_a_table_counts_videos_that_every_variant_has(tmp_path):
    names = [variant.name for variant in ABLATIONS["joint"]().values()]
    rows = [row("dense", prompt, None) for prompt in "abc"]
    rows += [row(name, prompt, {"a": 10.0, "b": 20.0, "c": 99.0}[prompt]) for name in names for prompt in "ab"]
    rows.append(row(names[0], "c", 99.0))  # the others are not made yet
    table = tables(["joint"], rows)["joint"]
    assert [line["choice"] for line in table["rows"]] == ["dense", *ABLATIONS["joint"]()]
    first, fp8 = table["rows"][:2]
    assert first["psnr"] == "" and first["right"] == "100" and first["videos"] == 2
    assert fp8["psnr"] == "15.0 (12.5-17.5)" and fp8["snr"] == "15.0" and fp8["right"] == "50"
    assert fp8["paper"] == "21.00" and "| fp8: FP8 alone |" in render(table, "ablation-joint")


def test_the_command_of_a_row_repeats_it():
    given = ["joint", "tile", "--prompts", "2", "--model", "a folder", "--steps", "8", "--every", "2", "--velocities"]
    command = ablations.command_of(ablations.parser().parse_args(given))
    assert shlex.split(command)[:3] == ["python", "-m", "tools.ablations"]
    again = ablations.parser().parse_args(shlex.split(command)[3:])
    assert again == ablations.parser().parse_args(given)
    usual = ablations.command_of(ablations.parser().parse_args(["joint"]))
    assert usual == "python -m tools.ablations joint --prompts 6 --seeds 1"


def test_rows_that_stand_are_summed_up_again(tmp_path, capsys):
    names = [variant.name for variant in ABLATIONS["granularity"]().values()]
    rows = [row("dense", "a", None), *(row(name, "a", 20.0) for name in names)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    ablations.main(["granularity", "--prompts", "1", "--work", str(tmp_path), "--out", str(tmp_path), "--tables-only"])
    made = json.loads((tmp_path / "ablation-granularity.json").read_text())
    assert len(made["rows"]) == len(names) and made["rows"][0]["psnr"] == "20.0"
    assert "| 1 block (60 tokens) |" in capsys.readouterr().out
