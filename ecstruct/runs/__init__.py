"""The runs of the command line: each turns a configuration (`ecstruct.commands`) into a folder with results
and a `config.json`."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ecstruct.commands import COMMANDS
from ecstruct.errors import InputError
from ecstruct.io.files import from_json
from ecstruct.runs.configuration import Run

RUNS: Mapping[str, str] = {
    "alignment": "scoring",
    "causal": "checking",
    "controls": "checking",
    "demo": "experiments",
    "diagnose": "checking",
    "edges": "checking",
    "fidelity": "checking",
    "finetune": "training",
    "graft": "grafting",
    "grafts": "grafting",
    "recall": "recall",
    "reproduce": "experiments",
    "score": "scoring",
    "subnetworks-core": "subnetworks",
    "subnetworks-emergence": "subnetworks",
    "subnetworks-evaluate": "subnetworks",
    "subnetworks-prune": "subnetworks",
    "suggest": "scoring",
}
"""The module with the run of each command: the others, which take seconds to import, are left alone."""


def run_of(command: str) -> Run:
    """Return the function that runs a command.

    >>> run_of("subnetworks-prune").__name__
    'run_prune'

    Raises:
        KeyError: There is no such command.
    """
    module = import_module(f"ecstruct.runs.{RUNS[command]}")
    return getattr(module, f"run_{command.rpartition('-')[2]}")


def start(command: str, values: Mapping[str, Any], out: Path, device: str | None, progress: bool) -> None:
    """Run a command with the values that its command line gives.

    Raises:
        InputError: an option has the wrong type or a meaningless size, or the run itself raises it.
    """
    run_of(command)(COMMANDS[command].read(values, "the command", command), out, device, progress)


def replay(path: Path, out: Path, device: str | None, progress: bool) -> None:
    """Repeat the run that a `config.json` describes.

    Raises:
        InputError: the file is missing or is no configuration of ecstruct, or the run itself raises it.
    """
    try:
        config = from_json(path.read_text(encoding="utf-8"))
        command, arguments = config["command"], dict(config["arguments"])
        run = run_of(command)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no configuration of a run: give a config.json.") from error
    run(COMMANDS[command].read(arguments, str(path), command), out, device, progress)
