"""models.toml is judged with the bounds of the command line."""

from __future__ import annotations

import pytest
from refusal import refused, refuses

from fpsgen.errors import BAD_INPUT
from fpsgen.models.catalog.registry import models

ROW = {"name": '"mine"', "source": '"someone/wan"', "like": '"wan2.1-1.3b"'}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("FPSGEN_CONFIG", raising=False)
    (tmp_path / "fpsgen").mkdir()
    return tmp_path / "fpsgen" / "models.toml"


def row(**changes: str) -> str:
    return "[[model]]\n" + "".join(f"{key} = {value}\n" for key, value in (ROW | changes).items())


def test_a_row_takes_what_it_does_not_set_from_another(file):
    file.write_text("\ufeff" + row(steps="20", guidance="4", resolutions="{ 360p = [640, 352] }"), encoding="utf-8")
    *shipped, mine = models()
    assert (mine.name, mine.source, mine.steps, mine.guidance) == ("mine", "someone/wan", 20, 4.0)
    assert (mine.shift, mine.frames, mine.revision, mine.licence) == (shipped[1].shift, 81, "main", "unknown")
    assert mine.resolutions == {"360p": (640, 352)} and mine.note((1280, 720)) == ""
    assert not mine.embedded and mine.transformer == {} and mine.geometry == shipped[1].geometry


WRONG = [
    {"fps": "0"},
    {"fps": "241"},
    {"fps": "16.5"},
    {"width": "-5"},
    {"width": "833"},
    {"width": "true"},
    {"width": '"832"'},
    {"height": "100000"},
    {"frames": "0"},
    {"frames": "6"},
    {"frames": "2005"},
    {"steps": "0"},
    {"steps": "1001"},
    {"steps": "1" + "0" * 4500},
    {"guidance": "nan"},
    {"guidance": "101"},
    {"shift": "inf"},
    {"shift": "0"},
    {"shift": '"3"'},
    {"like": '["nano"]'},
    {"like": '"mine"'},
    {"like": "1"},
    {"name": "1"},
    {"name": '""'},
    {"name": '"auto"'},
    {"name": '"nano"'},
    {"name": '"a\\u001b[31m"'},
    {"source": "[]"},
    {"source": '""'},
    {"trained_schedule": '"false"'},
    {"max_sequence_length": "513"},
    {"max_sequence_length": "0"},
    {"resolutions": "[1]"},
    {"resolutions": "{ x = [1, 2, 3] }"},
    {"resolutions": "{ x = [640, 353] }"},
    {"negative_prompt": "3"},
    {"min_memory_gb": "-1"},
    {"embedded": "true"},
    {"geometry": "{}"},
    {"stepz": "3"},
]


@pytest.mark.parametrize("changes", WRONG, ids=lambda changes: str(changes)[:40])
def test_values_out_of_bounds_are_two_lines(file, changes):
    file.write_text(row(**changes))
    error, key = refused(models, BAD_INPUT, "models.toml"), next(iter(changes))
    assert key in error.message or "digits" in error.message or key == "name"


@pytest.mark.parametrize("text", ["x", "model = 3", "[model]\nname = 1", "more = 1", "[[model]]", row() + row(), "\0"])
def test_files_that_hold_something_else(file, text):
    file.write_text(text)
    with refuses(BAD_INPUT, "models.toml"):
        models()


def test_what_is_no_file(file):
    file.mkdir()
    with refuses(BAD_INPUT):
        models()
