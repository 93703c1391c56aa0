"""Tables of two-hop facts about real entities, e1 -r1-> e2 -r2-> e3: TwoHopFact and SOCRATES (Yang et al.
2024), Hopping Too Late (Biran et al. 2024).

Either hop may be new. If the first is new, r1(e1) is the fact and r2(e2) is known; if the second is new, it
is the other way round. The implication is r2(r1(e1)).
"""

from collections.abc import Mapping
from typing import Any

from ecstruct.facts.readers.case import Case, Format, Hop, Implied, Said, said
from ecstruct.facts.readers.fields import aliases, text


def _two_hop_fact(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    def asked(prompt: str, subject: str, answer: str) -> Said:
        return said(
            text(record, f"{prompt}.prompt"),
            text(record, f"{answer}.value"),
            subject=text(record, f"{subject}.value"),
            aliases=aliases(record, f"{answer}.aliases"),
        )

    return _taught(
        asked("r1(e1)", "e1", "e2"), asked("r2(e2)", "e2", "e3"), asked("r2(r1(e1))", "e1", "e3"), hop
    )


def _hopping(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    def asked(prompt: str, subject: str, answer: str) -> Said:
        return said(
            prompt,
            text(record, f"{answer}_label"),
            subject=text(record, f"{subject}_label"),
            aliases=aliases(record, f"{answer}_aliases"),
        )

    # The authors ask for single hops in this form.
    r1, r2 = (
        f"{text(record, f'{r}_template').replace('{}', text(record, f'{e}_label'))} is"
        for r, e in (("r1", "e1"), ("r2", "e2"))
    )
    return _taught(
        asked(r1, "e1", "e2"), asked(r2, "e2", "e3"), asked(text(record, "source_prompt"), "e1", "e3"), hop
    )


def _taught(first: Said, second: Said, both: Said, hop: Hop) -> Case:
    if hop == "first":
        return Case((first,), (Implied(both, (1,), (second,)),))
    return Case((second,), (Implied(both, (2,), (first,)),))


_PROMPTS = frozenset({"r1(e1).prompt", "r2(e2).prompt", "r2(r1(e1)).prompt"})
TWO_HOP_FACT = Format("twohopfact", "TwoHopFact or SOCRATES", _PROMPTS, _two_hop_fact, either_hop=True)
HOPPING = Format(
    "hopping",
    "Hopping Too Late",
    frozenset({"source_prompt", "r1_template", "r2_template", "e1_label"}),
    _hopping,
    either_hop=True,
)
