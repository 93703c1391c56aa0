"""Configurations of runs: JSON objects with everything that determines the numbers, prompts included."""

import json
import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash

from ecstruct.errors import InputError
from ecstruct.facts import Prompt, in_chat, read_jsonl
from ecstruct.io.files import exclusive, write_text

Config = dict[str, Any]
Run = Callable[[Config, Path, str | None, bool], None]
"""Takes the configuration, the folder to write to, the device, and whether to show progress."""

Chat = Callable[[Sequence[Prompt]], Sequence[Prompt]]
"""Puts prompts into a chat template, or leaves them as they are."""


def alone(run: Run) -> Run:
    """Make a run lock its folder first, so that an unusable one is refused before any work."""

    @wraps(run)
    def locked(config: Config, out: Path, device: str | None, progress: bool) -> None:
        with exclusive(out):
            run(config, out, device, progress)

    return locked


def chat_of(source: str, chat_template: bool, system: str | None) -> Chat:
    """Return the function that a run's prompts pass through: a model's chat template, or none."""
    if chat_template:
        return lambda prompts: in_chat(prompts, source, system=system)
    if system is not None:
        raise InputError("--system is a part of the chat template: add --chat-template.")
    return tuple


def records(path: Path, chat: Chat = tuple) -> list[dict[str, Any]]:
    """Read the prompts of a JSONL file as records for a configuration."""
    return [prompt.to_record() for prompt in chat(read_jsonl(path))]


def described(config: Config, out: Path) -> dict[str, str]:
    """Describe a configuration in text, so that processes can check that theirs agree."""
    options = {key: json.dumps(value) for key, value in config.items() if key != "prompts"}
    checksum = xxhash.xxh3_64_hexdigest(json.dumps(config["prompts"]).encode())
    return {**options, "prompts": f"{len(config['prompts'])} with checksum {checksum}", "out": str(out)}


def check_weights(source: str, found: str, expected: str | None) -> None:
    if expected and expected != found:
        raise InputError(
            f"the weights of {source} are not those that this configuration was run with: find that "
            "checkpoint, or remove the fingerprints from the configuration."
        )


def write_config(out: Path, command: str, arguments: Config) -> None:
    config = {"command": command, "ecstruct": version("ecstruct"), "arguments": arguments}
    write_text(out / "config.json", json.dumps(config, indent=1, ensure_ascii=False))


def again(out: Path) -> str:
    """Return the command that repeats a run, in a folder beside it."""
    return shlex.join(["ecstruct", "replay", str(out / "config.json"), "--out", f"{out}-again"])
