"""Several processes of one command, started as with torchrun, or of a script, which starts faster."""

import importlib
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Return an environment with one thread, no GPU, no network, and the tests' modules importable."""
    # An empty part would be the working directory, which one test removes.
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **settings, "PYTHONPATH": path}


def torchrun(n: int, *command: str) -> list[str]:
    """Return the command line that starts `command` (a script or `-m` and a module, arguments) n times."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    return [sys.executable, *run, *command]


def forked(n: int, script: str, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script in n ranks. Torch's own launcher forks them from a process that has imported everything,
    on which ranks of torchrun spend most of their time."""
    command = [sys.executable, "-m", "helpers.processes", str(n), script, *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout)


def _rank(script: str, *words: str) -> None:
    sys.argv = [script, *words]
    try:
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


def launch(n: int, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun(n, *command), env=environment(), capture_output=True, text=True, timeout=timeout
    )


if __name__ == "__main__":
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for each in ("ecstruct.cli", "helpers.tiny"):
        importlib.import_module(each)
    config = LaunchConfig(
        1, 1, int(sys.argv[1]), run_id="tests", rdzv_endpoint="localhost:0", rdzv_backend="c10d"
    )
    config.max_restarts, config.start_method = 0, "fork"
    elastic_launch(config, _rank)(*sys.argv[2:])
