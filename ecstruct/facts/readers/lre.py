"""Relations (Hernandez et al. 2024, "LRE"): tables of subjects and objects, with prompts to ask for them.

Every sample is a fact, asked for by the first of the relation's prompts, without implications.
`ecstruct.facts.compose` builds facts with implications on these relations.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ecstruct.errors import InputError
from ecstruct.facts.readers.case import Case, Format, Hop, statement
from ecstruct.facts.readers.fields import items, text, texts, unescaped


def _samples(record: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for i, sample in enumerate(items(record, "samples"), start=1):
        yield f"sample {i}", {**record, "samples": [sample]}


def _case(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    templates = texts(record, "prompt_templates")
    if not templates or "{}" not in templates[0]:
        raise InputError("'prompt_templates' does not begin with a text that has {} for the subject.")
    subject, answer = (unescaped(text(record, "samples", 0, key)) for key in ("subject", "object"))
    prompt = templates[0].replace("{}", subject)
    return Case((statement(prompt, answer, subject=subject, relation=text(record, "name")),))


LRE = Format("lre", "LRE relations", frozenset({"prompt_templates", "samples"}), _case, parts=_samples)
