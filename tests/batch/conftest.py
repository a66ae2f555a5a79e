"""What tests of batches share."""

from __future__ import annotations

import sys

import fake_generator
import pytest


@pytest.fixture
def generator(monkeypatch, tmp_path):
    """Batches of this process make their videos with the fake generator; yields the list of what was begun."""
    log = tmp_path / "begun"
    for name, module in fake_generator.modules(log).items():
        monkeypatch.setitem(sys.modules, name, module)
    return lambda: log.read_text().splitlines() if log.exists() else []
