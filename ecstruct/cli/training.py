"""`ecstruct finetune`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ecstruct.cli.words import (
    JSONL,
    ChatTemplate,
    Debug,
    Device,
    Out,
    Quiet,
    Seed,
    Source,
    System,
    session,
)
from ecstruct.errors import InputError


def finetune(
    model: Source,
    facts: Annotated[Path, typer.Option(help=JSONL)],
    out: Out,
    chat_template: ChatTemplate = False,
    system: System = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; known for organism and smollm2.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes through the facts.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Facts per step.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Parts in which a batch is run.")] = 1,
    schedule: Annotated[
        Literal["constant", "linear"], typer.Option(help="Course of the rate.")
    ] = "constant",
    freeze_layers: Annotated[str, typer.Option(help="Layers to keep, as 0-3,7.")] = "",
    freeze_kinds: Annotated[str, typer.Option(help="Kinds to keep, as attn,mlp.")] = "",
    train_embeddings: Annotated[bool, typer.Option(help="Train (un)embeddings too.")] = False,
    evaluate: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: prompts to rank after each epoch; repeatable.")
    ] = None,
    lora: Annotated[
        str, typer.Option(help="Low-rank adapters, as r=16,alpha=32,targets=q_proj+v_proj,dora=true.")
    ] = "",
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Run blocks again instead of keeping their activations.")
    ] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; ten minutes if not given.")
    ] = None,
    save_model: Annotated[bool, typer.Option(help="Write the whole model to OUT/model too.")] = False,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Finetune on the answers of facts; writes delta.safetensors and history.json.

    Goes on where it was stopped. Under torchrun all processes share the model.
    """
    with session(quiet, debug):
        from ecstruct.runs import chat_of, records, start

        chat = chat_of(model, chat_template, system)
        layers, kinds = _layers(freeze_layers), [k for k in freeze_kinds.split(",") if k] or None
        config: dict[str, Any] = {
            "model": model,
            "facts": records(facts, chat),
            "lr": lr,
            "epochs": epochs,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "schedule": schedule,
            "freeze": {"layers": layers, "kinds": kinds} if layers or kinds else None,
            "train_embeddings": train_embeddings,
            "evaluate": {name: records(path, chat) for name, path in _named(evaluate or [])} or None,
            "seed": seed,
            "lora": _lora(lora),
            "recompute": recompute,
            "checkpoint_every": checkpoint_every,
            "save_model": save_model,
        }
        start("finetune", config, out, device, not quiet)


def _layers(text: str) -> list[int] | None:
    """Layers from text as "0-3,7"."""
    layers: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise InputError(f"--freeze-layers takes layers as 0-3,7, not {text!r}.")
        layers += range(first, last + 1)
    return layers or None


def _lora(text: str) -> dict[str, Any] | None:
    """What peft is told, from text as "r=16,alpha=32"."""
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            given[name] = value.split("+") if name == "targets" else json.loads(value)
        except ValueError:
            raise InputError(f"--lora takes r=16,alpha=32,dora=true, not {text!r}.") from None
    return given or None


def _named(texts: list[str]) -> Iterator[tuple[str, Path]]:
    """Names with their files, from texts as "NAME=FILE"."""
    seen: set[str] = set()
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"--evaluate takes NAME=FILE, not {text!r}.")
        if name in seen:
            raise InputError(f"--evaluate has two files for {name!r}: give each a name of its own.")
        seen.add(name)
        yield name, Path(path)
