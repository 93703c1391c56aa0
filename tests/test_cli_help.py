"""What every command says of itself."""

from typing import Any

import pytest
from helpers.command_line import works
from typer.main import get_command

import ecstruct
from ecstruct.cli import app

pytestmark = pytest.mark.usefixtures("offline")


def commands():
    root: Any = get_command(app)
    found = dict(root.commands)
    groups = {
        name: found.pop(name).commands for name in root.commands if hasattr(root.commands[name], "commands")
    }
    return {f"{group} {n}": c for group, its in groups.items() for n, c in its.items()} | found


@pytest.mark.parametrize("name", commands())
def test_help_has_a_sentence_for_everything(name):
    result = works(*name.split(), "--help")
    assert "Usage:" in result.stdout
    command = commands()[name]
    assert command.help and command.help.strip().endswith(".")
    for parameter in command.params:
        assert parameter.help, f"{name} says nothing about {parameter.name}"
    if name not in ("rank", "doctor"):
        assert "--out" in result.stdout
    assert "--debug" in result.stdout
    if name not in ("facts show", "doctor"):  # which are there to print
        assert "--quiet" in result.stdout


def test_help_names_every_command():
    text = works("--help").stdout
    for name in ("demo", "finetune", "rank", "score", "replay", "organism"):
        assert name in text


def test_the_version_is_told():
    assert works("--version").stdout == f"ecstruct {ecstruct.__version__}\n"
