"""A video tells how it was made and can be made again, byte for byte; two videos can be compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fpsgen.evaluate.metrics import psnr
from fpsgen.video import count_frames, read_frames, read_recipe, write_mp4

SMALL = ("--res", "32x32", "--frames", "5", "--steps", "2", "--seed", "3")


@pytest.fixture
def made(fpsgen, tiny_dir):
    """cat.mp4, made by the tiny model."""
    assert fpsgen("generate", "a cat", "-m", tiny_dir, *SMALL, "-o", "cat.mp4", "--schedule", "paper") == 0, fpsgen.err
    return Path("cat.mp4")


def edit(path: Path, **changes) -> Path:
    """The sidecar of a video with other values in its recipe, under another name."""
    data = json.loads(path.with_suffix(".json").read_text())
    data["recipe"] |= changes
    target = Path("edited.json")
    target.write_text(json.dumps(data))
    return target


def test_info_shows_recipe_and_report(fpsgen, made):
    assert fpsgen("info", made) == 0
    shown = dict(line.split("  ", 1) for line in fpsgen.lines if not line.startswith(" "))
    shown = {key: value.strip() for key, value in shown.items()}
    assert shown["prompt"] == "a cat" and shown["seed"] == "3" and "32x32, 5 frames" in shown["size"]
    assert "denoise" in shown["took"] and "cpu" in shown["attention"] and "paper" in shown["schedule"]
    assert any("sigma" in line and "fps" in line for line in fpsgen.lines)
    assert fpsgen("info", made, "--json") == 0
    result = fpsgen.json["results"][0]
    assert result["recipe"] == read_recipe(made) and result["report"]["stages_s"]["denoise"] > 0
    made.with_suffix(".json").unlink()
    assert fpsgen("info", made) == 0 and not any(line.startswith("took") for line in fpsgen.lines)


def test_info_of_what_has_no_recipe(fpsgen, made):
    write_mp4(np.zeros((2, 16, 16, 3), np.uint8), "plain.mp4", 8)
    Path("text.mp4").write_text("no video")
    for name, word in (("plain.mp4", "no recipe"), ("text.mp4", "not a video"), ("none.mp4", "not a file")):
        for command in ("info", "replay"):
            fpsgen(command, name)
            fpsgen.refused(4, name, word)
    fpsgen("info", edit(made, schema="fpsgen.recipe/9"))
    fpsgen.refused(4, "fpsgen.recipe/9")


@pytest.mark.parametrize("method", [None, "bf16", "sta", "fp8"])
def test_replay_gives_the_same_bytes(fpsgen, tiny_dir, method):
    options = ("--method", method) if method else ()
    assert fpsgen("generate", "a cat", "-m", tiny_dir, *SMALL, "-o", "cat.mp4", "--schedule", "paper", *options) == 0
    made = Path("cat.mp4")
    assert fpsgen("replay", made, "-o", "again.mp4") == 0, fpsgen.err
    assert fpsgen.lines == ["again.mp4"] and Path("again.mp4").read_bytes() == made.read_bytes()
    assert "may have changed" in fpsgen.err  # a local folder has no revision to hold on to
    assert fpsgen("replay", made.with_suffix(".json"), "-q") == 0
    assert Path(fpsgen.lines[0]).parent == Path("outputs") and Path(fpsgen.lines[0]).read_bytes() == made.read_bytes()


def test_replay_never_overwrites(fpsgen, made):
    before = made.read_bytes()
    fpsgen("replay", made, "-o", made)
    fpsgen.refused(7, "cat.mp4", "--overwrite")
    assert made.read_bytes() == before


def test_replay_says_what_differs(fpsgen, made, tiny_dir):
    recipe = read_recipe(made)
    assert recipe is not None
    other = recipe["versions"] | {"diffusers": "0.1"}
    assert fpsgen("replay", edit(made, versions=other), "-o", "b.mp4") == 0
    assert "diffusers was 0.1" in fpsgen.err
    seed = edit(made, seed=4)
    assert fpsgen("replay", seed, "-o", "c.mp4") == 0 and Path("c.mp4").read_bytes() != made.read_bytes()
    fpsgen("replay", edit(made, model={"name": "x", "source": str(tiny_dir / "gone"), "revision": "local"}))
    fpsgen.refused(5, "gone")
    fpsgen("replay", edit(made, model={"name": "a/b", "source": "a/b", "revision": "main"}))
    fpsgen.refused(5, "fpsgen models pull a/b")
    fpsgen("replay", edit(made, steps="many"))
    fpsgen.refused(4, "steps")
    fpsgen("replay", edit(made, schedule={"name": "x", "toml": "name = 1"}))
    fpsgen.refused(4, "schedule")


def test_compare(fpsgen, made):
    assert fpsgen("compare", made, made, "-o", "same.mp4", "--json") == 0, fpsgen.err
    same = fpsgen.json["results"][0]
    assert same["identical_files"] and same["psnr_db"] is None and same["ssim"] == 1
    left, fps = read_frames(made)
    changed = left.copy()
    changed[2, 8:16] = 255 - changed[2, 8:16]
    write_mp4(changed, "other.mp4", 16)
    assert fpsgen("compare", made, "other.mp4", "-o", "side.mp4", "--json") == 0
    got = fpsgen.json["results"][0]
    other = read_frames("other.mp4")[0]
    wanted = psnr(left, other)
    assert got["psnr_db_of_frames"] == [round(float(value), 3) for value in wanted]
    assert np.argmin(wanted) == 2 and np.argmin(got["ssim_of_frames"]) == 2
    mean = ((left.astype(float) - other) ** 2).mean()
    assert got["psnr_db"] == pytest.approx(10 * np.log10(255**2 / mean), abs=1e-3)
    side, side_fps = read_frames("side.mp4")
    assert side.shape == (5, 32, 64, 3) and side_fps == fps == 16
    assert psnr(np.ascontiguousarray(side[:, :, :32]), left).min() > 30  # A on the left
    assert psnr(np.ascontiguousarray(side[:, :, 32:]), other).min() > 30
    assert fpsgen("compare", made, "other.mp4") == 0
    assert fpsgen.lines[1].startswith("PSNR") and count_frames(fpsgen.lines[-1]) == 5


def test_compare_of_what_cannot_be(fpsgen, made):
    write_mp4(np.zeros((2, 16, 16, 3), np.uint8), "small.mp4", 8)
    Path("text.mp4").write_text("no video")
    made.with_name("cut.mp4").write_bytes(made.read_bytes()[:-500])
    fpsgen("compare", made, "small.mp4")
    fpsgen.refused(4, "32x32, 5 frames", "16x16, 2 frames")
    for name in ("text.mp4", "cut.mp4", "none.mp4"):
        fpsgen("compare", made, name)
        fpsgen.refused(4, name)
    fpsgen("compare", made)
    fpsgen.refused(2, "needs B")
