"""Jobs: a key that knows all that decides a video, files that stay inside the folder and never meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from refusal import refused

from fpsgen.batch.jobs import Batch, job_key, read_batch
from fpsgen.errors import BAD_INPUT, DISK, MODEL, NUMERIC, USAGE

pytestmark = pytest.mark.usefixtures("own_folder")


def jobs(*lines: str | dict, overwrite: bool = False, **flags: str) -> Batch:
    kind = ".jsonl" if isinstance(lines[0], dict) else ".txt"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path(f"p{kind}").write_text(text, encoding="utf-8")
    return read_batch(f"p{kind}", {"model": "nano", **flags}, overwrite)


OTHER = [
    *[("steps", "7"), ("guidance", "2.5"), ("shift", "1.25"), ("seed", "9"), ("frames", "5"), ("fps", "5")],
    *[("method", "fp8"), ("schedule", "paper"), ("dtype", "bf16"), ("res", "160x256"), ("negative", "blur")],
    *[("seconds", "0.5"), ("aspect", "9:16")],
]


@pytest.mark.parametrize(("name", "value"), OTHER)
def test_whatever_decides_the_video_is_in_its_key(name, value):
    plain = jobs("a cat").jobs[0]
    by_flag = jobs("a cat", **{name: value}).jobs[0]
    by_line = jobs({"prompt": "a cat", name: value}).jobs[0]
    by_option = jobs(f"a cat --{name} {value}").jobs[0]
    assert plain.key != by_flag.key == by_line.key == by_option.key
    assert plain.path != by_flag.path == by_line.path
    assert by_flag.key == job_key(by_flag.request) and plain.key == job_key(plain.request)


@pytest.mark.parametrize(("name", "value"), [("device", "cpu"), ("output", "there"), ("strict", "true")])
def test_what_does_not_decide_it_is_not(name, value):
    assert jobs("a cat").jobs[0].key == jobs("a cat", **{name: value}).jobs[0].key


def test_strict_names_the_line_that_would_be_scaled():
    lines = ({"prompt": "a cat"}, {"prompt": "a dog", "res": "64x64"})
    assert len(jobs(*lines).jobs) == 2
    refused(lambda: jobs(*lines, strict="true"), NUMERIC, "p.jsonl line 2", "64x64")


def test_a_line_wins_over_the_command_line():
    first, second = jobs({"prompt": "a cat", "seed": 5, "steps": 3}, {"prompt": "a cat"}, seed="7", steps="9").jobs
    assert (first.seed, first.request.sampling.steps) == (5, 3)
    assert (second.seed, second.request.sampling.steps) == (7, 9)


def test_equal_prompts_differ_and_runs_repeat():
    first = [(job.seed, job.path) for job in jobs("a cat", "a dog", "a cat", "\u200ba cat").jobs]
    assert len(set(first)) == 4 and first == [(j.seed, j.path) for j in jobs("a cat", "a dog", "a cat", "a cat").jobs]
    refused(lambda: jobs("a cat", "a cat", seed="1"), BAD_INPUT, "lines 1 and 2", "same video")


def test_a_line_names_a_file_or_a_folder_inside():
    names = ("sub/", "sub/a.mp4", "./b.mp4", "new/deeper/c.MP4", "{seed}-{n}.mp4", "sub//x.mp4")
    for made in (False, True):
        if made:
            Path("out/sub").mkdir(parents=True)
        found = jobs(
            *({"prompt": "a cat", "seed": i, "output": name} for i, name in enumerate(names)), output="out"
        ).jobs
        assert [str(job.path) for job in found[1:]] == [
            "out/sub/a.mp4",
            "out/b.mp4",
            "out/new/deeper/c.MP4",
            "out/4-5.mp4",
            "out/sub/x.mp4",
        ]
        assert found[0].path.parent == Path("out/sub") and found[0].path.name.startswith("a-cat-0-")
        assert [job.named for job in found] == [False, True, True, True, True, True]
        assert [job.request.output.numbered for job in found] == [True, False, False, False, False, False]
    [job] = jobs({"prompt": "a cat", "output": "sub"}, output="out").jobs  # it is there
    assert not job.named and job.path.parent == Path("out/sub")


OUTSIDE = ["../a.mp4", "/tmp/a.mp4", "a/../../b.mp4", "a/../b.mp4", "http://x/a.mp4", "file:///a.mp4", "C:/a.mp4"]
OUTSIDE += ["C:\\a.mp4", "..\\a.mp4", "\\a.mp4", "//host/a.mp4", "..", "link/a.mp4", "link/", "link/deeper/a.mp4"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_leads_outside(name, tmp_path):
    Path("out").mkdir()
    Path("out/link").symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    line = {"prompt": "a dog", "output": name}
    refused(lambda: jobs({"prompt": "a cat"}, line, output="out"), BAD_INPUT, "p.jsonl line 2", "out")
    Path("p.jsonl").unlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["a.avi", ".mp4", "noend", "a.png", "x" * 300 + ".mp4", "a\x00.mp4", "", "\u202ea.mp4"]
)
def test_names_that_no_video_has(name):
    refused(lambda: jobs({"prompt": "a", "output": name}, output="out"), BAD_INPUT, "p.jsonl line 1")


def test_a_picture_of_one_frame():
    [job] = jobs({"prompt": "a", "output": "a.png", "frames": 1}).jobs
    assert job.path == Path("outputs/a.png")


MEET = [("x.mp4", "x.MP4"), ("x.mp4", "X.mp4"), ("x.mp4", "x.png"), ("é.mp4", "e\u0301.mp4")]
MEET += [("d/x.mp4", "d/./x.mp4"), ("d/x.mp4", "D/x.mp4"), ("d//x.mp4", "d/x.mp4"), ("d/x.mp4", "e/x.mp4")]


@pytest.mark.parametrize(("one", "other"), MEET)
def test_two_lines_do_not_write_one_file(one, other):
    """Nor one sidecar, on a file system that knows neither case nor composition; e is a link to d."""
    Path("outputs/d").mkdir(parents=True)
    Path("outputs/e").symlink_to("d")
    lines = [
        {"prompt": "a", "seed": i, "output": name, "frames": 1} for i, name in enumerate((one, "other.mp4", other))
    ]
    error = refused(lambda: jobs(*lines), BAD_INPUT, "lines 1 and 3 both write")
    differ = (one, other) in [("x.mp4", "X.mp4"), ("é.mp4", "e\u0301.mp4"), ("d/x.mp4", "D/x.mp4")]
    assert (f"{one} is that file too where upper and lower case" in error.message) == differ


@pytest.mark.parametrize(
    ("one", "other"),
    [("x.mp4/", "x.mp4"), ("d/X.mp4/y.mp4", "d/x.mp4"), ("x.json/", "x.mp4"), ("d/e.json/f/", "d/e.mp4")],
)
def test_the_file_of_one_line_is_no_folder_of_another(one, other):
    lines = [{"prompt": "a", "output": one}, {"prompt": "b"}, {"prompt": "c", "output": other}]
    for order in (lines, lines[::-1]):
        refused(lambda order=order: jobs(*order), BAD_INPUT, "line 1", "line 3", "folder")
    assert len(jobs({"prompt": "a", "output": "d/"}, {"prompt": "b", "output": "d/e.mp4"}).jobs) == 2


def test_a_line_does_not_take_the_name_of_another_job():
    [plain] = jobs({"prompt": "a", "seed": 1}).jobs
    lines = [{"prompt": "a", "seed": 1}, {"prompt": "b", "output": plain.path.name.upper()}]
    for order in (lines, lines[::-1]):
        refused(lambda order=order: jobs(*order), BAD_INPUT, "lines 1 and 2 both write")


def test_the_folder_may_hold_fields():
    batch = jobs("a cat", "a dog", output="v/{slug}-{n}.mp4", seed="3")
    assert batch.folder == Path("v") and [str(job.path) for job in batch.jobs] == ["v/a-cat-1.mp4", "v/a-dog-2.mp4"]
    assert jobs("a cat", output="{seed}/", seed="3").jobs[0].path.parent == Path("3")
    refused(lambda: jobs("a cat", "a dog", output="v/{seed}.mp4", seed="3"), BAD_INPUT, "lines 1 and 2 both write")
    refused(lambda: jobs("a cat", output="v/{prompt}.mp4"), USAGE, "{prompt}")
    refused(lambda: jobs("a cat", output="one.mp4"), USAGE, "one.mp4")
    Path("file").touch()
    refused(lambda: jobs("a cat", output="file"), DISK, "file is not a folder")
    refused(lambda: jobs("a cat", output="file/x"), DISK, "file")


def test_all_wrong_lines_are_counted_and_the_first_is_named():
    lines = [{"prompt": "a"}, {"prompt": "b", "stepz": 1}, {"prompt": "c", "stepz": 1}, {"prompt": "d", "seed": -1}]
    refused(lambda: jobs(*lines), BAD_INPUT, "line 2", "stepz", "2 more lines")


LONG = r"""
import re, time
from pathlib import Path
from fpsgen.batch.jobs import read_batch
def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
start, before = time.process_time(), peak()
batch = read_batch("p.txt", {"model": "nano"})
assert len(batch.jobs) == 100_000
print(time.process_time() - start, peak() - before)
"""


def test_a_hundred_thousand_lines():
    """3 seconds of CPU where nothing else runs (twice that here), and 60 MB beside what Python and its modules take."""
    lines = (f"a cat number {i} surfs on a big wave in the evening sun\n" for i in range(100_000))
    Path("p.txt").write_text("".join(lines))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", LONG], stdout=subprocess.PIPE, text=True, env=env, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 6 and megabytes < 75


def test_a_model_that_is_not_there_is_named_with_its_line():
    lines = [{"prompt": "a"}, {"prompt": "b", "model": "x" * 5000}]
    refused(lambda: jobs(*lines), MODEL, "p.jsonl line 2", "xxx")
    refused(lambda: jobs({"prompt": "a", "schedule": "x" * 5000}), BAD_INPUT, "line 1", "schedule")
