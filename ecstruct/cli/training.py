"""Options of `ecstruct finetune` that are no fields of its configuration."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ecstruct.errors import InputError


def finetune_fields(
    freeze_layers: Annotated[str, typer.Option(help="Layers to keep, as 0-3,7.")] = "",
    freeze_kinds: Annotated[str, typer.Option(help="Kinds to keep, as attn,mlp.")] = "",
    evaluate: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: prompts to rank after each epoch; repeatable.")
    ] = None,
    lora: Annotated[
        str, typer.Option(help="Low-rank adapters, as r=16,alpha=32,targets=q_proj+v_proj,dora=true.")
    ] = "",
) -> Mapping[str, Any]:
    layers, kinds = _layers(freeze_layers), [k for k in freeze_kinds.split(",") if k] or None
    return {
        "freeze": {"layers": layers, "kinds": kinds} if layers or kinds else None,
        "evaluate": dict(_named(evaluate or [])) or None,
        "lora": _lora(lora),
    }


def _layers(text: str) -> list[int] | None:
    """Return the layers that a text such as "0-3,7" names."""
    layers: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise InputError(f"--freeze-layers takes layers as 0-3,7, not {text!r}.")
        layers += range(first, last + 1)
    return layers or None


def _lora(text: str) -> dict[str, Any] | None:
    """Return the options of peft in a text such as "r=16,alpha=32"."""
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            given[name] = value.split("+") if name == "targets" else json.loads(value)
        except ValueError:
            raise InputError(f"--lora takes r=16,alpha=32,dora=true, not {text!r}.") from None
    return given or None


def _named(texts: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield the name and the file in each text "NAME=FILE"."""
    seen: set[str] = set()
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"--evaluate takes NAME=FILE, not {text!r}.")
        if name in seen:
            raise InputError(f"--evaluate has two files for {name!r}: give each a name of its own.")
        seen.add(name)
        yield name, Path(path)
