"""Progress: few plain lines in a pipe, a moving one on a terminal, and foreign text never read as markup."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fpsgen.cli import console, progress
from fpsgen.cli.batch import ShownProgress
from fpsgen.errors import FpsgenError


def drive(shown: progress.Quiet, total: int = 50) -> None:
    with shown:
        shown.note("model", "nano ([/bold] \x1b[31m)")
        shown.stage_start("denoise")
        for index in range(total):
            shown.step(index, total, 2.0, "middle (fps 31%)")
        shown.stage_end("denoise", 100.0)
        shown.warn("mind [red]this")


def test_plain_lines(capsys):
    drive(progress.Plain())
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and "\x1b" not in err
    assert lines[0] == "model    nano ([/bold] \\x1b[31m)"
    assert lines[1] == "denoise  5/50 2.00 s/it ETA 01:30  middle (fps 31%)"
    assert lines[-2] == "denoise  100.0 s, 50 steps, 2.00 s/it"
    assert lines[-1] == "warning: mind [red]this"
    assert len(lines) == 1 + 9 + 1 + 1


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 11, 1000])
def test_any_number_of_steps(capsys, total):
    drive(progress.Plain(), total)
    assert len(capsys.readouterr().err.splitlines()) == 3 + min(9, total - 1)


@pytest.mark.parametrize("kind", [progress.Plain, progress.Drawn])
def test_what_goes_on_in_the_middle_is_as_fast_as_its_own_steps(capsys, monkeypatch, kind):
    shown, texts = kind(), []
    if kind is progress.Drawn:
        monkeypatch.setattr(shown._progress, "update", lambda *_, note, **__: texts.append(note))
    shown.stage_start("pairs")
    shown.step(0, 1, 50.0, "")
    shown.stage_start("train")
    for index in range(150, 200):
        shown.step(index, 200, 2.0, "")
    texts += capsys.readouterr().err.splitlines()
    assert any("160/200 2.00 s/it ETA 01:20" in text for text in texts)


def run_job(shown: progress.Quiet, rest: float | None, left: int) -> None:
    shown.job("[1/3]", "a cat", rest, left)
    shown.stage_start("denoise")
    for index in range(20):
        shown.step(index, 20, 3.0, "")
    shown.stage_end("denoise", 60.0)


def test_a_batch_says_how_long_it_will_take_before_the_first_job_ends(capsys):
    run_job(progress.Plain(), None, 3)
    assert capsys.readouterr().err.splitlines() == ["[1/3]    a cat", "batch    ETA of all about 03:00"]
    run_job(progress.Plain(), 120.0, 2)
    assert capsys.readouterr().err.splitlines() == ["[1/3]    a cat, ETA of all 02:00"]


def test_the_moving_line_of_a_first_job_says_it_too(monkeypatch):
    shown = progress.Drawn()
    shown.job("[1/3]", "a cat", None, 3)
    shown.stage_start("denoise")
    shown.step(0, 20, 3.0, "")
    assert "all about 02:57" in shown._progress.tasks[0].fields["note"]


def test_quiet(capsys):
    drive(progress.Quiet())
    assert capsys.readouterr() == ("", "")


def test_drawn(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    drive(progress.Drawn())
    out, err = capsys.readouterr()
    assert out == ""
    for text in ("model    nano ([/bold] \\x1b[31m)", "denoise  100.0 s, 50 steps, 2.00 s/it", "mind [red]this"):
        assert text in err


def test_a_terminal_gets_the_moving_line_and_a_pipe_does_not(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress.choose(False), progress.Plain)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(progress.choose(False), progress.Drawn)
    assert type(progress.choose(True)) is progress.Quiet
    for name, value in (("TERM", "dumb"), ("CI", "1")):
        with monkeypatch.context() as change:
            change.setenv(name, value)
            assert isinstance(progress.choose(False), progress.Plain)


@pytest.mark.parametrize(
    ("done", "total", "spent", "text"),
    [
        (1, 2, 3.0, "3.00 s/it ETA 00:03"),
        (2, 50, 200.0, "100.00 s/it ETA 1:20:00"),
        (5, 5, 1.0, "0.20 s/it ETA 00:00"),
    ],
)
def test_pace(done, total, spent, text):
    assert progress.pace(done, total, spent) == text


def test_an_error_is_two_lines_whatever_it_holds(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    console.error(FpsgenError("a\nb\x1b[31m\u202e[/bold]\r", "c\nd", 2))
    assert capsys.readouterr().err == "error: a b\\x1b[31m\\u202e[/bold]\nfix: c d\n"


def test_colour_on_request(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.warning("x")
    assert capsys.readouterr().err == "\x1b[33mwarning:\x1b[0m x\n"
    monkeypatch.setenv("NO_COLOR", "1")
    console.warning("x")
    assert capsys.readouterr().err == "warning: x\n"


def test_what_is_left_of_a_batch_follows_from_what_its_videos_took():
    shown = ShownProgress(progress.Plain())
    assert shown._rest(2) is None
    job = SimpleNamespace(prompt="a cat", number=1)
    for index, seconds in enumerate((10.0, 20.0), 1):
        shown.job_start(job, index, 4)
        shown.job_end(SimpleNamespace(error=None, path=None, seconds=seconds))
    assert shown._rest(2) == 30
