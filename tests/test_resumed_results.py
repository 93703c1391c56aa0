"""A finetuning that was stopped while it wrote its results goes on, and the results are the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from helpers.cli_inputs import save_inputs
from helpers.command_line import refused, run, works
from helpers.folders import contents

from ecstruct.errors import InputError
from ecstruct.io.files import write_folder
from ecstruct.runs import training

pytestmark = pytest.mark.usefixtures("offline")
OPTIONS = ("--lr", 0.01, "--epochs", 2, "--save-model", "--lora", "r=2", "--quiet")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what an undisturbed run writes. Not to be written to."""
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    with pytest.MonkeyPatch.context() as patch:  # a tokenizer's file says whether it was offline
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        works(*words(folder, folder / "whole"))
    return folder


def words(inputs: Path, out: Path, *more: Any) -> list[Any]:
    given = ("--model", inputs / "model", "--facts", inputs / "prompts.jsonl", "--out", out)
    return ["finetune", *given, *OPTIONS, *more]


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in contents(folder)}


def full(*_: Any, **__: Any) -> None:
    raise InputError("cannot write it: No space left on device.")


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def half(model: Any, folder: Path) -> None:
    def fill(whole: Path) -> None:
        whole.mkdir()
        (whole / "config.json").write_text("{")
        killed()

    write_folder(folder, fill)


@pytest.mark.parametrize("every", [(), ("--checkpoint-every", 1)])
@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("save_adapter", killed),
        ("save_model", full),
        ("save_model", half),
        ("write_config", killed),
    ],
)
def test_it_goes_on_and_the_same_bytes_come_out(
    inputs: Path, tmp_path: Path, where: str, how: Callable[..., Any], every: tuple[Any, ...]
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, where, how)
        assert run(*words(inputs, out, *every)).exit_code in (2, 130)
    assert not (out / "config.json").exists()
    works(*words(inputs, out, *every))
    assert files(out) == files(inputs / "whole")
    refused(run(*words(inputs, out, *every)), "exists and is not empty")  # it is finished


def test_what_is_not_its_own_is_refused(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_model", full)
        assert run(*words(inputs, out)).exit_code == 2
    before = files(out)
    refused(run(*words(inputs, out, "--seed", 1)), "adapter exists and is not empty")
    assert files(out) == before


def test_what_was_half_written_when_a_process_was_killed_is_removed(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / ".writing-a1b2c3d4" / "model").mkdir(parents=True)
    (tmp_path / ".writing-a1b2c3d4.json").write_text("{")
    (tmp_path / ".writing").mkdir()
    works(*words(inputs, tmp_path))
    assert files(tmp_path) == files(inputs / "whole")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == [".writing"]
