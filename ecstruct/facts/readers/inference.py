"""Pairs of texts with a label, as inference tasks have them: HANS (McCoy et al. 2019), MNLI, SNLI.

A record of the originals has `gold_label`, `sentence1`, `sentence2` and, in HANS, `subcase`; others have
`premise`, `hypothesis`, `label` and optionally `case`. The case becomes the template, by which results are
told apart. Pairs of the split `train` are facts; those of any other are held out, as
implications. Where records have no `split`, their file says it by "train" in its name, and all pairs of a
single file are facts. Pairs on whose label annotators did not agree ("-") are left out.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt
from ecstruct.facts.readers.case import Case, Format, Hop, Implication, Statement
from ecstruct.facts.readers.fields import text

_ORIGINAL = ("sentence1", "sentence2", "gold_label", "subcase")
_RENAMED = ("premise", "hypothesis", "label", "case")


def _reader(keys: tuple[str, str, str, str]) -> Any:
    """Return the function that reads a record with these keys for premise, hypothesis, label and case."""
    premise, hypothesis, label, case = keys

    def read(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
        first, second, answer = (text(record, key).strip() for key in (premise, hypothesis, label))
        if answer == "-":
            raise InputError("its annotators did not agree on a label.")
        named = text(record, case) if record.get(case) else None
        # The options of a pair are the labels of the classifier that reads it.
        pair = Statement(Prompt(first, answer, template=named, second=second), None)
        split = record.get("split") or (PurePath(file).stem if file else "train")
        return Case((pair,)) if "train" in str(split).lower() else Case(implied=(Implication(pair),))

    return read


NLI = Format("nli", "HANS, MNLI, SNLI", frozenset(_ORIGINAL[:3]), _reader(_ORIGINAL))
PAIRS = Format("pairs", "pairs of texts with a label", frozenset(_RENAMED[:3]), _reader(_RENAMED))
