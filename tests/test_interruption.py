"""SIGTERM: held back while something is finished, then raised; nobody's business where nobody listens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from ecstruct.io.interruption import STATUS, Terminated, finishing, listening


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.raise_signal(signal.SIGCONT)  # the interpreter has handled what was pending


def test_it_is_raised_at_once_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []
    with pytest.raises(Terminated) as raised, listening():
        assert signal.getsignal(signal.SIGTERM) != before
        try:
            terminate()
            pytest.fail("nothing was raised")
        finally:
            cleaned.append(True)
    assert cleaned and raised.value.code == STATUS == 143
    assert signal.getsignal(signal.SIGTERM) == before
    with finishing():  # and it is over
        pass


def test_a_block_is_finished_first_and_so_are_those_around_it() -> None:
    done = []
    with pytest.raises(Terminated), listening():
        with finishing():
            with finishing():
                terminate()
                done.append("inner")
            done.append("outer")
        done.append("after")
    assert done == ["inner", "outer"]


def test_a_second_one_does_not_interrupt_what_the_first_made_run() -> None:
    cleaned = []
    with pytest.raises(Terminated), listening():
        try:
            terminate()
        finally:
            terminate()
            cleaned.append(True)
    assert cleaned


def test_an_error_is_told_and_the_next_block_does_not_begin() -> None:
    with listening():
        with pytest.raises(ValueError, match="the error"), finishing():
            terminate()
            raise ValueError("the error")
        with pytest.raises(Terminated), finishing():
            pytest.fail("it began")


def test_one_that_was_swallowed_is_raised_at_the_next_block() -> None:
    with listening():
        with suppress(Terminated):  # as exceptions in __del__ are
            terminate()
        with pytest.raises(Terminated), finishing():
            pytest.fail("it began")


def test_other_signals_can_mean_the_same() -> None:
    with pytest.raises(Terminated), listening(signal.SIGTERM, signal.SIGUSR2):
        signal.raise_signal(signal.SIGUSR2)
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_other_threads_do_not_hold_it_back() -> None:
    inside, leave = threading.Event(), threading.Event()
    handlers = []

    def work() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with listening(), finishing():
            handlers.append(signal.getsignal(signal.SIGTERM) == before)
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(Terminated), listening():
            terminate()
    finally:
        leave.set()
        thread.join()
    assert handlers == [True]


def test_without_a_listener_the_signal_is_the_callers() -> None:
    code = """
import os, signal, time
from ecstruct.io.interruption import finishing
with finishing():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert ended.returncode == -signal.SIGTERM
