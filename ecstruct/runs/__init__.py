"""The runs of the command line: each turns a configuration (`ecstruct.commands`) into a folder with results
and a `config.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecstruct.commands import COMMANDS
from ecstruct.errors import InputError
from ecstruct.io.files import from_json
from ecstruct.runs.checking import (
    finetuning_of,
    run_causal,
    run_controls,
    run_diagnose,
    run_edges,
    run_fidelity,
)
from ecstruct.runs.configuration import Run, chat_of, records
from ecstruct.runs.experiments import run_demo, run_reproduce
from ecstruct.runs.grafting import run_graft, run_grafts
from ecstruct.runs.recall import run_recall
from ecstruct.runs.scoring import rank_table, run_alignment, run_score, run_suggest
from ecstruct.runs.subnetworks import run_core, run_emergence, run_evaluate, run_prune
from ecstruct.runs.training import run_finetune

__all__ = ["chat_of", "finetuning_of", "rank_table", "records", "replay", "start"]

RUNS: Mapping[str, Run] = {
    "alignment": run_alignment,
    "causal": run_causal,
    "controls": run_controls,
    "demo": run_demo,
    "diagnose": run_diagnose,
    "edges": run_edges,
    "fidelity": run_fidelity,
    "finetune": run_finetune,
    "graft": run_graft,
    "grafts": run_grafts,
    "recall": run_recall,
    "reproduce": run_reproduce,
    "score": run_score,
    "subnetworks-core": run_core,
    "subnetworks-emergence": run_emergence,
    "subnetworks-evaluate": run_evaluate,
    "subnetworks-prune": run_prune,
    "suggest": run_suggest,
}


def start(command: str, values: Mapping[str, Any], out: Path, device: str | None, progress: bool) -> None:
    """Run a command with the values that its command line gives.

    Raises:
        InputError: an option has the wrong type or a meaningless size, or the run itself raises it.
    """
    RUNS[command](COMMANDS[command].read(values, "the command", command), out, device, progress)


def replay(path: Path, out: Path, device: str | None, progress: bool) -> None:
    """Repeat the run that a `config.json` describes.

    Raises:
        InputError: the file is missing or is no configuration of ecstruct, or the run itself raises it.
    """
    try:
        config = from_json(path.read_text(encoding="utf-8"))
        command, arguments = config["command"], dict(config["arguments"])
        run = RUNS[command]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no configuration of a run: give a config.json.") from error
    run(COMMANDS[command].read(arguments, str(path), command), out, device, progress)
