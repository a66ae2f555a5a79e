"""doctor finds what is there and what is not; its kernel test can fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fpsgen.attention import op as function
from fpsgen.cli.app import app
from tools import commands as reference

ROOT = Path(__file__).resolve().parents[2]


def checks(shell) -> dict[str, dict]:
    return {check["name"]: check for check in shell.json["results"]}


def test_a_healthy_machine(fpsgen):
    assert fpsgen("doctor") == 0, fpsgen.err
    assert "fit for nano" in fpsgen.err
    assert {line.split()[0] for line in fpsgen.lines} <= {"ok", "info", "warn", "->"}
    assert fpsgen("doctor", "--json") == 0
    found = checks(fpsgen)
    names = "fpsgen python torch GPU RAM ffmpeg hub settings"
    seen = {re.sub(r"^GPU \d+$", "GPU", name) for name in found}
    assert set(names.split()) | {"model nano", "disk, outputs", "kernel self-test"} <= seen
    assert found["torch"]["value"].startswith(torch.__version__) and "libx264" in found["ffmpeg"]["value"]
    assert "FPSGEN_DEVICE" in found["settings"]["value"]


def test_unfit_for_a_large_model(fpsgen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fpsgen("doctor", "-m", "wan2.1-14b") == 6
    assert "unfit for wan2.1-14b: GPU" in fpsgen.err and "fpsgen models pull wan2.1-14b" in fpsgen.out
    assert fpsgen("doctor", "-m", "wan2.1-14b", "--json") == 6
    assert fpsgen.json["error"]["code"] == 6 and checks(fpsgen)["GPU"]["status"] == "fail"
    fpsgen("doctor", "-m", "nothing")
    fpsgen.refused(5, "nothing", "nano")
    monkeypatch.setenv("FPSGEN_MODEL", "wan2.1-14b")
    assert fpsgen("doctor") == 6 and "unfit for wan2.1-14b" in fpsgen.err


def test_a_model_folder_is_judged_too(fpsgen, tiny_dir):
    assert fpsgen("doctor", "-m", tiny_dir, "--json") == 0, fpsgen.err
    assert checks(fpsgen)[f"model {tiny_dir}"]["status"] == "ok"


def test_ok_is_said_of_what_was_tried_alone(fpsgen):
    assert fpsgen("doctor", "--json") == 0
    found = checks(fpsgen)
    assert {found[name]["status"] for name in ("hub", "settings", "model wan2.1-14b")} == {"info"}
    assert {found[name]["status"] for name in ("ffmpeg", "model nano", "kernel self-test")} == {"ok"}


@pytest.mark.parametrize(
    "fault", [lambda out: out * 1.05, lambda out: out.roll(1, 2), lambda out: out * float("nan"), torch.zeros_like]
)
def test_a_wrong_kernel_is_found(fpsgen, monkeypatch, fault):
    real = function.attend
    monkeypatch.setattr(function, "attend", lambda *a, **k: fault(real(*a, **k)))
    assert fpsgen("doctor") == 6
    assert "kernel self-test" in fpsgen.err


def test_what_is_missing_is_named(fpsgen, monkeypatch):
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/nowhere/ptxas")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    assert fpsgen("doctor", "--json") == 6
    found = checks(fpsgen)
    assert found["ptxas"]["status"] == "warn" and "/nowhere/ptxas" in found["ptxas"]["value"]
    bad = [check for name, check in found.items() if name in ("ffmpeg", "video")]
    assert bad and bad[0]["status"] == "fail" and bad[0]["remedy"]


def test_the_command_reference_is_current(tmp_path):
    assert reference.main(["--check", "--root", str(ROOT)]) == 0
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "commands.md").write_text(text.replace("Denoising steps.", "Steps."), encoding="utf-8")
    assert reference.main(["--check", "--root", str(tmp_path)]) == 1
    assert reference.main(["--root", str(tmp_path)]) == 0
    assert (tmp_path / "docs" / "commands.md").read_text(encoding="utf-8") == text


def test_the_reference_holds_every_command():
    text = reference.render()
    import typer

    top = typer.main.get_command(app)
    for name in getattr(top, "commands", {}):
        assert f"**`fpsgen {name}" in text
    assert "`--debug`" in text  # as help has it


def complete(words: str, shell: str = "bash") -> list[str]:
    environ = {
        "_FPSGEN_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ |= {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "HOME": "/nonexistent"}
    code = "import sys; from fpsgen.__main__ import main; sys.argv = ['fpsgen']\ntry:\n    main()\nfinally:\n"
    code += "    print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip().endswith("False"), done.stderr  # the shell waits for it: no torch
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("fpsgen ge", ["generate"]),
        ("fpsgen generate --model wan", ["wan2.1-1.3b", "wan2.1-14b"]),
        ("fpsgen generate --method f", ["fp8", "fps"]),
        ("fpsgen batch --schedule b", ["balanced"]),
        ("fpsgen generate --res 7", ["720p"]),
        ("fpsgen models p", ["pull", "path"]),
    ],
)
def test_shell_completion(words, wanted):
    assert complete(words) == wanted
