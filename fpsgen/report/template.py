"""Pages from templates. They fetch nothing: pictures and videos are inside."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.files import read_bytes
from fpsgen.text import show

VIDEO_LIMIT = 256 << 20  # bytes


def fill(template: str, /, **values: Any) -> str:
    """The page of a template in this folder; values are escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=loader)
    return pages.get_template(template).render(**values)


def embedded(path: Path) -> str:
    """An MP4 as base64, for a data: URL. Raises FpsgenError BAD_INPUT for another file: what it holds would go out with
    the page.
    """
    data = read_bytes(path, VIDEO_LIMIT, f"the video {show(path)}")
    if data[4:8] != b"ftyp":
        raise FpsgenError(f"a row names {show(path)} as its video, which is no MP4", "mend the row", BAD_INPUT)
    return base64.b64encode(data).decode()
