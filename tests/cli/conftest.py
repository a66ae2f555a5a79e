"""What tests of commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fpsgen.attention.methods import METHODS
from fpsgen.cli.app import run


class Shell:
    """Runs command lines in this process and keeps what they wrote."""

    def __init__(self, capsys) -> None:
        self._capsys = capsys
        self.code = 0
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        self._capsys.readouterr()
        self.code = run([str(argument) for argument in arguments])
        self.out, self.err = self._capsys.readouterr()
        return self.code

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> dict:
        return json.loads(self.out)

    def refused(self, code: int, *words: str) -> None:
        """The last run failed with this code, in two lines that hold these words, and no result."""
        assert self.code == code, self.err
        lines = self.err.splitlines()[-2:]
        assert lines[0].startswith("error: ") and lines[1].startswith("fix: "), self.err
        assert all(word in " ".join(lines) for word in words), self.err


@pytest.fixture
def fpsgen(capsys, monkeypatch, own_folder):
    """The command line, in an empty folder and without this machine's settings."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FPSGEN_DEVICE", "cpu")
    return Shell(capsys)


@pytest.fixture
def made_up_method(monkeypatch):
    """A method that is not fpsgen's, in the list of methods; it chooses its keys at each call, per head."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
    from attention.made_up_method import METHOD

    monkeypatch.setitem(METHODS, METHOD.name, METHOD)
    yield METHOD
    sys.modules.pop("attention.made_up_method", None)
