"""Logs that are appended line by line outlive a kill in the middle of one."""

from __future__ import annotations

import errno
import os

import pytest
from refusal import refuses

from fpsgen.errors import BAD_INPUT, DISK, FpsgenError
from fpsgen.logs import append_line, read_objects


def test_a_log_survives_a_line_that_was_cut(tmp_path, monkeypatch):
    log = tmp_path / "log"
    append_line(log, "one")
    log.write_bytes(log.read_bytes()[:-2])  # the kill
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size) or real(fd))
    append_line(log, "two")
    assert log.read_text() == "on\ntwo\n" and synced == [log.stat().st_size]
    append_line(log, "three")
    assert log.read_text() == "on\ntwo\nthree\n"


def test_a_disk_that_fails_is_named(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FpsgenError, match=r"log.*full") as caught:
        append_line(tmp_path / "log", "x")
    assert caught.value.code == DISK


def test_whole_objects_are_read_and_nothing_else(tmp_path):
    log = tmp_path / "log"
    assert list(read_objects(log, 1000)) == []
    log.write_bytes(b'{"a": 1}\n\n[1]\n{"a": \xc3\n{"b": NaN}\r\n{"c": 3}\r\n{"d"')
    assert list(read_objects(log, 1000)) == [{"a": 1}, {"c": 3}]
    with refuses(BAD_INPUT):
        list(read_objects(log, 10))
