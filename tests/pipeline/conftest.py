"""A request of which a video can be made in a second."""

from __future__ import annotations

import pytest

from fpsgen.pipeline.plan import plan
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.settings.gather import Settings


@pytest.fixture
def request_for(tmp_path, tiny_dir, monkeypatch):
    """A request for a video of the tiny model, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(**changes) -> GenerateRequest:
        asked = {"res": (64, 48), "frames": 5, "fps": 8, "steps": 3, "guidance": 2.0, "seed": 7} | changes
        return plan("a cat surfing", Settings({"model": str(tiny_dir), **asked})).request

    return make
