"""SIGTERM, which schedulers send before they kill: what is at work is finished, then the process ends.

The command line listens (`listening`); a library does not touch the signals of its caller. Where it
listens, a SIGTERM raises `Terminated`, so that `finally` clauses run and nothing half-written stays:
at once, or, within `finishing`, when that block is left. Where nobody listens, `finishing` does nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STATUS = 128 + signal.SIGTERM
"""The exit status of a process that SIGTERM ended: 143."""


class Terminated(SystemExit):
    """SIGTERM arrived. No `Exception`, so that nothing takes it for an error and goes on."""

    def __init__(self) -> None:
        super().__init__(STATUS)


_arrived = False  # stays so until nobody listens: an exception may be swallowed on its way, as in __del__
_blocks = 0  # of `finishing`, one in another


@contextmanager
def listening(*signals: signal.Signals) -> Iterator[None]:
    """SIGTERM, or other `signals`, raise `Terminated` in this block.

    Python hands signals to the main thread: in others, nothing changes.
    """
    global _arrived
    if not _in_main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in signals or (signal.SIGTERM,)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _arrived = False


@contextmanager
def finishing() -> Iterator[None]:
    """Let a SIGTERM wait until this block, and every one around it, is left.

    A block that an exception leaves raises that; the SIGTERM is then raised where the next one begins.

    Raises:
        Terminated: a SIGTERM has arrived, and somebody listens.
    """
    global _blocks
    if not _in_main_thread():
        yield
        return
    _raise_if_due()
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1
    _raise_if_due()


def arrived() -> bool:
    """Whether a SIGTERM waits for the end of `finishing`."""
    return _arrived


def _handle(number: int, frame: Any) -> None:
    global _arrived
    if not _arrived:  # a second one would interrupt what the first one made run
        _arrived = True
        _raise_if_due()


def _raise_if_due() -> None:
    if _arrived and not _blocks:
        raise Terminated


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
