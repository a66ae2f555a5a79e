"""Signals end the work at the next step at the latest, whoever swallows the first exception; handlers are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fpsgen.cli.progress import Quiet
from fpsgen.pipeline.events import Timing
from fpsgen.signals import Terminated, check_stop, interruptible, stoppable

ROOT = Path(__file__).resolve().parent.parent
RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@pytest.mark.parametrize("sent", list(RAISED))
def test_what_is_swallowed_is_raised_again_at_the_next_step(sent):
    timing = Timing(Quiet())
    with pytest.raises(RAISED[sent]), stoppable() as stop:
        with suppress(BaseException):  # a library's callback that swallows everything
            os.kill(os.getpid(), sent)
        assert stop.received == sent
        timing.step(0, 3, "")
    with pytest.raises(RAISED[sent]), stoppable():
        with suppress(BaseException):
            os.kill(os.getpid(), sent)
        with timing.stage("vae"):
            pass


class Interrupted:
    """A signal arrives while it is taken apart, where Python prints an exception and drops it."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_a_destructor_drops_is_raised_at_the_next_step_and_not_printed(capfd):
    with pytest.raises(KeyboardInterrupt), stoppable():
        Interrupted()
        check_stop()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("sent", list(RAISED))
def test_handlers_are_put_back(sent):
    before, hook = signal.getsignal(sent), sys.unraisablehook
    with suppress(BaseException), stoppable():
        assert signal.getsignal(sent) != before
        os.kill(os.getpid(), sent)
    assert signal.getsignal(sent) == before and sys.unraisablehook is hook
    check_stop()  # outside a block nothing is left of it


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGINT)
            check_stop()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_may_use_it():
    failed = []

    def work():
        try:
            with stoppable():
                check_stop()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_interruptible_gives_results_and_errors():
    assert interruptible(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0)


def test_a_long_computation_of_a_library_is_not_waited_for():
    code = (
        "import os, time\n"
        "from fpsgen.signals import interruptible, stoppable, unfinished\n"
        "print('begun', flush=True)\n"
        "try:\n"
        "    with stoppable(): interruptible(lambda: time.sleep(60))\n"
        "except KeyboardInterrupt:\n"
        "    print('heard', unfinished(), flush=True)\n"
        "    os._exit(130)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout and run.stdout.readline() == "begun\n"
            time.sleep(0.5)
            run.send_signal(signal.SIGINT)
            assert run.wait(30) == 130 and run.stdout.read() == "heard True\n"
        finally:
            run.kill()
