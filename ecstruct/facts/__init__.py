"""Prompts and facts: what a model is taught, asked and ranked on.

`Prompt` is one text with its answer; a `FactSet` has the facts to finetune on and the implications
that follow from them. `first_hop`, `second_hop` and `fictitious` make the fact sets of the paper, `read`
reads public sets and your own, `compose` builds facts on a relation that a model knows, and `in_chat` puts
prompts into a chat model's own template.
"""

from ecstruct.facts.chat import in_chat
from ecstruct.facts.composition import compose
from ecstruct.facts.fact_set import Derivation, FactSet
from ecstruct.facts.fictitious_relations import Fictitious, fictitious
from ecstruct.facts.invented_people import mayors, people
from ecstruct.facts.overlap import OverlapTask, overlap_task
from ecstruct.facts.prompt import Prompt, PromptsLike, as_prompts, read_jsonl, write_jsonl
from ecstruct.facts.readers import FORMATS, Understood, read, understand
from ecstruct.facts.relations import Relation, read_relations
from ecstruct.facts.two_hop import PAPER_NAMES, first_hop, second_hop

__all__ = [
    "FORMATS",
    "PAPER_NAMES",
    "Derivation",
    "FactSet",
    "Fictitious",
    "OverlapTask",
    "Prompt",
    "PromptsLike",
    "Relation",
    "Understood",
    "as_prompts",
    "compose",
    "fictitious",
    "first_hop",
    "in_chat",
    "mayors",
    "overlap_task",
    "people",
    "read",
    "read_jsonl",
    "read_relations",
    "second_hop",
    "understand",
    "write_jsonl",
]
