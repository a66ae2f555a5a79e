"""Ctrl-C and SIGTERM end the work, at the latest at the next step. A leaf: imports nothing of ours.

The handler raises at once and keeps what it received. An exception that is raised inside a callback may be swallowed
by a library; so every step and every job calls `check_stop`, which raises again.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
_WORKER = "fpsgen-interruptible"


class Terminated(BaseException):
    """SIGTERM arrived."""


class StopHandler:
    """A signal handler that raises, and remembers that it did. received: the signal's number, or None."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt or Terminated if a signal has arrived."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise Terminated


@contextmanager
def stoppable() -> Iterator[StopHandler]:
    """SIGINT and SIGTERM end the block by KeyboardInterrupt or Terminated; the handlers of before are put back.

    A signal that is ignored (as in nohup) stays ignored. Outside the main thread nothing is installed. Where Python
    drops the exception, because it was raised in a destructor, nothing is printed: the next step raises again.
    """
    handler = StopHandler()
    before = {}
    print_unraisable = sys.unraisablehook

    def unraisable(found: sys.UnraisableHookArgs) -> None:
        if not isinstance(found.exc_value, KeyboardInterrupt | Terminated):
            print_unraisable(found)

    sys.unraisablehook = unraisable
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield handler
    finally:
        sys.unraisablehook = print_unraisable
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def interruptible(work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread: signals are heard while a library computes and holds the interpreter.

    Where a signal ends the wait, the thread computes on until the process ends, see `unfinished`.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # raised again in the waiting thread
            failed.append(error)

    thread = threading.Thread(target=run, name=_WORKER, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if failed:
        raise failed[0]
    return done[0]


def unfinished() -> bool:
    """Whether a thread of `interruptible` still computes: the process must then end without waiting for it."""
    return any(thread.name == _WORKER for thread in threading.enumerate())


def check_stop() -> None:
    """Raise again if a signal has arrived within a `stoppable` block. Every step and job calls this."""
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if isinstance(handler, StopHandler):
            handler.check()
