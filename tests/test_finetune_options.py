"""What `ecstruct finetune` makes of text that stands for lists, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command_line import run

from ecstruct.cli.training import _layers, _named
from ecstruct.errors import InputError


def test_layers_and_ranges_of_them() -> None:
    assert _layers("") is None
    assert _layers("0-3,7") == [0, 1, 2, 3, 7]
    assert _layers("2-2") == [2]


@pytest.mark.parametrize("text", ["5-0", "3-", "-3", "²", "٣", "1-2-3", " 1", "a-b", "0-" + "9" * 5000])
def test_what_are_no_layers_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--freeze-layers takes layers as 0-3,7, not "):
        _layers(text)


def test_prompts_to_evaluate_have_names_of_their_own() -> None:
    assert dict(_named(["a=x=y.jsonl", "b=z"])) == {"a": Path("x=y.jsonl"), "b": Path("z")}
    with pytest.raises(InputError, match="--evaluate has two files for 'a'"):
        list(_named(["a=x", "b=x", "a=y"]))


def test_the_command_refuses_them_in_one_sentence(tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"text": "a", "answer": "b"}\n')
    words = ["finetune", "--model", "organism", "--facts", str(facts), "--out", str(tmp_path / "out")]
    result = run(*words, "--freeze-layers", "5-0")
    assert result.exit_code == 2
    assert result.stderr == "error: --freeze-layers takes layers as 0-3,7, not '5-0'.\n"
    assert not (tmp_path / "out").exists()
