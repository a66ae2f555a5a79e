"""Where the files that come with fpsgen lie. A leaf: imports nothing of ours.

In an installed wheel `weights/` and `prompts/` are inside the package; in a checkout they stand beside it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def weights_dir() -> Path:
    """Folder of registry.toml, the schedules and the embedded model."""
    return _folder("weights")


def figures_dir() -> Path:
    """Folder of the measured rows that estimates are taken from."""
    return _folder("figures")


def prompts_dir() -> Path:
    """Folder of the sample prompt files."""
    return _folder("prompts")
