"""A hub of our own, and a Hugging Face cache in a folder that is looked through afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub import NAME, Hub, serving


@pytest.fixture
def hub(tiny_dir, tmp_path, monkeypatch):
    """The tiny model, served; huggingface_hub's settings point there and to tmp_path/home/hub."""
    from huggingface_hub import constants

    folder = Path(shutil.copytree(tiny_dir, tmp_path / "served"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("fpsgen.models.catalog.pull._PAUSE", 0.0)
    with serving(Hub()) as hub:
        hub.repositories[NAME] = folder
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        yield hub
