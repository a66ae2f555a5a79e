"""`fpsgen train prep` as a command: what it refuses and with which code, and folders, lists and tar files to shards."""

from __future__ import annotations

import json
import tarfile

import pytest

from fpsgen.cli.app import run
from fpsgen.errors import BAD_INPUT, ENVIRONMENT, MODEL, OK, USAGE

from .conftest import SCHEDULE
from .prep.conftest import write_clip

pytest.importorskip("cv2")
SIZE = ["--res", "64x64", "--frames", "9", "--device", "cpu"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate("ab"):
        write_clip(folder / f"{name}.mp4", number, f"video {name}", frames=12)
    write_clip(folder / "still.mp4", 3, "nothing moves", frames=12, speed=0)
    return folder


def prep(*words: object) -> int:
    return run(["train", "prep", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        ([], "neither DATA"),
        (["clips", "--preset", "nano-demo"], "DATA and --preset were given"),
        (["--teacher", "a.toml", "--preset", "nano-demo"], "--teacher and --preset were given"),
        (["--preset", "nano-demo", "--fps", "8"], "--fps"),
        (["--preset", "nano-demos"], "nano-demos"),
        (["clips", "--clips", "0"], "--clips"),
        (["clips", "--held-out", "0.9"], "--held-out"),
        (["clips", "--filter", "motion=1"], "motion"),
        (["clips", "-m", "nano", "--res", "100x100"], "100x100"),
        (["clips", "-m", "nano", "--frames", "8"], "8 frames"),
        (["clips", "-m", "nano", "--res", "8192x8192"], "8192x8192"),
    ],
)
def test_usage_is_judged_first(words, culprit, capsys):
    assert prep(*words) == USAGE
    said = capsys.readouterr()
    assert not said.out and culprit in said.err and "Traceback" not in said.err


@pytest.mark.parametrize(
    ("words", "code"),
    [(["none"], BAD_INPUT), (["none", "-m", "nan"], MODEL), (["--teacher", "none.toml"], BAD_INPUT)],
)
def test_what_is_missing_has_its_code(words, code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prep(*words) == code
    assert capsys.readouterr().err.count("\n") == 2 and not list(tmp_path.iterdir())


def test_without_opencv_nothing_is_begun(videos, tiny_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    assert prep(videos, "-m", tiny_dir, "-o", tmp_path / "out", *SIZE) == ENVIRONMENT
    assert "flow=off" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_to_shards(videos, tiny_dir, tmp_path, capsys):
    folder = tmp_path / "out"
    assert prep(videos, "-m", tiny_dir, "-o", folder, *SIZE) == OK
    said = capsys.readouterr()
    assert said.out.endswith(f"\n{folder}\n") and "| dropped: flow |" in said.out
    assert "held out" in said.err  # none of two is, at one in twenty
    assert prep(videos, "-m", tiny_dir, "-o", folder, *SIZE, "-q") == OK
    assert capsys.readouterr() == (f"{folder}\n", "")
    assert prep(videos, "-m", tiny_dir, "-o", folder, *SIZE, "--fps", "8") == BAD_INPUT
    assert "fps" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "jsonl", "tar"])
def test_a_list_gives_the_same_latents(kind, videos, tiny_dir, tmp_path, capsys):
    from safetensors.torch import load_file

    if kind == "tar":
        data = tmp_path / "all.tar"
        with tarfile.open(data, "w") as tar:
            for name in "ab":
                for suffix in ("mp4", "txt"):
                    tar.add(videos / f"{name}.{suffix}", f"{name}.{suffix}")
    else:
        data = videos / f"all.{kind}"
        rows = [{"video": f"{name}.mp4", "caption": f"video {name}"} for name in "ab"]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        data.write_text(text if kind == "jsonl" else "video,caption\na.mp4,video a\nb.mp4,video b\n")
    found = []
    for source, folder in ((videos, tmp_path / "one"), (data, tmp_path / "two")):
        assert prep(source, "-m", tiny_dir, "-o", folder, *SIZE, "--json") == OK
        [result] = json.loads(capsys.readouterr().out)["results"]
        assert result["samples"] == 2 and result["folder"] == str(folder)
        found.append(load_file(folder / "00000.safetensors"))
    assert all(bool((found[0][name] == found[1][name]).all()) for name in ("latents", "text"))


def write_run(folder, tiny_dir, **changes):
    (folder / "schedule.toml").write_text(SCHEDULE)
    values = {"name": "mine", "model": str(tiny_dir), "schedule": "schedule.toml", "prompts": ["a", "b"], "held_out": 1}
    values |= {"width": 64, "height": 64, "frames": 9, "teacher_steps": 3, "steps": 1}
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in (values | changes).items())
    (folder / "run.toml").write_text("".join(lines))
    return folder / "run.toml"


def test_the_teacher_s_pairs_are_those_of_the_run(tiny_dir, tmp_path, capsys):
    run_file, folder = write_run(tmp_path, tiny_dir), tmp_path / "out"
    words = ["--teacher", run_file, "-o", folder, "--device", "cpu"]
    assert prep(*words) == OK
    said = capsys.readouterr()
    assert said.out == f"6 pairs of 2 prompts\n{folder}\n" and "pairs" in said.err
    before = {path: path.stat().st_mtime_ns for path in (folder / "pairs").iterdir()}
    assert prep(*words) == OK
    assert run(["train", str(run_file), "-o", str(folder), "--device", "cpu"]) == OK
    assert {path: path.stat().st_mtime_ns for path in (folder / "pairs").iterdir()} == before


@pytest.mark.parametrize("changes", [{"teacher": "live"}, {"distill": 0, "flow": 1, "data": "d", "prompts": []}])
def test_a_run_without_stored_pairs_is_told_so(tiny_dir, tmp_path, capsys, changes):
    assert prep("--teacher", write_run(tmp_path, tiny_dir, **{"held_out": 0} | changes)) == USAGE
    assert "mine" in capsys.readouterr().err


def test_a_run_learns_from_a_prepared_folder(videos, tiny_dir, tmp_path, capsys):
    """Its loss is that of the shards' latents, and it measures the video that is held out."""
    assert prep(videos, "-m", tiny_dir, "-o", tmp_path / "data", *SIZE, "--held-out", "0.5") == OK
    assert json.loads((tmp_path / "data" / "data.json").read_text())["held_out"] == [1]
    changes = {"distill": 0, "flow": 1.0, "data": "data", "prompts": [], "held_out": 0}
    run_file = write_run(tmp_path, tiny_dir, **changes)
    assert run(["train", str(run_file), "-o", str(tmp_path / "out"), "--device", "cpu"]) == OK
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["objective"] == "flow" and report["samples"] == 1
    assert report["held_out_error"]["before"].keys() == {"early", "late"}
