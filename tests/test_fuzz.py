"""Every file that the command line takes, damaged in every way that we know of: status 2, one sentence that
names what is wrong, no traceback, and nothing written. The cases are in `fuzz`, by kinds of files."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from helpers.command_line import run
from helpers.folders import contents
from helpers.fuzz.configurations import configuration_cases
from helpers.fuzz.earlier_runs import resumed_cases, swept_cases
from helpers.fuzz.facts import fact_cases
from helpers.fuzz.grids import grid_cases
from helpers.fuzz.inputs import save_inputs
from helpers.fuzz.prompts import prompt_cases
from helpers.fuzz.weights import delta_cases, model_cases
from typer.testing import Result

CASES = [
    *prompt_cases(),
    *fact_cases(),
    *configuration_cases(),
    *grid_cases(),
    *delta_cases(),
    *model_cases(),
    *resumed_cases(),
    *swept_cases(),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good ones of every kind. Not to be written to."""
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def kept(folder: Path) -> dict[str, bytes] | None:
    """All that lies in a folder, None if there is no such."""
    if not folder.exists():
        return None
    return {name: (folder / name).read_bytes() for name in contents(folder)}


@pytest.mark.parametrize("bad", [pytest.param(each, id=each.name) for each in CASES])
def test_what_is_damaged_is_refused_in_one_sentence(bad, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    words, says = bad.make(inputs, tmp_path)
    before = kept(tmp_path / "out")
    result = run(*words)
    assert result.exit_code == 2, (result.output[-500:], result.exception)
    assert kept(tmp_path / "out") == before
    assert_one_sentence(result, says)


def assert_one_sentence(result: Result, says: str | tuple[str, ...]) -> None:
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith("."), line
    assert "Traceback" not in line and len(line) <= 1500, (len(line), line[:1500])
    told = says if isinstance(says, tuple) else (says,)
    assert any(each in line for each in told), (told, line[:1500])
    assert result.stdout == ""


def test_there_are_many() -> None:
    assert len(CASES) >= 300 and len({each.name for each in CASES}) == len(CASES)
