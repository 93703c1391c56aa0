"""Let a run go on when standard output or error cannot be written: closed, or on a disk that is full."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Stream:
    """A stream that never raises an error when a run writes to it. `lost` says why some of the text could
    not be written, and is "" if all was."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = io.StringIO() if stream is None else stream
        self.lost = os.strerror(errno.EBADF) if stream is None else ""

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        if error.errno != errno.EPIPE:  # who reads has seen enough
            self.lost = error.strerror or str(error)
        # What waits to be written would make the interpreter fail when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):
            os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def surviving_output_errors() -> Iterator[None]:
    """Replace standard output and error by a `Stream` each in this context."""
    before: Any = (sys.stdout, sys.stderr)
    new: Any = (Stream(sys.stdout), Stream(sys.stderr))
    sys.stdout, sys.stderr = new
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def lost() -> str:
    """Return why some of the text for standard output could not be written; "" if all was."""
    return sys.stdout.lost if isinstance(sys.stdout, Stream) else ""
