"""What the bench commands take as text, judged before torch is imported."""

from __future__ import annotations

from pathlib import Path

from fpsgen.attention.methods import METHODS
from fpsgen.text import show

from fpsgen.errors import USAGE, FpsgenError

Size3 = tuple[int, int, int]
SHAPES = {"nano": (9, 10, 16), "480p": (21, 30, 52), "720p": (21, 45, 80)}  # tokens (T, H, W); 81 frames for Wan
MOST = 128  # heads, batch


def method_names(text: str) -> tuple[str, ...]:
    """The methods of --compare, by commas. Raises FpsgenError USAGE."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or any(name not in METHODS for name in names):
        raise FpsgenError(f"--compare {show(text)!r} names no method", f"choose from {', '.join(METHODS)}", USAGE)
    return names


def shares(text: str) -> list[float]:
    """Densities in (0, 1], by commas. Raises FpsgenError USAGE."""
    found = []
    for part in text.split(","):
        try:
            found.append(float(part) if part.strip().isascii() else 0.0)
        except ValueError:
            found.append(0.0)
    if not all(0 < value <= 1 for value in found):
        raise FpsgenError(f"--density {show(text)!r} is not a share", "for example --density 0.11,0.4", USAGE)
    return found


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers of 1 to 128, by commas. Raises FpsgenError USAGE."""
    parts = [part.strip() for part in text.split(",")]
    if not all(_whole(part) and 0 < int(part) <= MOST for part in parts):
        raise FpsgenError(f"{option} {show(text)!r} is no list of numbers", f"for example {option} 1,2", USAGE)
    return [int(part) for part in parts]


def grid(text: str, option: str = "--shape") -> Size3:
    """Tokens (T, H, W) of a named shape or TxHxW. Raises FpsgenError USAGE."""
    if text in SHAPES:
        return SHAPES[text]
    parts = text.lower().split("x")
    if len(parts) == 3 and all(_whole(part) and 0 < int(part) <= 4096 for part in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    raise FpsgenError(f"{option} {show(text)!r} is not known", f"choose from {', '.join(SHAPES)} or TxHxW", USAGE)


def new_folder(output: str, names: tuple[str, ...]) -> Path:
    """Where this bench's page and MP4s go: a folder of its own under `output`, numbered from 1."""
    stem, number = "-".join(dict.fromkeys([*names, "fps"])), 1
    while (Path(output) / f"{stem}-{number}").exists():
        number += 1
    return Path(output) / f"{stem}-{number}"


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
