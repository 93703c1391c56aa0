"""Writing files so that there is never half a file: to a temporary name beside the target, then renamed."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ecstruct.errors import InputError


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of another name in the same folder, then rename it to `path`.

    Whatever was at `path` stays until then, also when `write` fails.

    Raises:
        InputError: the folder or the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept: some writers choose the format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError as error:
        raise InputError(f"cannot write {path}: {path.parent} is a file, not a folder.") from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
