"""The command line as tests call it, and its message when it refuses something."""

import os
import re
import subprocess
import sys
from typing import Any

from typer.testing import CliRunner, Result

from ecstruct.cli import app


def run(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def works(*words: Any) -> Result:
    result = run(*words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def process(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with the network off."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ecstruct", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False, **options
    )


def refused(result: Result) -> str:
    """Return the one sentence on stderr."""
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    line = lines[0]
    assert line.startswith("error: ") and line.endswith("."), line
    assert "Traceback" not in line and "Error" not in line and "  " not in line, line
    assert result.stdout == ""
    return line


def assert_refused(result: Result, message: str) -> None:
    line = refused(result)
    assert re.search(message, line), line
