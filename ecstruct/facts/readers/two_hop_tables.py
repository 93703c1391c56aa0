"""Tables of two-hop facts about real entities, e1 -r1-> e2 -r2-> e3: TwoHopFact and SOCRATES (Yang et al.
2024), Hopping Too Late (Biran et al. 2024).

Either hop may be new. If the first is new, r1(e1) is the fact and r2(e2) is known; if the second is new, it
is the other way round. The implication is r2(r1(e1)).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ecstruct.facts.readers.case import Case, Format, Hop, Implication, statement
from ecstruct.facts.readers.fields import aliases, text


def _two_hop_fact(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    asked = [text(record, f"{key}.prompt") for key in ("r1(e1)", "r2(e2)", "r2(r1(e1))")]
    return _taught(record, asked, "{}.value", "{}.aliases", hop)


def _hopping(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    # The authors ask for single hops in this form.
    asked = [
        f"{text(record, f'{r}_template').replace('{}', text(record, f'{e}_label'))} is"
        for r, e in (("r1", "e1"), ("r2", "e2"))
    ]
    return _taught(record, [*asked, text(record, "source_prompt")], "{}_label", "{}_aliases", hop)


def _taught(record: Mapping[str, Any], asked: Sequence[str], name: str, others: str, hop: Hop) -> Case:
    """Return the case of a record, given the prompts of r1(e1), r2(e2) and r2(r1(e1)), and the keys under
    which an entity has its `name` and its `others`, with {} for the entity."""
    first, second, both = (
        statement(
            prompt,
            text(record, name.format(answer)),
            subject=text(record, name.format(subject)),
            aliases=aliases(record, others.format(answer)),
        )
        for prompt, subject, answer in zip(asked, ("e1", "e2", "e1"), ("e2", "e3", "e3"), strict=True)
    )
    if hop == "first":
        return Case((first,), (Implication(both, (1,), (second,)),))
    return Case((second,), (Implication(both, (2,), (first,)),))


_PROMPTS = frozenset({"r1(e1).prompt", "r2(e2).prompt", "r2(r1(e1)).prompt"})
TWO_HOP_FACT = Format("twohopfact", "TwoHopFact or SOCRATES", _PROMPTS, _two_hop_fact, either_hop=True)
HOPPING = Format(
    "hopping",
    "Hopping Too Late",
    frozenset({"source_prompt", "r1_template", "r2_template", "e1_label"}),
    _hopping,
    either_hop=True,
)
