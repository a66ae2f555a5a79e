"""Pages from templates. They fetch nothing: pictures and videos are inside."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def fill(name: str, **values: Any) -> str:
    """The page of a template in this folder; values are escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    return (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=loader)
        .get_template(name)
        .render(**values)
    )


def embedded(path: Path) -> str:
    """A file as base64, for a data: URL."""
    return base64.b64encode(path.read_bytes()).decode()
