"""A usage error says what was meant, with the value that was typed."""

from __future__ import annotations

import shlex

import pytest

from fpsgen.cli import options
from fpsgen.settings.table import SETTINGS


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("--step 3", "--steps 3"),
        ("--step=3", "--steps 3"),
        ("--step many", f"--steps {SETTINGS['steps'].example}"),
        ("--step", f"--steps {SETTINGS['steps'].example}"),
        ("--width 100", "--res 100xHEIGHT"),
        ("--height 48 --width 64", "--res 64x48"),
        ("--resolution 640x480", "--res 640x480"),
        ("--negative-prompt 'too dark'", "--negative 'too dark'"),
        ("--methud fps", "--method fps"),
        ("--force", "--overwrite"),
        ("--hlep", "--help"),
        ("-m nanoo", "nano"),
        ("--schedule saef", "safe"),
        ("--method fsp", "--method fps"),
    ],
)
def test_the_remedy_repeats_what_was_typed(fpsgen, typed, wanted):
    assert fpsgen("generate", "a cat", *shlex.split(typed)) in (2, 5)
    remedy = fpsgen.err.splitlines()[-1].rstrip("?")
    assert remedy.endswith(wanted) if wanted.startswith("--") else f"did you mean {wanted}?" in remedy, remedy


@pytest.mark.parametrize(
    ("typed", "place", "remedy"),
    [
        ("--debug generate cat", "fpsgen", "fpsgen generate --debug"),
        ("--no-metadata batch p.txt", "fpsgen", "fpsgen batch --no-metadata"),
        ("--json models list", "fpsgen", "fpsgen models list --json"),
        ("models --json list", "fpsgen models", "fpsgen models list --json"),
        ("bench --shape 480p kernel", "fpsgen bench", "fpsgen bench kernel --shape"),
        ("--sede 3 generate cat", "fpsgen", "--seed 3, behind the command?"),
        ("generate cat --sede 3", "fpsgen generate", "--seed 3?"),
    ],
)
def test_an_option_before_its_command_is_told_where_to_stand(fpsgen, typed, place, remedy):
    fpsgen(*typed.split())
    fpsgen.refused(2)
    message, fix = fpsgen.err.splitlines()[-2:]
    assert message.startswith(f"error: {place} has no option") and fix.endswith(remedy), fpsgen.err


def test_help_shows_no_types_and_wraps_paragraphs_to_the_terminal(fpsgen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("generate", "batch", "info", "models rm"):
        assert fpsgen(*command.split(), "--help") == 0
        assert "<str>" not in fpsgen.out
    command = options.Command("made-up", help="One line\n    and its rest.\n\n    Another\n    one.")
    assert command.help == "One line and its rest.\n\nAnother one."


def test_help_says_what_a_setting_is_in_that_command(fpsgen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = {}
    for command in ("generate", "bench", "bench steps", "bench waterfall", "batch", "evaluate"):
        fpsgen(*command.split(), "--help")
        line = next(line for line in fpsgen.out.splitlines() if "--seed " in line)
        shown[command] = line.partition("[")[2].partition("]")[0]
    assert shown.pop("generate") == "drawn" and shown.pop("batch") == shown.pop("evaluate") == "from the prompt"
    assert set(shown.values()) == {"0"}


def test_help_of_train_says_where_a_run_goes_and_its_exit_codes(fpsgen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    fpsgen("train", "--help")
    assert "[runs/NAME]" in fpsgen.out and "Exit codes" in fpsgen.out
