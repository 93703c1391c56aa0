"""Records of ecstruct's own format, in JSONL, CSV or a dataset: `prompt` and `answer`, and optionally
`options`, `subject`, `template`, `aliases`, `wrapper`, `space` and `second`, as everywhere in ecstruct.

`role` is `fact` (the default), `implication` or `known`. Records with the same `case` belong together: an
implication follows from the facts and the known facts of its case. `new_hops` of an implication are counted
from 1. Prompts with the same template share their options. In tables, all of these values are texts, and
in tables of pandas also numbers such as 1.0 and NaN.
"""

from collections.abc import Mapping
from typing import Any

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt
from ecstruct.facts.readers.case import Case, Format, Hop, Implication, Statement
from ecstruct.facts.readers.fields import string_list

_ROLES = ("fact", "implication", "known")


def _case(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    given = {
        key: _whole(value) for key, value in record.items() if value not in (None, "") and value == value
    }
    keys = ("options", "aliases", "wrapper")
    lists = {key: found for key in keys if (found := string_list(given, key)) is not None}
    if isinstance(space := given.get("space"), str | int):
        given["space"] = _TRUTHS.get(str(space).lower(), space)
    prompt = Prompt.from_record({**given, **lists})
    label, role = given.get("case"), given.get("role", "fact")
    if label is not None and not isinstance(label, str | int):
        raise InputError(f"'case' is of type {type(label).__name__}, but must be a text or a number.")
    if role not in _ROLES:
        raise InputError(f"'role' is {str(role)[:50]!r}, but must be one of {', '.join(_ROLES)}.")
    statement, label = Statement(prompt, prompt.template), None if label is None else str(label)[:1000]
    if role == "implication":
        return Case(implied=(Implication(statement, _new_hops(given.get("new_hops"))),), label=label)
    return Case((statement,), label=label) if role == "fact" else Case(known=(statement,), label=label)


def _whole(value: Any) -> Any:
    """Return 1 for 1.0: pandas turns whole numbers into floats in a column with gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _new_hops(value: Any) -> tuple[int, ...]:
    hops = (
        [h.removesuffix(".0") for h in value.replace(",", " ").split()] if isinstance(value, str) else value
    )
    hops = [hops] if isinstance(hops, int) else list(map(_whole, hops or []))
    if isinstance(hops, list | tuple) and len(hops) <= 100 and all(str(h) in _NUMBERS for h in hops):
        return tuple(sorted(map(int, hops)))
    raise InputError(f"'new_hops' is {str(value)[:50]!r}, but must be numbers from 1 to {len(_NUMBERS)}.")


_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_NUMBERS = frozenset(map(str, range(1, 101)))

OWN = Format("prompts", "prompts of ecstruct", frozenset({"prompt", "answer"}), _case)
