"""Commands whose words follow from their configuration in `ecstruct.commands`."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typing_extensions import Doc

from ecstruct.cli.words import ChatTemplate, Debug, Device, Out, Quiet, System, session
from ecstruct.commands import COMMANDS, FROM_FILE
from ecstruct.options import Options, Word, types_of

Special = Callable[..., Mapping[str, Any] | None]

_LAST = {"device": (Device, None), "quiet": (Quiet, False), "debug": (Debug, False)}
_CHAT = {"chat_template": (ChatTemplate, False), "system": (System, None)}


def command(name: str) -> Callable[[Special], Callable[..., None]]:
    """Make a command of a function. The command has a word for every field of its configuration that has a
    description, and the words of the function itself, which may replace some of these; the function returns
    values of the configuration that its words stand for, if it has any."""
    config = COMMANDS[name]

    def make(function: Special) -> Callable[..., None]:
        own = {
            name: word.replace(kind=Parameter.KEYWORD_ONLY)
            for name, word in signature(function, eval_str=True).parameters.items()
        }
        derived = {field: word for field, word in _words(config).items() if field not in own}
        asks = any(_is_records(kind) for kind in types_of(config).values())

        def run(out: Path, device: str | None, quiet: bool, debug: bool, **given: Any) -> None:
            with session(quiet, debug):
                from ecstruct.runs import chat_of, start

                source = given.get("before") or given.get("model", "")
                chat = chat_of(source, given.pop("chat_template"), given.pop("system")) if asks else tuple
                values = {field: given[field] for field in derived if given[field] is not None}
                values |= function(**{word: given[word] for word in own}) or {}
                kinds = types_of(config)
                read = {field: _value(kinds[field], value, chat) for field, value in values.items()}
                start(name, read, out, device, not quiet)

        words = {field: word for field, word in derived.items() if word.default is Parameter.empty}
        words["out"] = _word("out", Out)
        words |= {each: _word(each, *how) for each, how in _CHAT.items()} if asks else {}
        words |= derived | own | {each: _word(each, *how) for each, how in _LAST.items()}
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__annotations__ = {each: word.annotation for each, word in words.items()}
        run.__signature__ = signature(run).replace(parameters=[*words.values()], return_annotation=None)  # type: ignore[attr-defined]
        return run

    return make


def _word(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _words(config: type[Options]) -> dict[str, Parameter]:
    """Return the words for those fields of a configuration that have a description."""
    words, kinds = {}, types_of(config)
    for field in fields(config):
        told = getattr(kinds[field.name], "__metadata__", ())
        help = next((each.documentation for each in told if isinstance(each, Doc)), None)
        if help is None:
            continue
        kind, default = _plain(kinds[field.name]), field.default
        flags = [each.name for each in told if isinstance(each, Word)]
        if kind is bool:
            flags = [f"--{field.name.replace('_', '-')}"]
        if default is MISSING:
            default = Parameter.empty
        elif get_origin(kind) is list:
            kind, default = kind | None, None
        option = typer.Option(*flags, help=help)
        words[field.name] = _word(field.name, Annotated[kind, option], default)
    return words


def _plain(kind: Any) -> Any:
    """Return the type of a word for values of a field's type."""
    if _is_records(kind):
        return Path | None if type(None) in get_args(_bare(kind)) else Path
    kind = _bare(kind)
    if get_origin(kind) in (Union, types.UnionType):
        parts = [_plain(part) for part in get_args(kind) if part is not type(None)]
        first = next(part for part in parts if get_origin(part) is Literal or isinstance(part, type))
        return first | None if type(None) in get_args(kind) else first
    if get_origin(kind) in (list, Sequence):
        (item,) = (_bare(each) for each in get_args(kind))
        return list[str if get_origin(item) is Literal else item]  # what may stand there is checked later
    return kind


def _bare(kind: Any) -> Any:
    """Return a type without its annotations."""
    return _bare(kind.__origin__) if get_origin(kind) is Annotated else kind


def _is_records(kind: Any) -> bool:
    """Return whether values of a type are prompts, for which a word has a file."""
    return FROM_FILE in getattr(kind, "__metadata__", ()) or any(map(_is_records, get_args(kind)))


def _value(kind: Any, value: Any, chat: Any) -> Any:
    """Return what a word says, with files of prompts read."""
    if isinstance(value, Mapping):
        return {name: _value(kind, each, chat) for name, each in value.items()}
    if not isinstance(value, Path):
        return value
    from ecstruct.runs import records

    return records(value, chat)
