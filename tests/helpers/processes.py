"""Starting several processes of one command, as a user does with torchrun."""

import os
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


def launch(n: int, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun(n, *command), env=environment(), capture_output=True, text=True, timeout=timeout
    )
