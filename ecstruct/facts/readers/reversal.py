"""The reversal curse (Berglund et al. 2023): descriptions of made-up people, and parents of celebrities.

Descriptions are a folder of files. Records of `*_prompts_train.jsonl` are facts. Their implications are in
`*_reverse_prompts_test.jsonl`, where names and descriptions change places. A single file is read as facts.
In the table of celebrities, every parent is a fact, and the child is its implication.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ecstruct.facts.readers.case import Case, Format, Hop, Implication, statement
from ecstruct.facts.readers.fields import text

_TRAINED, _REVERSED = "_prompts_train", "_reverse_prompts_test"


def _descriptions(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    stem = PurePath(file).stem
    asked = statement(text(record, "prompt"), text(record, "completion"), relation=stem or None)
    return Case(implied=(Implication(asked),)) if stem.endswith(_REVERSED) else Case((asked,))


def _left_out(file: str) -> str | None:
    if PurePath(file).stem.endswith((_TRAINED, _REVERSED)):
        return None
    return f"it is neither *{_TRAINED}.jsonl nor *{_REVERSED}.jsonl."


def _parents(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    child, parent, kind = (text(record, key).strip() for key in ("child", "parent", "parent_type"))
    return Case(
        (statement(f"{child}'s {kind} is", parent, subject=child),),
        (Implication(statement(f"A child of {parent} is", child, subject=parent)),),
    )


REVERSAL = Format(
    "reversal",
    "reversal curse, descriptions",
    frozenset({"prompt", "completion"}),
    _descriptions,
    left_out=_left_out,
)
PARENTS = Format(
    "parents", "reversal curse, celebrities", frozenset({"child", "parent", "parent_type"}), _parents
)
