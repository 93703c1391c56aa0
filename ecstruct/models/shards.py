"""Recognise the shards that DeepSpeed (ZeRO) and FSDP save: a part of the weights for every process.

They are pickles, which are never read; the library that wrote them merges them into safetensors files.
"""

import shlex
from pathlib import Path

from ecstruct.errors import InputError

_ZERO = "*_optim_states.pt"
"""The shards of ZeRO, which have the weights in float32 beside the optimiser's state."""


def check_merged(folder: Path) -> None:
    """Raise `InputError` if a folder has the shards of a training in the place of weights; it says with
    which command they are merged."""
    if any(folder.glob("model*.safetensors")) or (found := _library_and_command(folder)) is None:
        return
    library, command = found
    copied = "copy the config.json and the tokenizer of the model that was trained into it, "
    lacks = "" if (folder / "config.json").is_file() else copied
    raise InputError(
        f"the folder {folder} has the shards of a training with {library}, one for every process: merge "
        f"them with `{shlex.join(command)}`, {lacks}and give the folder again."
    )


def is_sharded(folder: Path) -> bool:
    """Return whether a folder has the shards of a training."""
    return _library_and_command(folder) is not None


def _library_and_command(folder: Path) -> tuple[str, list[str]] | None:
    if any(folder.glob(f"global_step*/{_ZERO}")):
        return "DeepSpeed (ZeRO)", _zero(folder, folder)
    if any(folder.glob(_ZERO)):
        return "DeepSpeed (ZeRO)", [*_zero(folder.parent, folder), "--tag", folder.name]
    parts = [path for path in sorted(folder.glob("*/")) if not path.name.startswith("optimizer")]
    for part in (folder, *parts):
        if (part / ".metadata").is_file() and any(part.glob("__*_*.distcp")):
            command = ["accelerate", "merge-weights", str(part), str(folder)]
            return "FSDP (torch.distributed.checkpoint)", command
    return None


def _zero(run: Path, output: Path) -> list[str]:
    script = run / "zero_to_fp32.py"
    program = [str(script)] if script.is_file() else ["-m", "deepspeed.utils.zero_to_fp32"]
    return ["python", *program, str(run), str(output), "--safe_serialization"]
