"""Commands whose command-line options follow from their configuration in `ecstruct.commands`."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typing_extensions import Doc

from ecstruct.cli.flags import ChatTemplate, Debug, Device, Out, Quiet, System, command_run
from ecstruct.commands import COMMANDS
from ecstruct.commands.fields import FROM_FILE
from ecstruct.options import Flag, Options, types_of

Further = Callable[..., Mapping[str, Any]]
"""A function from options that are no fields of a configuration to fields of it."""

_LAST = {"device": (Device, None), "quiet": (Quiet, False), "debug": (Debug, False)}
_CHAT = {"chat_template": (ChatTemplate, False), "system": (System, None)}


def _nothing_further() -> dict[str, Any]:
    return {}


def command_of(name: str, further: Further = _nothing_further) -> Callable[..., None]:
    """Return the command that has a configuration of this name; its docstring is the command's help.

    The command has an option for every field that has a `Doc`, and one for every parameter of `further`,
    which may replace some of these."""
    config = COMMANDS[name]
    words = signature(further, eval_str=True).parameters
    own = {word: each.replace(kind=Parameter.KEYWORD_ONLY) for word, each in words.items()}
    derived = {field: each for field, each in _parameters(config).items() if field not in own}
    kinds = types_of(config)
    asks = any(map(_is_records, kinds.values()))

    def run(out: Path, device: str | None, quiet: bool, debug: bool, **given: Any) -> None:
        with command_run(quiet, debug):
            from ecstruct.runs import start
            from ecstruct.runs.configuration import chat_of

            source = given.get("before") or given.get("model", "")
            chat = chat_of(source, given.pop("chat_template"), given.pop("system")) if asks else tuple
            values = {field: given[field] for field in derived if given[field] is not None}
            values |= further(**{word: given[word] for word in own})
            read = {field: _value(kinds[field], value, chat) for field, value in values.items()}
            start(name, read, out, device, not quiet)

    taken = derived | own
    parameters = {word: each for word, each in taken.items() if each.default is Parameter.empty}
    parameters["out"] = _parameter("out", Out)
    parameters |= {each: _parameter(each, *how) for each, how in _CHAT.items()} if asks else {}
    parameters |= taken | {each: _parameter(each, *how) for each, how in _LAST.items()}
    run.__name__, run.__doc__ = name, config.__doc__
    run.__annotations__ = {word: each.annotation for word, each in parameters.items()}
    run.__signature__ = signature(run).replace(  # type: ignore[attr-defined]
        parameters=[*parameters.values()], return_annotation=None
    )
    return run


def _parameter(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameters(config: type[Options]) -> dict[str, Parameter]:
    """Return the parameters for those fields of a configuration that have a `Doc`, by field."""
    parameters, kinds = {}, types_of(config)
    for field in fields(config):
        told = getattr(kinds[field.name], "__metadata__", ())
        help = next((each.documentation for each in told if isinstance(each, Doc)), None)
        if help is None:
            continue
        kind, default = _plain(kinds[field.name]), field.default
        flags = [each.name for each in told if isinstance(each, Flag)]
        if kind is bool:
            flags = [f"--{field.name.replace('_', '-')}"]
        if default is MISSING:
            default = Parameter.empty
        elif get_origin(kind) is list:
            kind, default = kind | None, None
        option = typer.Option(*flags, help=help)
        parameters[field.name] = _parameter(field.name, Annotated[kind, option], default)
    return parameters


def _plain(kind: Any) -> Any:
    """Return the type of the parameter for a field of this type, as typer understands it."""
    if _is_records(kind):
        return Path | None if type(None) in get_args(_bare(kind)) else Path
    kind = _bare(kind)
    if get_origin(kind) in (Union, types.UnionType):
        parts = [_plain(part) for part in get_args(kind) if part is not type(None)]
        first = next(p for p in parts if get_origin(p) in (Literal, list) or isinstance(p, type))
        return first | None if type(None) in get_args(kind) else first
    if get_origin(kind) in (list, Sequence):
        (item,) = (_bare(each) for each in get_args(kind))
        return list[str if get_origin(item) is Literal else item]  # what may stand there is checked later
    return kind


def _bare(kind: Any) -> Any:
    """Return a type without its annotations."""
    return _bare(kind.__origin__) if get_origin(kind) is Annotated else kind


def _is_records(kind: Any) -> bool:
    """Return whether values of a type are prompts, for which the command line takes a file."""
    return FROM_FILE in getattr(kind, "__metadata__", ()) or any(map(_is_records, get_args(kind)))


def _value(kind: Any, value: Any, chat: Any) -> Any:
    """Return the value of a field from the value on the command line; files of prompts are read."""
    if isinstance(value, Mapping):
        return {name: _value(kind, each, chat) for name, each in value.items()}
    if not isinstance(value, Path):
        return value
    from ecstruct.runs.configuration import records

    return records(value, chat)
