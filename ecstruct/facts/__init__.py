"""Prompts and facts: what a model is taught, asked and ranked on.

`Prompt` is one text with its answer; a `FactSet` has the facts to finetune on and the implications
that follow from them; `first_hop`, `second_hop` and `fictitious` are those of the paper.
"""

from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.fictitious import Fictitious, fictitious
from ecstruct.facts.prompt import Prompt, PromptsLike, as_prompts, read_jsonl, write_jsonl
from ecstruct.facts.two_hop import PAPER_NAMES, first_hop, second_hop

__all__ = [
    "PAPER_NAMES",
    "FactSet",
    "Fictitious",
    "Prompt",
    "PromptsLike",
    "as_prompts",
    "fictitious",
    "first_hop",
    "read_jsonl",
    "second_hop",
    "write_jsonl",
]
