"""Text from outside: what is kept, removed and refused, and that nothing of it can move a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpsgen.text import clean_text, nearest, plural, show, split_lines


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a\tcat \r\n surfs\u2028again\x85 ", "a cat surfs again"),
        ("\ufeffa\ufeff cat\ufeff", "a cat"),
        ("a \u200b cat\u00ad\u2060", "a cat"),
        ("a\u200dcat\ufe0f", "acat"),  # joiners and selectors that change nothing
        ("\U0001f468\u200d\U0001f469 \u2764\ufe0f\u200d\U0001f525 1\ufe0f\u20e3", None),  # emoji stay whole
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),  # a Persian word
        ("\u845b\U000e0100", None),
        ("\u2764\ufe0f\ufe01\ufe02", "\u2764\ufe0f"),  # a run of selectors can carry a hidden message
        ("\u3164\u3164", ""),
        ("色调艳丽", None),
    ],
)
def test_one_clean_line(text, cleaned):
    assert clean_text(text) == (text if cleaned is None else cleaned)


@pytest.mark.parametrize("bad", ["\x1b", "\0", "\x9b", "\u202e", "\u2066", "\ud800", "\U000e0041", "\x7f"])
def test_what_hides_or_controls_is_refused(bad):
    with pytest.raises(ValueError, match=f"U\\+{ord(bad):04X}"):
        clean_text(f"a{bad}b")


def test_lines_end_as_people_have_them():
    assert split_lines("a\nb\rc\r\nd\u2028e\x85f\u2029\n") == ["a", "b", "c", "d", "e", "f", "", ""]


def test_show_is_one_printable_line():
    assert show("a\x1b[31m\nb\u202e\U000e0041") == "a\\x1b[31m b\\u202e\\U000e0041"
    assert show("x" * 120) == "x" * 120 and show("a" * 500 + "b" * 500, 11) == "aaaa...bbbb"
    deep = "/folder" * 90 + "/models.toml"
    assert show(Path(deep)) == deep and show(deep).endswith("/models.toml")  # a path names its file however long it is


@given(st.text() | st.text(alphabet="a1 \u200d\u200c\ufe0f\ufeff\u2764\u00ad\r\n"))
def test_cleaning_twice_is_cleaning_once(text):
    try:
        cleaned = clean_text(text)
    except ValueError:
        return
    assert clean_text(cleaned) == cleaned == " ".join(cleaned.split())
    assert len(split_lines(cleaned)) == 1 and "\ufeff" not in cleaned


@given(st.text(alphabet=st.characters(exclude_categories=())), st.integers(3, 200))
def test_shown_text_moves_no_terminal(text, limit):
    assert show(text, limit).isprintable() and len(show(text, limit)) <= limit


def test_one_has_no_s():
    assert [plural(count, "frame") for count in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]


def test_the_nearest_name_in_whatever_case():
    names = ("FPSGEN_STEPS", "safe", "paper")
    assert nearest("fpsgen_stepz", names) == "FPSGEN_STEPS" and nearest("SAEF", names) == "safe"
    assert nearest("zebra", names) == "" and nearest("x" * 10_000, names) == ""
