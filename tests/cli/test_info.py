"""A video tells how it was made and can be made again, byte for byte; two videos can be compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fpsgen.cli.info import schedule_rows
from fpsgen.video import read_recipe, write_mp4

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


def test_a_dry_run_warns_as_the_run_does(fpsgen, tiny_dir, made):
    warned = [line for line in fpsgen.err.splitlines() if line.startswith("warning")]
    assert any("schedule 'paper'" in line for line in warned)
    for more in ([], ["--json"]):
        assert fpsgen("generate", "a cat", "-m", tiny_dir, *SMALL, "--schedule", "paper", "--dry-run", *more) == 0
        found = fpsgen.err.splitlines() if not more else [f"warning: {text}" for text in fpsgen.json["warnings"]]
        assert found == warned


def test_info_shows_what_was_not_the_default(fpsgen, made):
    shown = []
    for changes in ({}, {"cache": "first-block", "cfg_until": 0.5, "linear": "bf16"}):
        assert fpsgen("info", edit(made, **changes)) == 0
        shown.append({line.split()[0]: line.split()[-1] for line in fpsgen.lines})
    assert not {"cache", "cfg-until", "linear", "lora", "exact"} & set(shown[0])
    assert (shown[1]["cache"], shown[1]["cfg-until"], shown[1]["linear"]) == ("first-block", "0.5", "bf16")


@pytest.mark.parametrize(
    ("tile", "window", "said"),
    [('"blocks"', "[5, 5, 5]", "5 x 5 x 5 blocks"), ('"fit"', '["all", "all", 3]', "all x all x 3 tiles")],
)
def test_info_says_what_a_window_counts(tile, window, said):
    profile = f'name = "p"\nmethod = "fps"\ntile = {tile}\nwindow = {window}\n'
    toml = f'name = "s"\n[[windows]]\nlow = 0.0\nhigh = 1.0\nprofile = "p"\n[[profiles]]\n{profile}'
    assert f"window {said}," in schedule_rows({"toml": toml})[1][1]


def test_info_writes_a_contact_sheet(fpsgen, made):
    assert fpsgen("info", made, "--sheet", "new/frames.png") == 0 and fpsgen.lines[-1] == "new/frames.png"
    wide, high = Image.open("new/frames.png").size
    assert (wide, high) == (4 * 36 + 4, 2 * 36 + 4)  # five frames of 32x32, four in a row
    fpsgen("info", made, "--sheet", "new/frames.png")
    fpsgen.refused(7, "new/frames.png")
    assert fpsgen("info", made, "--sheet", "new/frames.png", "--overwrite", "--json") == 0
    assert fpsgen.json["results"][0]["sheet"] == "new/frames.png"
    for target, name in ((made, "frames.jpg"), (made.with_suffix(".json"), "frames.png")):
        fpsgen("info", target, "--sheet", name)
        fpsgen.refused(2)
        assert not Path(name).exists()


@pytest.mark.parametrize("name", ["cat.gif", "cat.webp"])
def test_an_animation_holds_its_recipe_and_is_made_again(fpsgen, tiny_dir, name):
    assert fpsgen("generate", "a cat", "-m", tiny_dir, *SMALL, "-o", name) == 0, fpsgen.err
    assert fpsgen.lines == [name] and read_recipe(name)["frames"] == 5
    assert fpsgen("replay", name, "-o", f"again-{name}") == 0, fpsgen.err
    assert Path(f"again-{name}").read_bytes() == Path(name).read_bytes()


def test_info_of_what_has_no_recipe(fpsgen, made):
    write_mp4(np.zeros((2, 16, 16, 3), np.uint8), "plain.mp4", 8)
    Path("text.mp4").write_text("no video")
    for name, word in (("plain.mp4", "no recipe"), ("text.mp4", "not a video"), ("none.mp4", "not a file")):
        for command in ("info", "replay"):
            fpsgen(command, name)
            fpsgen.refused(4, name, word)
    fpsgen("info", edit(made, schema="fpsgen.recipe/9"))
    fpsgen.refused(4, "fpsgen.recipe/9")


ODD = (None, True, "x", -1, 0, 1e300, [], [1, "a"], {}, {"a": {"b": []}}, "\x1b[31m\u202e")


def test_info_shows_any_recipe(fpsgen):
    """Recipes come with videos of other people."""
    whole = {
        "schema": "fpsgen.recipe/1",
        **dict.fromkeys(("prompt", "negative", "method", "device"), "a"),
        **dict.fromkeys(("width", "height", "frames", "fps", "steps"), 16),
        **{"model": {}, "schedule": {"toml": "x"}, "versions": {}, "scaled_to": None},
    }
    report = {"stages_s": {}, "total_s": 1, "peak_memory": {}, "attention": {}, "density": 1, "warnings": []}
    for odd in ODD:
        for key in (*whole, *report):
            data = {"recipe": whole | ({key: odd} if key in whole and key != "schema" else {})}
            data["report"] = report | ({key: odd} if key in report else {})
            Path("a.json").write_text(json.dumps(data))
            assert fpsgen("info", "a.json") == 0, (key, odd, fpsgen.err)
            assert "\x1b" not in fpsgen.out and "\u202e" not in fpsgen.out
        for part in ("model", "schedule", "versions", "stages_s"):
            data = {"recipe": whole, "report": report}
            (data["recipe"] if part in whole else data["report"])[part] = {"name": odd, "toml": odd}
            Path("a.json").write_text(json.dumps(data))
            assert fpsgen("info", "a.json") == 0, (part, odd, fpsgen.err)


def test_info_tells_what_ran_of_all_components(fpsgen, tiny_dir):
    options = ("--linear", "fp8", "--cache", "taylorseer", "--steps", "6", "--guidance", "1", "-o", "cat.mp4")
    assert fpsgen("generate", "a cat", "-m", tiny_dir, *SMALL, *options) == 0
    assert fpsgen("info", "cat.mp4") == 0
    (shown,) = [line for line in fpsgen.lines if line.startswith("linears")]
    assert "fp8_emulated 64 calls" in shown  # 2 layers of 8 each in 4 steps
    assert any(line.startswith("step cache") and "4 calls" in line for line in fpsgen.lines)
    sidecar = Path("cat.json")
    whole = json.loads(sidecar.read_text())
    attention = whole["report"]["attention"]
    attention["fallbacks"] = [{"detail": "attention of layers [1] did not run in a forward"}]
    sidecar.write_text(json.dumps(whole))
    assert fpsgen("info", "cat.json") == 0 and "[1] did not run" in fpsgen.out
    for odd in ODD:
        for key in ("components", "kernels", "fallbacks", "skipped_by_cache"):
            other = {"linear": odd} if key == "components" else odd
            report = whole["report"] | {"attention": attention | {key: other}}
            sidecar.write_text(json.dumps(whole | {"report": report}))
            assert fpsgen("info", "cat.json") == 0, (key, odd, fpsgen.err)
            assert "\x1b" not in fpsgen.out


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
    assert "diffusers was 0.1" in fpsgen.err and "tiles" not in fpsgen.err and "made on" not in fpsgen.err
    assert fpsgen("replay", edit(made, vae_tiles=True, device="a GPU"), "--device", "cpu", "-o", "t.mp4") == 0
    assert "tiles" in fpsgen.err and "made on a GPU" in fpsgen.err
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
