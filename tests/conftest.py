"""What all tests share: no network, a tiny model, and GPU tests that say why they are skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Settings of the machine that the tests run on: they change what commands print and do.
COLOURS = ("CLICOLOR_FORCE", "FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR", "PY_COLORS", "TTY_COMPATIBLE")
for name in [name for name in os.environ if name in COLOURS or name.startswith("FPSGEN_")]:
    del os.environ[name]
os.environ["COLUMNS"] = "80"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Tiny tensors gain nothing from threads, and lose a factor of 40 to their barriers on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Results of an operator that share memory are an error, as torch makes them where CI is set; elsewhere it only warns.
os.environ.setdefault("TORCHINDUCTOR_ERROR_ON_CUSTOM_OP_ALIASING", "1")

# A busy machine generates inputs slowly; that is no fault of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """Folder of a random WanPipeline: 2 layers, 2 heads of 12, 4 latent channels. Read it, do not change it."""
    from tiny import build_tiny_pipeline

    return build_tiny_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, without this machine's settings."""
    for name in [name for name in os.environ if name.startswith("FPSGEN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> None:
    """Stamps of checked files are kept in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
