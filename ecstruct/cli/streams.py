"""Standard output and error that may be closed, or lead to a disk that is full, while a run goes on."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Stream:
    """A stream to which a run may write whatever becomes of it. `lost` says why not all of it arrived."""

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
def enduring() -> Iterator[None]:
    """Standard output and error endure all in this block."""
    before: Any = (sys.stdout, sys.stderr)
    new: Any = (Stream(sys.stdout), Stream(sys.stderr))
    sys.stdout, sys.stderr = new
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def lost() -> str:
    """Why not all that was written to standard output arrived, if so."""
    return sys.stdout.lost if isinstance(sys.stdout, Stream) else ""
