"""What a disk refuses, for real: a file that does not fit, without a full disk, and one that is another user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes meanwhile: EFBIG, as a full disk gives ENOSPC."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_permission(path: Path) -> Iterator[None]:
    """Nobody may read it meanwhile; root, who may read anything, is another user."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs users and modes")
    root, mode = os.geteuid() == 0, path.stat().st_mode
    path.chmod(0)
    try:
        if root:
            os.setresuid(65534, 65534, 0)
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        path.chmod(mode)
