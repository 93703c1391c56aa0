"""What all runs of commands share: they lock their folder, check their configuration, and end in one
way."""

import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash
from tqdm.auto import tqdm

from ecstruct.commands import Suggest
from ecstruct.commands.fields import TwoModels
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.facts import Prompt, in_chat, read_jsonl
from ecstruct.io.files import exclusive, write_text
from ecstruct.models.loading import load
from ecstruct.options import Options

Run = Callable[[Any, Path, str | None, bool], None]
"""Takes the configuration (see `ecstruct.commands`), the folder to write to, the device, and whether to
show progress."""

Chat = Callable[[Sequence[Prompt]], Sequence[Prompt]]
"""Puts prompts into a chat template, or leaves them as they are."""


def folder_locked(run: Run) -> Run:
    """Wrap a run so that it locks its folder first: an unusable folder is refused before any work."""

    @wraps(run)
    def locked(config: Options, out: Path, device: str | None, progress: bool) -> None:
        with exclusive(out):
            run(config, out, device, progress)

    return locked


def chat_of(source: str, chat_template: bool, system: str | None) -> Chat:
    """Return the function that all prompts of a run pass through: it puts them into the chat template of
    the model `source`, or leaves them as they are."""
    if chat_template:
        return lambda prompts: in_chat(prompts, source, system=system)
    if system is not None:
        raise InputError("--system is a part of the chat template: add --chat-template.")
    return tuple


def records(path: Path, chat: Chat = tuple) -> list[dict[str, Any]]:
    """Read the prompts of a JSONL file as records for a configuration."""
    return [prompt.to_record() for prompt in chat(read_jsonl(path))]


def described(config: Options, out: Path) -> dict[str, str]:
    """Return the values of a configuration and the folder as texts, by name, prompts as checksums: by
    these, several processes check that they run the same."""
    texts = {name: json.dumps(value) for name, value in vars(config).items()}
    checksums = {
        name: f"of checksum {xxhash.xxh3_64_hexdigest(text.encode())}"
        for name, text in texts.items()
        if name in ("prompts", "facts")
    }
    return {**texts, **checksums, "out": str(out)}


def check_fingerprints(
    sources: Mapping[str, Mapping[str, Any]], config: TwoModels | Suggest
) -> dict[str, str]:
    """Return the fingerprints of models, and check that a replay has found the same weights. `sources` says
    where the weights of each are from."""
    found = {state: source["fingerprint"] for state, source in sources.items()}
    for state, print_of in found.items():
        check_weights(getattr(config, state), print_of, (config.fingerprints or {}).get(state))
    return found


def session_of(source: str, device: str | None, expected: str | None) -> tuple[Session, str]:
    """Return the session of a model and its fingerprint, and check that a replay has found the same
    weights."""
    session = Session.of(load(source, device=device))
    found = session.described["fingerprint"]
    check_weights(source, found, expected)
    return session, found


def check_weights(source: str, found: str, expected: str | None) -> None:
    if expected and expected != found:
        raise InputError(
            f"the weights of {source} are not those that this configuration was run with: find that "
            "checkpoint, or remove the fingerprints from the configuration."
        )


def write_config(out: Path, command: str, config: Options, **found: Any) -> None:
    """Write a configuration as `config.json`; `found` replaces values of it, such as fingerprints."""
    whole = {"command": command, "ecstruct": version("ecstruct"), "arguments": vars(config) | found}
    write_text(out / "config.json", json.dumps(whole, indent=1, ensure_ascii=False))


def finish(out: Path, command: str, config: Options, text: str, progress: bool, **found: Any) -> None:
    """End a run that has written its results: write `config.json`, delete the folder `unfinished`, and with
    `progress` print `text` and where the report is."""
    write_config(out, command, config, **found)
    shutil.rmtree(out / "unfinished", ignore_errors=True)
    if progress:
        tqdm.write(f"{text}\nreport: {out / 'report.html'}".lstrip())


def replay_command(out: Path) -> str:
    """Return the command line that repeats the run in the folder `out`, in a folder beside it."""
    return shlex.join(["ecstruct", "replay", str(out / "config.json"), "--out", f"{out}-again"])
