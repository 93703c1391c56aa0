"""SIGTERM, which schedulers send before they kill: the work in progress is finished, then the process ends.

The command line listens (`listening`); a library does not touch the signals of its caller. In `listening`,
a SIGTERM raises `Terminated`, so that `finally` clauses run and no unfinished file is left: at once, or,
within `finishing`, at the end of that block. Outside `listening`, `finishing` does nothing.
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
    """SIGTERM arrived. This is no `Exception`, so that no handler takes it for an error and continues."""

    def __init__(self) -> None:
        super().__init__(STATUS)


_arrived = False  # stays so until nobody listens: an exception may be swallowed on its way, as in __del__
_blocks = 0  # of `finishing`, one in another


@contextmanager
def listening(*signals: signal.Signals) -> Iterator[None]:
    """Let SIGTERM, or other `signals`, raise `Terminated` in this block.

    Python delivers signals to the main thread; in other threads this does nothing.
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
    """Defer a SIGTERM until this block, and every one around it, ends.

    If the block ends with an exception, this exception is raised, and `Terminated` only where the next such
    block begins.

    Raises:
        Terminated: a SIGTERM has arrived within `listening`.
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
    """Return whether a SIGTERM waits for the end of `finishing`."""
    return _arrived


def _handle(number: int, frame: Any) -> None:
    global _arrived
    if not _arrived:  # a second signal would interrupt the cleanup that the first one started
        _arrived = True
        _raise_if_due()


def _raise_if_due() -> None:
    if _arrived and not _blocks:
        raise Terminated


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
