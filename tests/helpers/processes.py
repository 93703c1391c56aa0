"""Several processes of one command, started as with torchrun, or of a script, which starts faster."""

import importlib
import os
import runpy
import subprocess
import sys
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
