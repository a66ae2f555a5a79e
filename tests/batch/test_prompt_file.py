"""Prompt files as people have them: every line is understood or refused by its number."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusal import refuses

from fpsgen.batch.prompt_file import parse_line, read_lines
from fpsgen.errors import BAD_INPUT, FpsgenError


def read(data: bytes, name: str, folder: Path) -> list[tuple[int, str, dict]]:
    path = folder / name
    path.write_bytes(data)
    return [(line.number, *parse_line(line)) for line in read_lines(str(path))]


def refused(data: bytes | str, name: str, folder: Path, *words: str) -> None:
    with refuses(BAD_INPUT, name, *words):
        read(data if isinstance(data, bytes) else data.encode(), name, folder)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_lines_end_in_any_way(tmp_path, end):
    data = end.join(["a cat", "# no", "", "a dog", ""]).encode()
    assert read(data, "p.txt", tmp_path) == [(1, "a cat", {}), (4, "a dog", {})]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_lines_end_as_json_does(tmp_path, end):
    lines = ['{"prompt": "a\u2028b\x85c"}', "", '{"prompt": "d", "seed": 3}', ""]
    found = read(end.join(lines).encode(), "p.jsonl", tmp_path)
    assert found == [(1, "a\u2028b\x85c", {}), (3, "d", {"seed": 3})]


def test_marks_and_invisible_characters_are_no_words(tmp_path):
    data = "\ufeffa cat\n\ufeff# a joined file\n\ufeff\u200ba\u200b \u00addog\ufeff\n \u3000\n\ufeff\n".encode()
    assert [prompt for _, prompt, _ in read(data, "p.txt", tmp_path)] == ["a cat", "a dog"]
    data = '\ufeff{"prompt": "a cat"}\n\ufeff{"prompt": "a dog"}\ufeff\n'.encode()
    assert [prompt for _, prompt, _ in read(data, "p.jsonl", tmp_path)] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "word", ["\u2014steps 3", "\u2013-steps 3", "\u2014w 832", "\u2212\u2212seed=4", "\u2013n blurry"]
)
def test_an_option_with_an_editors_dash_is_no_part_of_the_prompt(tmp_path, word):
    refused(f"a cat {word}", "p.txt", tmp_path, "line 1", word.split()[0].split("=")[0])
    kept = "a cat \u2014 w of steps, well\u2014seed, \u2014sunset"
    assert read(kept.encode(), "p.txt", tmp_path) == [(1, kept, {})]


def test_a_line_of_json_is_no_prompt(tmp_path):
    refused('a dog\n{"prompt": "a cat", "seed": 1}\n', "p.txt", tmp_path, "line 2", "JSON")
    assert read(b"{red|blue} cat", "p.txt", tmp_path) == [(1, "{red|blue} cat", {})]


OPTIONS = [
    ("a cat --w 832 --h 480 --f 81 --d 42 --s 20 --g 5.0 --fs 3.0 --n blurry, static", None),
    ("--h=480 --w=832 --frames 81 --seed 42 --steps=20 --l 5.0 --shift 3.0 --negative 'blurry, static'", ""),
]


@pytest.mark.parametrize(("line", "prompt"), OPTIONS)
def test_options_behind_a_prompt(tmp_path, line, prompt):
    [(_, found, values)] = read(line.encode(), "p.txt", tmp_path)
    assert found == ("a cat" if prompt is None else prompt)
    assert values == {
        "res": "832x480",
        "frames": "81",
        "seed": "42",
        "steps": "20",
        "guidance": "5.0",
        "shift": "3.0",
        "negative": "blurry, static",
    }


@pytest.mark.parametrize(
    "prompt", ["rock--n--roll", "a cat -- and a dog", "a --- b", "-- ", "a 3--4 score", "x --5 y", "-d 4", "a -- -- b"]
)
def test_what_only_looks_like_an_option(tmp_path, prompt):
    assert read(prompt.encode(), "p.txt", tmp_path) == [(1, prompt.strip(), {})]


def test_switches_behind_a_prompt(tmp_path):
    text = b"a cat --strict --seed 4\na dog --no-metadata --no-strict"
    found = [values for _, _, values in read(text, "p.txt", tmp_path)]
    assert found == [{"strict": True, "seed": "4"}, {"metadata": False, "strict": False}]


def test_a_quotation_mark_alone_is_a_value(tmp_path):
    assert read(b"a cat --negative '", "p.txt", tmp_path) == [(1, "a cat", {"negative": "'"})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a cat --i picture.png", ["--i"]),
        ("a cat --stepz 4", ["--stepz", "did you mean --steps"]),
        ("a cat --w 832", ["--w or --h alone"]),
        ("a cat --s 4 --steps 5", ["steps twice"]),
        ("a cat --g 4 --l 5", ["guidance twice"]),
        ("a cat --w 16 --h 16 --res 480p", ["--res"]),
        ("a cat --no-seed", ["--no-seed"]),
        ("a cat --no-strict x", ["--no-strict"]),
        ("a\x1b[31m cat", ["U+001B"]),
        ("a \u202ecat", ["U+202E"]),
        ("a\0cat", ["U+0000"]),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path, line, words):
    refused(f"fine\n\n{line}\n", "p.txt", tmp_path, "line 3", *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a", "seed": 1, "seed": 2}', ["'seed' is there twice"]),
        ('{"prompt": "a", "prompt": "b"}', ["twice"]),
        ('{"prompt": NaN}', ["NaN"]),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", ["digits"]),
        ('{"prompt": "a", "x": ' + "[" * 50_000, ["deep"]),
        ('{"prompt": "a\\ud800"}', ["half a character"]),
        ('{"prompt": "a"', ["not JSON"]),
        ('{"prompt": 4}', ["no prompt"]),
        ("[]", ["not a JSON object"]),
        ("a cat", ["not JSON"]),
    ],
)
def test_json_that_is_refused_with_its_line(tmp_path, line, words):
    refused(f'{{"prompt": "fine"}}\n{line}\n', "p.jsonl", tmp_path, "line 2", *words)


def test_files_that_are_none(tmp_path):
    refused(b"", "p.txt", tmp_path, "no prompt")
    refused(b"a\n\xff\n", "p.txt", tmp_path, "line 2", "offset 2")
    refused("a cat".encode("utf-16"), "p.txt", tmp_path, "UTF-16")
    refused(b"a", "p.csv", tmp_path, "neither")
    with pytest.raises(FpsgenError, match="not there"):
        list(read_lines(str(tmp_path / "none.txt")))


@pytest.mark.parametrize(("text", "prompt"), [("\ufeff\n {'", "{'"), ('\ufeff\n{"prompt": "a cat"}', "a cat")])
def test_standard_input_is_either_kind(monkeypatch, text, prompt):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    if prompt == "{'":
        with pytest.raises(FpsgenError, match="stdin line 2"):
            parse_line(next(read_lines("-")))
    else:
        assert [parse_line(line) for line in read_lines("-")] == [(prompt, {})]


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
PIECES = st.sampled_from(
    ["a cat ", "--seed ", "--w 16", "--h=16 ", " --n x", "--", "#", '{"prompt": "a"}', "\r", "\ufeff", "4"]
)


@given(st.lists(TEXT | PIECES, max_size=12), st.sampled_from([".txt", ".jsonl"]))
def test_any_file_is_understood_or_refused(tmp_path_factory, pieces, kind):
    path = tmp_path_factory.getbasetemp() / f"any{kind}"
    path.write_bytes("".join(pieces).encode())
    try:
        for line in read_lines(str(path)):
            prompt, values = parse_line(line)
            assert isinstance(prompt, str) and "prompt" not in values
            assert kind == ".jsonl" or (prompt.isprintable() or prompt == "" or " " not in prompt.split())
            json.dumps(values)
    except FpsgenError as error:
        assert error.code == BAD_INPUT and "\x1b" not in error.message
