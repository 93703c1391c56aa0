"""Processes of their own for commands and for ranks of a script. They are forked from one process that has
imported everything, which saves each of them seconds."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Return an environment with one thread, no GPU, no network, and the tests' modules importable."""
    # An empty part would be the working directory, which one test removes.
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **settings, "PYTHONPATH": path}


class Started:
    """A process that calls `main(*words)`. Its output goes to files, as it may be longer than a pipe."""

    def __init__(self, main: Callable[..., None], *words: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ("out", "err")]
        self._process = _server().Process(target=_call, args=(self._streams, main, words))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def running(self) -> bool:
        return self._process.is_alive()

    def said(self) -> str:
        """Return what it has written to standard error until now."""
        return self._streams[1].read_text() if self._streams[1].exists() else ""

    def ended(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait until it ends; kill it if it does not."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"it ran for more than {timeout} seconds: {self.said()}")
        status = self._process.exitcode
        assert status is not None
        out, err = (stream.read_text() for stream in self._streams)
        self._folder.cleanup()
        return subprocess.CompletedProcess([], status, out, err)


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ecstruct.cli", "helpers.tiny"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


def _call(streams: list[Path], main: Callable[..., None], words: tuple[Any, ...]) -> None:
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below nohup or &
    main(*words)


def command(*words: object) -> Started:
    """Start `ecstruct` with these words."""
    return Started(_command, *map(str, words))


def _command(*words: str) -> None:
    from ecstruct.cli import main

    sys.argv = ["ecstruct", *words]
    main()


def torchrun(n: int, *words: str) -> Started:
    """Start the command that `words` are in n ranks, by torchrun itself: ranks are no forks."""
    from torch.distributed.run import main

    return Started(main, ["--standalone", "--nproc-per-node", str(n), *words])


def launched(n: int, script: str, *words: str) -> Started:
    """Start a script, or the command `ecstruct`, in n ranks, which torch's own launcher forks."""
    return Started(_launch, n, script, *words)


def forked(n: int, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script in n ranks, as `launched` does."""
    return launched(n, script, *words).ended()


def _launch(n: int, *words: str) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(1, 1, n, run_id="tests", rdzv_endpoint="localhost:0", rdzv_backend="c10d")
    config.max_restarts, config.start_method = 0, "fork"
    elastic_launch(config, _rank)(*words)


def _rank(script: str, *words: str) -> None:
    sys.argv = [script, *words]
    try:
        if script == "ecstruct":
            _command(*words)
        else:
            runpy.run_path(script, None, "__main__")
    except SystemExit as end:  # as commands end
        if end.code:
            raise


_HOLD = """
import sys, time
from pathlib import Path
from ecstruct.io.files import locked
lock = Path(sys.argv[1])
with locked(lock):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    exec(sys.argv[3])
"""


@contextmanager
def holding(lock: Path, seconds: float = 60, then: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the lock on a file for some seconds, and runs a statement `then`; it
    is killed at the end, unless it has ended."""
    command = [sys.executable, "-c", _HOLD, str(lock), str(seconds), then]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()
