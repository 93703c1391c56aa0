"""The command line as tests call it in their own process, and what it says when it refuses."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import typer.testing
from typer.testing import CliRunner, Result

from ecstruct.cli import app
from ecstruct.errors import InputError

testing: Any = typer.testing
testing._get_command = cache(testing._get_command)  # it takes longer than most commands


def run(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def works(*words: Any) -> Result:
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return result


def refused(what: Result | Callable[[], object], *parts: str) -> str:
    """Check that a command, or a call, ends with one sentence that has all `parts` (texts or regular
    expressions), and return the sentence."""
    if isinstance(what, Result):
        assert what.exit_code == 2, (what.output, what.exception)
        assert what.stdout == "" and what.stderr.startswith("error: "), (what.stdout, what.stderr)
        line = what.stderr.removesuffix("\n")
        assert "Error" not in line, line
    else:
        with pytest.raises(InputError) as raised:
            what()
        line = str(raised.value)
    assert line.endswith(".") and "\n" not in line and "  " not in line, line
    assert "Traceback" not in line, line
    for part in parts:
        assert part in line or re.search(part, line), (part, line)
    return line
