"""Threads that share one patched transformer: each gets the video that it gets alone, and its own report."""

from __future__ import annotations

import threading

import pytest
import torch
import wan_cases as case
from diffusers import UniPCMultistepScheduler, WanPipeline
from tiny import tiny_transformer

from fpsgen import apply
from fpsgen.models.patch import forward_state
from fpsgen.models.wan.load import load


def in_threads(*calls) -> list:
    """Results of the calls, made at the same time. An exception in one of them is raised."""
    results: list = [None] * len(calls)

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class Meeting:
    """Makes forwards meet: `threads` of them have chosen their plans before any of them goes on, `forwards` times."""

    def __init__(self) -> None:
        self.barrier, self.left = None, threading.local()

    def begin(self, threads: int, forwards: int) -> None:
        self.barrier, self.forwards = threading.Barrier(threads), forwards

    def wait(self) -> None:
        done = getattr(self.left, "done", 0)
        if self.barrier is not None and done < self.forwards:
            self.left.done = done + 1
            self.barrier.wait(timeout=60)


@pytest.fixture(autouse=True)
def meeting(monkeypatch) -> Meeting:
    """Installed before anything is patched: a hook keeps the methods that it had when it was registered."""
    meeting, right = Meeting(), forward_state.ForwardHook.pre_forward

    def pre_forward(self, module, *args, **kwargs):
        chosen = right(self, module, *args, **kwargs)
        meeting.wait()
        return chosen

    monkeypatch.setattr(forward_state.ForwardHook, "pre_forward", pre_forward)
    return meeting


def twin(pipe: WanPipeline) -> WanPipeline:
    """A second pipeline on the same models, with a scheduler of its own."""
    parts = {name: part for name, part in pipe.components.items() if name != "scheduler"}
    other = WanPipeline(**parts, scheduler=UniPCMultistepScheduler.from_config(pipe.scheduler.config))
    other.set_progress_bar_config(disable=True)
    return other


def test_two_pipelines_on_one_transformer(tiny_dir, meeting):
    """Different sizes, steps and, at most times, different profiles: forwards of both are always under way at once."""
    first = load(tiny_dir)
    second = twin(first)
    handle = apply(first, case.mixed(case.SPARSE, case.FP8, case.OTHER, dense_layers=(0,)))

    def small():
        return case.video(second, steps=5, height=64, width=96)

    def large():
        return case.video(first, steps=5)

    alone = [large(), small()]
    meeting.begin(threads=2, forwards=10)
    for ours, expected in zip(in_threads(large, small), alone, strict=True):
        assert torch.equal(ours, expected)
    assert not handle.report()["fallbacks"]


def test_each_thread_has_its_own_report(tiny_dir, meeting):
    first = load(tiny_dir)
    second = twin(first)
    handle = apply(first, case.one(case.SPARSE))

    def one():
        case.video(first, steps=3)
        return handle.report()

    def other():
        case.video(second, steps=2, guidance=1.0, height=64, width=96)
        return handle.report()

    meeting.begin(threads=2, forwards=2)
    reports = in_threads(one, other)
    assert [len(report["steps"]) for report in reports] == [3, 2]
    assert [report["kernels"] for report in reports] == [{"cpu": 12}, {"cpu": 4}]
    assert [report["grid"] for report in reports] == [[5, 6, 7], [5, 4, 6]]
    assert handle.report() in reports  # a thread that ran nothing sees the latest of the others


def test_what_a_pipeline_tells_reaches_its_thread_alone():
    """Both threads are within cache_context before either calls the transformer."""
    torch.manual_seed(0)
    transformer = tiny_transformer()
    handle = apply(transformer, case.mixed(case.SPARSE, case.OTHER))
    barrier = threading.Barrier(2)

    def sigma_in_context(sigma):
        with transformer.cache_context("cond", step_index=0, sigma=sigma, num_inference_steps=1):
            barrier.wait(timeout=60)
            case.forward(transformer)
            barrier.wait(timeout=60)
        return handle.report()["steps"][0]["sigma"]

    assert in_threads(lambda: sigma_in_context(0.9), lambda: sigma_in_context(0.1)) == [0.9, 0.1]


def test_a_noise_level_is_fixed_for_its_thread_alone(meeting):
    torch.manual_seed(0)
    transformer = tiny_transformer()
    handle = apply(transformer, case.mixed(case.SPARSE, case.OTHER))

    def at(sigma):
        with handle.fixed_sigma(sigma):
            return case.forward(transformer)

    alone = [at(0.9), at(0.1)]
    meeting.begin(threads=2, forwards=1)
    both = in_threads(lambda: at(0.9), lambda: at(0.1))
    assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True)) and not torch.equal(*both)


def test_the_meeting_shows_a_shared_state(meeting, monkeypatch):
    """Planted: the state of a forward kept on the run, as one attribute for all threads."""
    torch.manual_seed(0)
    transformer = tiny_transformer()
    handle = apply(transformer, case.mixed(case.SPARSE, case.OTHER))
    shared = type("Shared", (), {"forward": None, "fixed_sigma": None, "counted": None})()

    def at(timestep):
        return case.forward(transformer, timestep=torch.tensor([timestep, timestep]))

    alone = [at(900), at(100)]
    meeting.begin(threads=2, forwards=1)
    monkeypatch.setattr(handle._run, "of_thread", shared)
    try:
        both = in_threads(lambda: at(900), lambda: at(100))
    except AssertionError:
        return
    assert not all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))
