"""What is around a run: folders that are gone or locked, names and streams that do not work. One sentence
each; and what is finished is finished, whoever listens."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.cli_inputs import save_inputs
from helpers.command_line import refused, run
from helpers.folders import contents
from helpers.processes import Started, environment

from ecstruct.cli import main
from ecstruct.errors import InputError
from ecstruct.io.files import locked

PYTHON = (sys.executable, "-m", "ecstruct")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def process(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(), **options}
    return subprocess.run(
        [word if isinstance(word, bytes) else str(word) for word in words],
        timeout=120,
        check=False,
        text=True,
        **options,
    )


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, (done.returncode, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(".")
    return line


def show(inputs: Path) -> tuple[Any, ...]:
    return (*PYTHON, "facts", "show", inputs / "prompts.jsonl")


def tune(inputs: Path, out: Path) -> tuple[Any, ...]:
    words = ("--model", inputs / "model", "--facts", inputs / "prompts.jsonl", "--lr", 0.01, "--epochs", 1)
    return ("finetune", *words, "--out", out)


def test_a_working_directory_that_is_gone(inputs: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = f'cd "{gone}" && rmdir "{gone}" && exec "$@"'
    done = process("sh", "-c", shell, "sh", *show(inputs))
    assert sentence(done) == (
        "error: the working directory cannot be used (No such file or directory): change to another one."
    )


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    done = process(*PYTHON, "demo", "--out", os.fsencode(tmp_path) + b"/caf\xe9")
    assert sentence(done).endswith(
        "/caf\\udce9 is not in UTF-8, as names of files have to be here: rename it."
    )
    assert contents(tmp_path) == []


def test_python_without_docstrings() -> None:
    done = process(sys.executable, "-OO", "-m", "ecstruct", "doctor")
    assert "python -OO removes texts that transformers reads" in sentence(done)


def test_a_finished_run_is_finished_though_nobody_can_read_what_it_says(
    inputs: Path, tmp_path: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        done = process(*PYTHON, *tune(inputs, tmp_path / "out"), stdout=full, stderr=full)
    assert done.returncode == 0
    assert "config.json" in contents(tmp_path / "out") and not (tmp_path / "out" / "checkpoint").exists()


class Failing:
    """A stream that the system refuses to write to."""

    encoding, errors = "utf-8", "strict"

    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, text: str) -> int:
        raise OSError(self._number, os.strerror(self._number))

    flush = isatty = fileno = lambda self: self.write("")


@pytest.mark.parametrize("stream", [None, Failing(errno.ENOSPC), Failing(errno.EPIPE), Failing(errno.EIO)])
def test_streams_that_are_closed_or_full(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Any, capfd: Any
) -> None:
    """Of commands that print what they are for, it is a fault, but that the reader has seen enough."""
    monkeypatch.setattr(sys, "stdout", stream)
    codes = []
    for words in (["facts", "show"], ["facts", "show", "--out", tmp_path / "out"]):
        monkeypatch.setattr(sys, "argv", ["ecstruct", *map(str, words), str(inputs / "prompts.jsonl")])
        with pytest.raises(SystemExit) as ended:
            main()
        codes.append(ended.value.code)
    pipe = isinstance(stream, Failing) and stream._number == errno.EPIPE
    assert codes == [0 if pipe else 2, 0]
    said = capfd.readouterr().err
    assert said.startswith("error: cannot write to standard output: ") is not pipe
    assert contents(tmp_path / "out") == ["facts.jsonl"]


def test_a_stream_that_is_full_at_the_end(inputs: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = process(*show(inputs), stdout=full)
    assert sentence(done) == "error: cannot write to standard output: No space left on device."


def unprivileged(*words: str) -> None:
    """Run a command as somebody who may not do what files forbid, though it be root."""
    if os.geteuid() == 0:
        no_capabilities = (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), no_capabilities) == 0
    sys.argv = ["ecstruct", *words]
    main()


def test_folders_that_one_may_not_enter(inputs: Path, tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shutil.copytree(inputs / "model", shut / "model")
    shut.chmod(0)
    words = ("--facts", inputs / "prompts.jsonl", "--lr", 1)
    try:
        for model, out in ((shut / "model", tmp_path / "out"), (inputs / "model", shut / "out")):
            given = ("finetune", "--model", model, *words, "--out", out)
            line = sentence(Started(unprivileged, *map(str, given)).ended())
            assert "Permission denied" in line and str(shut) in line
    finally:
        shut.chmod(0o700)
    assert contents(tmp_path / "shut") == sorted(f"model/{name}" for name in contents(inputs / "model"))


def denied(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/shut/model")


@pytest.mark.usefixtures("offline")
def test_what_the_system_refuses_anywhere_is_a_sentence(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecstruct.runs.training.load", denied)
    line = refused(run(*tune(inputs, tmp_path / "out")))
    assert line == "error: cannot use /shut/model (Permission denied): choose another."


def test_a_lock_that_another_user_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of today may be taken by all who can write to the folder; those of before are told."""
    umask = os.umask(0o077)
    try:
        with locked(tmp_path / ".lock"):
            assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(umask)
    (tmp_path / ".lock").write_text("{}")
    monkeypatch.setattr("filelock._unix.os.open", denied)
    told = r"^cannot take the lock .*\.lock \(Permission denied\): if no other user is writing there"
    with pytest.raises(InputError, match=told), locked(tmp_path / ".lock"):
        pass


@pytest.mark.usefixtures("offline")
def test_a_folder_in_the_place_of_a_lock(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".lock").mkdir(parents=True)
    refused(run(*tune(inputs, tmp_path / "out")), r"cannot take the lock .*\.lock \(Is a directory\)")
