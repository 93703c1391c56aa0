"""The runs of the command line: from a configuration to a folder with results, and with the
configuration that makes them again.

A configuration is a JSON object with all that decides the numbers, prompts included, so `config.json`
replays wherever the checkpoints can be found. Devices and progress bars are not part of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from ecstruct.errors import InputError
from ecstruct.runs.configuration import Config, Run, records
from ecstruct.runs.experiments import run_demo, run_reproduce
from ecstruct.runs.scoring import rank_table, run_fidelity, run_score
from ecstruct.runs.training import run_finetune

__all__ = [
    "rank_table",
    "records",
    "replay",
    "run_demo",
    "run_fidelity",
    "run_finetune",
    "run_reproduce",
    "run_score",
]

RUNS: Mapping[str, Run] = {
    "demo": run_demo,
    "fidelity": run_fidelity,
    "finetune": run_finetune,
    "reproduce": run_reproduce,
    "score": run_score,
}

_KEYS = {
    "demo": ({"seed"}, set()),
    "fidelity": ({"before", "after", "prompts"}, {"reward", "baseline", "top", "memory", "fingerprints"}),
    "finetune": (
        {"model", "facts", "save_model"},
        {
            *("lr", "epochs", "batch_size", "schedule", "seed", "freeze", "train_embeddings", "evaluate"),
            *("accumulate", "lora", "recompute", "checkpoint_every", "fingerprint"),
        },
    ),
    "reproduce": ({"experiments", "setup"}, {"options"}),
    "score": (
        {"before", "after", "prompts"},
        {
            *("reward", "answer_tokens", "baseline", "upstream", "convention", "path_steps", "batch_size"),
            *("offload", "fingerprints"),
        },
    ),
}
"""What a configuration must and may have."""


def replay(path: Path, out: Path, device: str | None, progress: bool) -> None:
    """Run what a `config.json` describes once more.

    Raises:
        InputError: the file is missing or is no configuration of ecstruct; what the run itself raises.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        run, arguments = RUNS[config["command"]], dict(config["arguments"])
        _check_keys(path, config["command"], arguments)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no configuration of a run: give a config.json.") from error
    run(arguments, out, device, progress)


def _check_keys(path: Path, command: str, arguments: Config) -> None:
    required, optional = _KEYS[command]
    for name in sorted(required - set(arguments)):
        raise InputError(f"{path} lacks {name!r}: give a config.json as {command} wrote it.")
    for name in sorted(set(arguments) - required - optional):
        raise InputError(f"{path} has {name!r}, which {command} does not know: remove it.")
