"""What a person at the terminal meets before any model is loaded: help, usage, errors, plans. Real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fpsgen import __version__
from fpsgen.assets import weights_dir

LIMIT = 2.0  # seconds of CPU, for everything that needs no model


def cpu_seconds() -> float:
    """CPU time of all processes started so far."""
    times = os.times()
    return times.children_user + times.children_system


def fpsgen(*arguments: str, cwd: Path, stdin: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with none of this machine's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FPSGEN_")}
    clean |= {"HF_HUB_OFFLINE": "1", "XDG_CONFIG_HOME": str(cwd / "none"), "COLUMNS": "80", "CUDA_VISIBLE_DEVICES": ""}
    root = str(Path(__file__).resolve().parent.parent)
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, (root, clean.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "fpsgen", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=clean | environ, input=stdin, capture_output=True, text=True, timeout=120
    )


def two_lines(done: subprocess.CompletedProcess[str], code: int) -> tuple[str, str]:
    """The message and the remedy of a run that failed as it should."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("fix: "), done.stderr
    assert "\x1b" not in done.stderr
    return lines[0], lines[1]


def test_version(tmp_path):
    done = fpsgen("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fpsgen {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["generate", "-h"], []])
def test_help_comes_at_once_and_fits(tmp_path, arguments):
    start = cpu_seconds()
    done = fpsgen(*arguments, cwd=tmp_path)
    seconds = cpu_seconds() - start
    assert done.returncode == (0 if arguments else 2) and not done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert seconds < 1.0  # 0.2 s on a quiet machine; torch alone takes more
    if "generate" in arguments:
        for panel in ("Video", "Quality", "Acceleration", "Output", "Machine"):
            assert f"─ {panel} ─" in done.stdout


def test_every_help_has_examples_and_no_types_of_switches(tmp_path):
    from fpsgen.cli.app import app

    names = [[command.name or command.callback.__name__] for command in app.registered_commands]
    for group in app.registered_groups:
        inner = group.typer_instance
        names.append([inner.info.name])
        names += [[inner.info.name, c.name or c.callback.__name__] for c in inner.registered_commands]
    for words in ([], *names):
        shown = fpsgen(*words, "--help", cwd=tmp_path).stdout
        assert "<bool>" not in shown
        assert " ".join(["fpsgen", *words]) in shown.split("Examples:")[1], words


def test_every_option_of_the_help_is_documented(tmp_path):
    done = fpsgen("generate", "--help", cwd=tmp_path)
    options = set(re.findall(r"--[a-z-]+", done.stdout))
    wanted = "model res aspect frames seconds fps steps guidance shift negative seed method schedule strict output"
    wanted += " overwrite no-metadata json quiet dry-run device dtype debug help"
    assert {f"--{name}" for name in wanted.split()} <= options


USAGE_ERRORS = [
    (["generate"], "no prompt", "a cat surfing"),
    (["a cat surfing"], "no such command", "fpsgen generate"),
    (["genrate", "x"], "no such command", "generate"),
    (["generate", "a", "cat"], "unexpected extra argument", "quotes"),
    (["generate", "cat", "--stepz", "3"], "--stepz", "--steps"),
    (["generate", "cat", "--steps"], "--steps", "--help"),
    (["generate", "cat", "--step", "3"], "--step", "--steps"),
    (["generate", "cat", "--resolution", "720p"], "--resolution", "--res"),
    (["generate", "cat", "--width", "640"], "--width", "--res"),
    (["generate", "cat", "--cfg=3"], "--cfg", "--guidance"),
    (["help"], "help", "fpsgen --help"),
    (["help", "generate"], "help", "fpsgen generate --help"),
    (["bench", "--methods", "bf16"], "--methods", "--compare"),
    (["bench", "--repeats", "1_0"], "--repeats '1_0'", "--repeats 3"),
    (["bench", "kernel", "--heads", "\u00b2"], "--heads", "--heads 12"),
    (["generate", "cat", "--negative", "x" * 10_001], "10000 characters", "--negative"),
    (["generate", "cat", "--steps", "1_0"], "--steps '1_0'", "--steps 50"),
    (["generate", "cat", "--guidance", "nan"], "--guidance 'nan'", "--guidance 5"),
    (["generate", "cat", "--seed", "-1"], "--seed '-1'", "--seed 42"),
    (["generate", "cat", "--method", "fp"], "--method 'fp'", "--method fp"),
    (["generate", "cat", "--frames", "5", "--seconds", "1"], "--frames and --seconds", "one of the two"),
    (["generate", "cat", "--schedule", "fast"], "fast", "safe, balanced, paper"),
    (["generate", ""], "prompt is empty", "fpsgen generate"),
    (["generate", " \t\n "], "prompt is empty", "fpsgen generate"),
    (["generate", "a\x1b[31mcat"], "control characters", "plain text"),
    (["generate", "x" * 10_001], "10001 characters", "shorten"),
    (["generate", "cat", "--frames", "32", "-m", "TINY"], "32 frames", "--frames 33"),
    (["generate", "cat", "--res", "100x100", "-m", "TINY"], "100x100", "--res 96x96"),
    (["generate", "cat", "--res", "999p", "-m", "TINY"], "999p", "WIDTHxHEIGHT"),
    (["generate", "cat", "-m", "TINY", "-o", "http://127.0.0.1:9/x.mp4"], "address", "this machine"),
    (["generate", "cat", "-m", "TINY", "-o", "x.avi"], ".mp4", "-o x.mp4"),
]


@pytest.mark.parametrize(("arguments", "said", "remedy"), USAGE_ERRORS, ids=lambda value: str(value)[:40])
def test_usage_errors(tmp_path, tiny_dir, arguments, said, remedy):
    arguments = [str(tiny_dir) if text == "TINY" else text for text in arguments]
    start = cpu_seconds()
    message, fix = two_lines(fpsgen(*arguments, cwd=tmp_path), 2)
    assert cpu_seconds() - start < LIMIT
    assert said in message and remedy in fix
    assert not os.listdir(tmp_path)


OTHER_ERRORS = [
    (["generate", "cat", "-m", "./nowhere"], 5, "nowhere"),
    (["generate", "cat", "-m", "TINY", "-o", "/dev/null"], 7, "/dev/null"),
    (["generate", "cat", "-m", "TINY", "-o", "bad.toml/x.mp4"], 7, "bad.toml"),
    (["generate", "cat", "-m", "TINY", "--schedule", "none.toml"], 4, "none.toml"),
    (["generate", "cat", "-m", "TINY", "--schedule", "bad.toml"], 4, "bad.toml"),
    (["generate", "cat", "-m", "TINY", "--device", "cuda"], 6, "CUDA"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), OTHER_ERRORS, ids=lambda value: str(value)[:40])
def test_other_errors(tmp_path, tiny_dir, arguments, code, said):
    (tmp_path / "bad.toml").write_text("name = ")
    arguments = [str(tiny_dir) if text == "TINY" else text for text in arguments]
    done = fpsgen(*arguments, "-q", cwd=tmp_path)
    message, fix = two_lines(done, code)
    assert said in message and message.count(".toml") < 2 and not fix.removeprefix("fix: ").startswith("or ")
    assert os.listdir(tmp_path) == ["bad.toml"]


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.1-14b"])
def test_a_wan_model_that_is_missing_names_the_command_that_fetches_it(tmp_path, name):
    done = fpsgen("generate", "cat", "-m", name, cwd=tmp_path, HF_HOME=str(tmp_path / "hf"))
    _, fix = two_lines(done, 5)
    assert "fpsgen models pull wan2.1-" in fix


@pytest.mark.skipif((weights_dir() / "nano").is_dir(), reason="the embedded model is here")
def test_a_missing_embedded_model_is_said_in_two_lines(tmp_path):
    for arguments in (["generate", "cat", "-m", "nano"], ["generate", "cat"]):
        message, _ = two_lines(fpsgen(*arguments, cwd=tmp_path, HF_HOME=str(tmp_path / "hf")), 5)
        assert "nano" in message


def test_errors_as_json(tmp_path):
    done = fpsgen("generate", "cat", "--steps", "x", "--json", cwd=tmp_path)
    body = json.loads(done.stdout)
    assert done.returncode == 2 and body["ok"] is False and body["results"] == []
    assert body["error"]["code"] == 2 and "--steps" in body["error"]["message"] and body["error"]["remedy"]
    for words in (("bench", "kernel"), ("models", "path"), ("generate",)):
        done = fpsgen(*words, "--nonsense", "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["command"] == " ".join(words)


def test_errors_in_settings_files(tmp_path):
    (tmp_path / "fpsgen.toml").write_text("steps = 'many'\n")
    message, _ = two_lines(fpsgen("generate", "cat", cwd=tmp_path), 4)
    assert "steps in ./fpsgen.toml 'many'" in message
    (tmp_path / "fpsgen.toml").unlink()
    message, _ = two_lines(fpsgen("generate", "cat", cwd=tmp_path, FPSGEN_STEPS="many"), 2)
    assert "FPSGEN_STEPS 'many'" in message


def test_a_plan_shows_every_setting_and_its_origin(tmp_path, tiny_dir):
    (tmp_path / "fpsgen.toml").write_text("fps = 8\n")
    arguments = ["generate", "a [/bold] cat", "-m", str(tiny_dir), "--dry-run", "--seed", "7", "--seconds", "1"]
    done = fpsgen(*arguments, cwd=tmp_path, FPSGEN_STEPS="3")
    assert done.returncode == 0, done.stderr
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "a [/bold] cat" in rows["prompt"]
    assert "9 (1.12 s)" in rows["frames"] and "[flag]" in rows["frames"]
    assert "3" in rows["steps"] and "[environment]" in rows["steps"]
    assert "8" in rows["fps"] and "[./fpsgen.toml]" in rows["fps"]
    assert "7" in rows["seed"] and "[flag]" in rows["seed"]
    assert "fp32" in rows["vae dtype"]
    assert {"negative", "shift", "guidance", "size", "schedule", "output", "device", "dtype"} <= set(rows)
    assert os.listdir(tmp_path) == ["fpsgen.toml"]  # nothing was made
    body = json.loads(fpsgen(*arguments, "--json", cwd=tmp_path).stdout)
    assert body["ok"] and body["results"][0]["settings"]["frames"] == 9
    assert body["results"][0]["origins"]["fps"] == "./fpsgen.toml"


def test_a_seed_is_drawn_when_none_is_given(tmp_path, tiny_dir):
    seeds = set()
    for _ in range(2):
        done = fpsgen("generate", "cat", "-m", str(tiny_dir), "--dry-run", "--json", cwd=tmp_path)
        seeds.add(json.loads(done.stdout)["results"][0]["settings"]["seed"])
    assert len(seeds) == 2


def test_streams_that_are_closed_or_narrow(tmp_path):
    for redirect in ("2>&-", ">&-", ">&- 2>&-", "</dev/null"):
        command = f"{sys.executable} -m fpsgen generate cat --steps x {redirect}"
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr
    done = fpsgen("generate", "cat", "--steps", "☃", cwd=tmp_path, PYTHONIOENCODING="ascii")
    two_lines(done, 2)
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m fpsgen generate --help | head -1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("columns", ["0", "1", "-5", "", "wide", "9" * 20])
def test_a_width_that_is_none_does_not_count(tmp_path, columns):
    done = fpsgen("generate", "--help", cwd=tmp_path, COLUMNS=columns)
    assert done.returncode == 0 and "--steps" in done.stdout and not done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["models", "list"], ["--help"], ["generate", "cat", "--dry-run", "--json"]])
def test_a_full_standard_output_ends_with_7(tmp_path, arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fpsgen", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 7 and "standard output" in done.stderr and "Traceback" not in done.stderr
    assert "video" not in done.stderr  # none was made


def test_a_batch_goes_on_where_nobody_reads_its_results(tmp_path, tiny_dir):
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    small = ["--res", "32x32", "--frames", "5", "--steps", "1", "--guidance", "1", "--method", "bf16"]
    command = [sys.executable, "-m", "fpsgen", "batch", "p.txt", "-m", str(tiny_dir), *small]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=tmp_path, env=env, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs").glob("*.mp4"))) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use stays there")
@pytest.mark.parametrize("arguments", [["doctor"], ["bench", "kernel"], ["train", "--preset", "nano-demo"]])
def test_a_working_folder_that_was_removed_is_named(tmp_path, arguments):
    """MKL ends the process that loads it there."""
    (tmp_path / "gone").mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from fpsgen.cli.app import run; sys.exit(run(sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [
        sys.executable,
        "-P",
        "-c",
        code,
        *arguments,
    ]  # Python 3.13.0 cannot import where sys.path has that folder
    done = subprocess.run(command, cwd=tmp_path / "gone", env=env, capture_output=True, text=True)
    assert "working folder" in two_lines(done, 7)[0]


def test_python_without_docstrings_is_refused():
    """transformers cannot be imported then."""
    command = [sys.executable, "-OO", "-m", "fpsgen", "generate", "a cat"]
    assert "PYTHONOPTIMIZE" in two_lines(subprocess.run(command, capture_output=True, text=True), 6)[0]


@pytest.mark.parametrize("reader", ["gone", "full"])
def test_a_video_is_made_where_nobody_reads_the_progress(tmp_path, tiny_dir, reader):
    """As in `fpsgen generate "a cat" 2>&1 | head -1`, or with a log on a full disk."""
    small = ["--res", "32x32", "--frames", "5", "--steps", "1", "--guidance", "1", "--method", "bf16"]
    command = [sys.executable, "-m", "fpsgen", "generate", "a cat", "-m", str(tiny_dir), "-o", "v.mp4", *small]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    read, write = os.pipe()
    os.close(read)
    if reader == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), write)
    done = subprocess.run(command, cwd=tmp_path, env=env, stdout=write if reader == "gone" else None, stderr=write)
    os.close(write)
    assert done.returncode == 0 and (tmp_path / "v.mp4").stat().st_size


def test_samples_are_found_by_the_name_in_the_documents(tmp_path):
    done = fpsgen("batch", "prompts/nano.txt", "-m", "nano", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 6
    two_lines(fpsgen("batch", "prompts/none.txt", "-m", "nano", cwd=tmp_path), 4)


def test_the_first_line_that_people_type_makes_a_plan_without_a_gpu(tmp_path):
    done = fpsgen("generate", "a cat surfing", "--res", "720p", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    settings = made["results"][0]["settings"]
    assert (settings["width"], settings["height"], settings["scaled_to"]) == (256, 144, [1280, 720])
    assert any("1280x720" in text for text in made["warnings"])


@pytest.mark.parametrize(
    ("size", "own", "said"),
    [("480x832", (256, 160), "black bars"), ("250x142", (256, 144), "250x142"), ("720x720", (256, 160), "black bars")],
)
def test_nano_is_scaled_to_any_even_size(tmp_path, size, own, said):
    done = fpsgen("generate", "a cat surfing", "--res", size, "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    settings = made["results"][0]["settings"]
    assert (settings["width"], settings["height"]) == own and settings["scaled_to"] == [*map(int, size.split("x"))]
    assert said in made["warnings"][0]
    odd = fpsgen("generate", "a cat surfing", "--res", "251x142", "--dry-run", cwd=tmp_path)
    assert "even" in two_lines(odd, 2)[0]


def test_lengths_that_nano_was_not_trained_on_are_said(tmp_path):
    for frames, wanted in ((33, 0), (65, 1), (1, 1)):
        done = fpsgen("generate", "a cat surfing", "--frames", str(frames), "--dry-run", "--json", cwd=tmp_path)
        assert sum("33 frames" in text for text in json.loads(done.stdout)["warnings"]) == wanted


def test_strict_refuses_a_scaled_video(tmp_path):
    done = fpsgen("generate", "a cat surfing", "--res", "720p", "--strict", "--dry-run", cwd=tmp_path)
    assert "1280x720" in two_lines(done, 9)[0]


def test_shells_complete_models_methods_schedules_and_files(tmp_path):
    (tmp_path / "own.toml").write_text("")
    (tmp_path / "prompts.txt").write_text("")
    for words, wanted in (
        ("generate --model ", {"auto", "nano", "wan2.1-1.3b"}),
        ("generate --method f", {"fp8", "fps"}),
        ("generate --schedule ", {"safe", "paper", "own.toml"}),
        ("batch p", {"prompts.txt"}),
        ("models verify n", {"nano"}),
    ):
        line = f"fpsgen {words}"
        place = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - (not line.endswith(" ")))}
        done = fpsgen(cwd=tmp_path, _FPSGEN_COMPLETE="complete_bash", **place)
        assert wanted <= set(done.stdout.split()), (words, done.stderr)
