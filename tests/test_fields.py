"""Structured text from outside: two lines and the right code for whatever it holds."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused

from fpsgen.errors import BAD_INPUT, MODEL, FpsgenError
from fpsgen.fields import choice, fields, many, mapping, parse_json, parse_toml, raw, real, switch, text, whole

SPEC = {
    "steps": whole(1, 1000),
    "guidance": real(0, 100, default=5.0),
    "strict": switch(default=False),
    "prompt": text(20),
    "kind": choice(("a", "b"), default="a"),
    "sizes": many(whole(16, 64), 2, 2, default=(16, 16)),
    "versions": mapping(text(10), 2, default=None),
    "model": {"name": text(10), "toml": raw(100, default="")},
}
GOOD = {"steps": 3, "prompt": " a  cat ", "model": {"name": "nano"}}


def test_values_come_checked_and_completed():
    found = fields(GOOD | {"guidance": 3, "sizes": [32, 64]}, SPEC, "the recipe")
    assert found == {
        "steps": 3,
        "guidance": 3.0,
        "strict": False,
        "prompt": "a cat",
        "kind": "a",
        "sizes": (32, 64),
        "versions": None,
        "model": {"name": "nano", "toml": ""},
    }
    assert type(found["guidance"]) is float


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("steps", value) for value in (0, 1001, True, 3.0, "3", None, [3], 10**4000)],
        *[("guidance", value) for value in (math.nan, math.inf, True, "5", 10**400, -1)],
        *[("strict", value) for value in ("false", 0, 1, None)],
        *[("prompt", value) for value in ("", " ", "\ufeff", "x" * 21, 5, ["a"], "a\x1b", "a\0", "\ud800")],
        *[("kind", value) for value in ("c", ["a"], {"a": 1}, 1)],
        *[("sizes", value) for value in ([16], [16, 16, 16], [16, True], "16", [16, "16"], {"a": 1})],
        *[("versions", value) for value in ([], {"a": 1}, {"a\x1b": "b"}, "x", dict.fromkeys("abc", "x"))],
        *[("model", value) for value in ("nano", {}, {"name": 1}, None, {"name": "a", "toml": 1})],
    ],
)
def test_a_wrong_value_is_named(key, value):
    refused(lambda: fields(GOOD | {key: value}, SPEC, "the recipe"), BAD_INPUT, "the recipe", key)


def test_keys_that_are_missing_or_unknown_are_named():
    refused(lambda: fields({"prompt": "a", "model": {"name": "x"}}, SPEC, "it", MODEL), MODEL, "no steps")
    refused(lambda: fields(GOOD | {"stepz": 1}, SPEC, "it"), BAD_INPUT, "stepz", "did you mean steps")
    assert "stepz" not in fields(GOOD | {"stepz": 1}, SPEC, "it", more=True)
    refused(lambda: fields([1], SPEC, "it"), BAD_INPUT, "not a table")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not JSON"),
        ('{"a": 1', "not JSON"),
        ("[1]", "object"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"a": {"b": 1, "b": 1}}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999}', "too large"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ('{"a": ' + "[" * 100_000, "deep"),
        ('{"a": ' * 100_000, "deep"),
        ('{"a": ["x\\u0000y"]}', "NUL"),
        ('{"a\\ud800": 1}', "NUL or half"),
        ('{"a": "\0"}', "not JSON"),
    ],
)
def test_json_that_is_refused(text, word):
    refused(lambda: parse_json(text, "line 3"), BAD_INPUT, "line 3", word)


def test_json_that_is_fine():
    value = {"a": "é😀\\u0000", "b": [1, 2.5, None, True], "c": {"d": 2**60}}
    assert parse_json(json.dumps(value), "it") == value


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a = ", "not TOML"),
        ("a = 1\na = 2", "not TOML"),
        ("a = " + "9" * 5000, "digits"),
        ("a = " + "[" * 5000, "deep"),
        ('a = "x\\u0000"', "NUL"),
    ],
)
def test_toml_that_is_refused(text, word):
    refused(lambda: parse_toml(text, "x.toml", MODEL), MODEL, "x.toml", word)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*SPEC, "other"]), VALUES))
def test_any_table_is_used_or_refused(table):
    try:
        found = fields(table, SPEC, "it")
    except FpsgenError as error:
        assert error.code == BAD_INPUT and error.message.isprintable()
    else:
        assert found.keys() == SPEC.keys()


@given(st.text() | st.recursive(st.just("1"), lambda inner: inner.map(lambda text: f'{{"a": {text}}}'), max_leaves=4))
def test_any_text_is_parsed_or_refused(text):
    for parse in (parse_json, parse_toml):
        try:
            assert isinstance(parse(text, "it"), dict)
        except FpsgenError as error:
            assert error.code == BAD_INPUT and show_safe(error)


def show_safe(error: FpsgenError) -> bool:
    return "\n" not in error.message and "\x1b" not in error.message


def test_a_number_without_a_decimal_form_is_named():
    refused(lambda: fields(GOOD | {"steps": 10**5000}, SPEC, "it"), BAD_INPUT, "steps")
    refused(lambda: fields(GOOD | {"guidance": -(10**5000)}, SPEC, "it"), BAD_INPUT, "guidance")
