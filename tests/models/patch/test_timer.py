"""The timer: on for its block alone, by component, on the device of the tensors."""

from __future__ import annotations

import threading

import pytest
import torch
import wan_cases as case

from fpsgen import apply
from fpsgen.models.patch.timer import Timer

CPU = torch.device("cpu")


def test_every_attention_call_is_measured_and_none_after_the_block(transformer):
    handle = apply(transformer, case.one(case.SPARSE))
    case.forward(transformer)
    with handle.timer() as timer:
        case.forward(transformer)
        assert timer.calls() == 3 and timer.seconds() > 0
    before = timer.seconds()
    case.forward(transformer)
    assert (timer.calls(), timer.seconds()) == (3, before)


def test_timers_nest(transformer):
    handle = apply(transformer, case.one(case.SPARSE))
    with handle.timer() as outer:
        with pytest.raises(KeyError), handle.timer() as inner:
            case.forward(transformer)
            raise KeyError
        case.forward(transformer)
    assert (outer.calls(), inner.calls()) == (3, 3)


def test_nothing_measured_is_none(transformer):
    with apply(transformer, case.one(case.SPARSE)).timer() as timer:
        assert timer.seconds() is None and timer.calls() == 0


def test_components_are_apart():
    timer = Timer()
    with timer.measure("attention", CPU), timer.measure("linear", CPU):
        pass
    with timer.measure("linear", CPU):
        pass
    assert (timer.calls("attention"), timer.calls("linear"), timer.calls("norm")) == (1, 2, 0)
    assert timer.seconds("norm") is None and timer.seconds("linear") >= 0


def test_threads_may_share_a_timer():
    timer = Timer()

    def work():
        for _ in range(200):
            with timer.measure("attention", CPU):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert timer.calls() == 800


def test_events_are_recorded_on_the_stream_of_the_tensors_device(monkeypatch):
    """Device 0 is the current one; the call runs on device 1."""
    recorded = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream=None):
            recorded.append(stream)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 2000.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    timer = Timer()
    with timer.measure("attention", torch.device("cuda:1")):
        pass
    assert recorded == ["stream of cuda:1"] * 2
    assert timer.seconds() == 2.0 == timer.seconds() and timer.calls() == 1
