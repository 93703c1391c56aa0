"""The runs of the command line: each turns a configuration into a folder with results and a `config.json`.

A configuration is a JSON object with everything that determines the numbers, prompts included, so
`config.json` can be replayed wherever the checkpoints can be found. Devices and progress bars are not part
of it.
"""

from collections.abc import Mapping
from pathlib import Path

from ecstruct.errors import InputError
from ecstruct.io.files import from_json
from ecstruct.io.values import check
from ecstruct.runs.arguments import types_of
from ecstruct.runs.configuration import Config, Run, chat_of, records
from ecstruct.runs.experiments import run_demo, run_reproduce
from ecstruct.runs.recall import run_recall
from ecstruct.runs.scoring import rank_table, run_fidelity, run_score
from ecstruct.runs.subnetworks import run_core, run_evaluate, run_prune
from ecstruct.runs.training import run_finetune

__all__ = ["chat_of", "rank_table", "records", "replay", "start"]

RUNS: Mapping[str, Run] = {
    "demo": run_demo,
    "fidelity": run_fidelity,
    "finetune": run_finetune,
    "recall": run_recall,
    "reproduce": run_reproduce,
    "score": run_score,
    "subnetworks-core": run_core,
    "subnetworks-evaluate": run_evaluate,
    "subnetworks-prune": run_prune,
}

_KEYS = {
    "demo": ({"seed"}, {"model"}),
    "fidelity": (
        {"before", "after", "prompts"},
        {
            *("reward", "answer_tokens", "baseline", "forms", "top", "sample", "seed", "memory"),
            "fingerprints",
        },
    ),
    "finetune": (
        {"model", "facts", "save_model"},
        {
            *("lr", "epochs", "batch_size", "schedule", "seed", "freeze", "train_embeddings", "evaluate"),
            *("accumulate", "lora", "recompute", "checkpoint_every", "fingerprint"),
        },
    ),
    "recall": ({"model", "prompts"}, {"after", "window", "token", "onto", "attributes", "fingerprints"}),
    "reproduce": ({"experiments", "setup"}, {"options"}),
    "score": (
        {"before", "after", "prompts"},
        {
            *("reward", "answer_tokens", "baseline", "upstream", "propagation", "convention", "path_steps"),
            *("verify", "batch_size", "offload", "fingerprints"),
        },
    ),
    "subnetworks-core": (
        {"model", "masks", "prompts", "generalization"},
        {"scores", "draws", "seed", "fingerprints"},
    ),
    "subnetworks-evaluate": ({"model", "masks", "prompts", "generalization"}, {"fingerprints"}),
    "subnetworks-prune": (
        {"model", "prompts"},
        {
            *("sparsity", "seeds", "steps", "kinds", "ablation", "reference", "lr", "batch_size"),
            "fingerprint",
        },
    ),
}
"""The keys that a command's configuration must have, and those that it may have."""


def start(command: str, config: Config, out: Path, device: str | None, progress: bool) -> None:
    """Run a command with the configuration that its command line describes.

    Raises:
        InputError: an option has the wrong type or a meaningless size, or the run itself raises it.
    """
    check(config, types_of(command), "the command")
    RUNS[command](config, out, device, progress)


def replay(path: Path, out: Path, device: str | None, progress: bool) -> None:
    """Repeat the run that a `config.json` describes.

    Raises:
        InputError: the file is missing or is no configuration of ecstruct, or the run itself raises it.
    """
    try:
        config = from_json(path.read_text(encoding="utf-8"))
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
    check(arguments, types_of(command), str(path))
