"""Text from outside: cleaned on its way in, made safe to print on its way out. A leaf: imports nothing of ours."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

_LINE_END = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]")
_REFUSED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
# Unicode's Default_Ignorable_Code_Point without what is refused and what _JOINERS and _SELECTORS hold.
_DROPPED = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2060-\u2065\u206a-\u206f\u3164"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0080-\U000e00ff\U000e01f0-\U000e0fff"
)
_JOINERS = "\u200c\u200d"  # have a meaning in emoji and in Persian and Indic scripts
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"  # choose the form of the character before them
_INVISIBLE = re.compile(f"[{_DROPPED}{_JOINERS}{_SELECTORS}]")
_ALWAYS_DROPPED = re.compile(f"[{_DROPPED}]")
_JOINER = re.compile(f"[{_JOINERS}]")


def split_lines(text: str) -> list[str]:
    """Lines as any editor ends them: LF, CRLF, CR, VT, FF, NEL, U+2028 and U+2029."""
    return _LINE_END.split(text)


def clean_text(text: str) -> str:
    """The text on one line: white space and line ends as single blanks, invisible characters and byte order marks
    removed. Joiners and variation selectors stay where they belong, behind a character that they can change.

    Raises ValueError for control characters, lone surrogates, and marks that change the direction or hide words.
    """
    if _INVISIBLE.search(text):
        text = _without_invisible(text)
    text = " ".join(_LINE_END.sub(" ", text).split())
    bad = _REFUSED.search(text)
    if bad:
        raise ValueError(f"it holds the character U+{ord(bad[0]):04X}")
    return text


def show(value: object, limit: int | None = None) -> str:
    """A value as it may stand in a message or on a terminal: one line, nothing but printable characters, not longer
    than `limit` (by default 120, for a path 1000). Line ends become blanks; other characters that do not print become
    \\x1b, \\u202e and so on. What is too long loses its middle: a path ends in the file's name.
    """
    limit = limit or (1000 if isinstance(value, os.PathLike) else 120)
    text = _without_middle(str(value), 4 * limit)
    if not text.isprintable():
        text = "".join(ch if ch.isprintable() else _escape(ch) for ch in _LINE_END.sub(" ", text))
    return _without_middle(text, limit)


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The name that a mistyped word comes nearest to, in whatever case, "" if none comes near."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower()[:80], lower, 1, cutoff)
    return lower[near[0]] if near else ""


def plural(count: int, word: str) -> str:
    """A number and what it counts: "1 frame", "2 frames"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = (limit - 3) // 2
    return f"{text[: limit - 3 - end]}...{text[len(text) - end :]}"


def _escape(ch: str) -> str:
    code = ord(ch)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _without_invisible(text: str) -> str:
    kept: list[str] = []
    for ch in text + " ":
        if _ALWAYS_DROPPED.match(ch) or (_INVISIBLE.match(ch) and not _can_change(kept[-1] if kept else " ", ch)):
            continue
        if ch.isspace() and kept and _JOINER.match(kept[-1]):  # it joins nothing
            kept.pop()
        kept.append(ch)
    return "".join(kept)


def _can_change(before: str, ch: str) -> bool:
    """Whether a joiner or selector has a meaning behind the character `before`."""
    if _JOINER.match(ch):
        return not before.isascii() and not before.isspace() and not _JOINER.match(before)
    return (not before.isascii() or before in "#*0123456789") and not before.isspace() and not _INVISIBLE.match(before)
