"""What people see of an error: two lines and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fpsgen.errors import FpsgenError


@contextmanager
def refuses(code: int, *words: str, remedy: str = "") -> Iterator[pytest.ExceptionInfo[FpsgenError]]:
    """The block ends in an FpsgenError of this code, with these words in its first line and `remedy` in its second."""
    with pytest.raises(FpsgenError) as caught:
        yield caught
    error = caught.value
    assert error.code == code and error.remedy and (error.message + error.remedy).isprintable(), error
    assert all(word in error.message for word in words) and remedy in error.remedy, error


def refused(call: Callable[[], object], code: int, *words: str, remedy: str = "") -> FpsgenError:
    """The error of a call that is refused so."""
    with refuses(code, *words, remedy=remedy) as caught:
        call()
    return caught.value
