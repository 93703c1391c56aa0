"""Write files and folders atomically, lock folders so that one process writes at a time, and read JSON that
may be damaged. A *note* is a small JSON file for people and later runs to read."""

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import xxhash
from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.io.launch import writes

_HALF = ".writing-"
"""The prefix of names of unfinished files and folders."""


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of another name in the same folder, then rename it to `path`.

    An existing file at `path` stays until then, also when `write` fails.

    Raises:
        InputError: the folder or the file cannot be written.
    """
    path = Path(path)
    with explaining_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept: some writers choose the format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_HALF, suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` make a folder of another name beside `folder`, then rename it to `folder`.

    Raises:
        InputError: the folder cannot be written.
    """
    with explaining_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_HALF) as temporary:
            whole = Path(temporary) / folder.name
            fill(whole)
            for weights in whole.rglob("*.safetensors"):
                weights.chmod(0o644)  # safetensors makes it unreadable to others
            whole.replace(folder)


def check_free(folder: Path) -> None:
    """Raise `InputError` unless `write_folder` could make a folder without overwriting anything."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose a folder for the model.")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is not empty: choose another folder for the model.")
    with explaining_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder.parent).cleanup()


@contextmanager
def explaining_write_errors(path: Path) -> Iterator[None]:
    """Turn system errors in this context, in which `path` is written, into `InputError`; such as that of a
    full disk. Nothing is opened or written here."""
    try:
        yield
    except FileExistsError as error:
        raise InputError(f"cannot write {path}: {path.parent} is a file, not a folder.") from error
    except Exception as error:
        if (refused := _refused(error)) is None:
            raise
        raise InputError(f"cannot write {path}: {refused}.") from error


def _refused(error: Exception) -> str | None:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(r"\(os error (\d+)\)", str(error))  # from a library in Rust, such as safetensors
    return os.strerror(int(found[1])) if found else None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_note(path: Path, content: Any) -> None:
    """Write a note, atomically."""
    write_text(path, json.dumps(content, indent=1))


def read_note(path: Path, of: Any = dict[str, Any], way_out: str = "delete it to go on without it") -> Any:
    """Read a note and check that it has the type `of`; return None if there is no such file.

    Raises:
        InputError: it is damaged or has another type; the message names the `way_out`.
    """
    try:
        return TypeAdapter(of).validate_python(from_json(path.read_text(encoding="utf-8")), strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {way_out}.") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; the same tensors and metadata give the same bytes."""
    save_file(dict(tensors), path, dict(metadata))
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        # The library writes it in random order.
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length))


def from_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is not JSON, is nested deeper than Python can follow, or has a key twice, of
            which one would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict; raise `ValueError` if a key is there twice. This is an `object_pairs_hook` for JSON."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def digest(weight: Tensor) -> str:
    """Return the 128-bit XXH3, in hexadecimal, of a tensor's shape, dtype and bytes."""
    t = weight.detach().cpu().contiguous()
    checksum = xxhash.xxh3_128(f"{tuple(t.shape)} {t.dtype}".encode())
    for part in t if t.ndim > 2 else [t]:  # one expert at a time, which may be on disk
        checksum.update(part.reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder, so that no other process writes to it. A missing folder is created, and removed again
    if the block fails and leaves it empty. Unfinished files of a process that was killed are removed.

    The lock is the operating system's, which releases it whenever the process ends. A process may take it
    repeatedly. The ranks of a distributed job count as one writer, for which the first holds the lock.

    Raises:
        InputError: another process writes to the folder, or it is not writable.
    """
    if not writes():
        yield
        return
    made: list[Path] = []
    try:
        made += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror or error}): choose another folder."
        ) from error
    try:
        with locked(folder / ".lock", of=folder):
            for half in folder.glob(f"{_HALF}????????*"):  # as tempfile names them
                shutil.rmtree(half) if half.is_dir() else half.unlink()
            yield
    except BaseException:
        with suppress(OSError):  # it is not empty
            for path in made:
                path.rmdir()
        raise


@contextmanager
def locked(file: Path, *, of: Path | None = None, wait: bool = False) -> Iterator[None]:
    """Hold a lock on a file, which is removed afterwards; its folder is created if it is missing.

    Raises:
        InputError: another process holds the lock and this one does not `wait`; the message names `of`,
            what the lock protects. Or the system refuses the lock.
    """
    with explaining_write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    # One lock per file and process, for all threads, so that a process may take it again; and writable by
    # all users, so that the file that a killed process leaves does not block others.
    lock = FileLock(file.absolute(), mode=0o666, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=-1 if wait else 0.3)  # `is_held` in another process holds it for a moment
    except Timeout:
        raise InputError(
            f"{of or file} is being written by {_holder(file)}: wait for it, or choose another folder."
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot take the lock {file} ({error.strerror or error}): if no other user is writing there, "
            "delete it, or choose another folder."
        ) from error
    try:
        if lock.lock_counter == 1:
            note = {"process": os.getpid(), "host": socket.gethostname(), "since": _now()}
            with suppress(OSError):  # the note only improves a message
                file.write_text(json.dumps(note), encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                file.unlink()  # while it is held, so that whoever waits for it takes a new file
        lock.release()


def is_held(file: Path) -> bool:
    """Return whether a process holds the lock on a file; the file's existence alone does not say so."""
    if not file.exists():
        return False
    try:
        with locked(file):
            return False
    except InputError:
        return True


def _holder(file: Path) -> str:
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        return f"process {note['process']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="seconds")
