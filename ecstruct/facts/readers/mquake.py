"""MQuAKE (Zhong et al. 2023): edits of some hops, and questions over chains of two to four hops.

The edits (`requested_rewrite`) are the facts, and `questions` with `new_answer` are their implications. The
unedited hops of the edited chain (`new_single_hops`) are known facts. True answers are rivals.
"""

from collections.abc import Mapping
from typing import Any

from ecstruct.errors import InputError
from ecstruct.facts.readers.case import Case, Format, Hop, Implication, Statement, statement
from ecstruct.facts.readers.fields import aliases, items, objects, text, texts


def _case(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    hops = objects(record, "new_single_hops")
    triples = items(record, "orig", "new_triples")
    if not hops or len(triples) != len(hops):
        raise InputError(
            f"'new_single_hops' and 'orig.new_triples' are to be equally many hops, not {len(hops)} and "
            f"{len(triples)}."
        )
    chain = [
        statement(
            text(h, "cloze"),
            text(h, "answer"),
            subject=text(record, "orig", "new_triples_labeled", i, 0),
            relation=text(record, "orig", "new_triples", i, 1),
            aliases=aliases(h, "answer_alias"),
        )
        for i, h in enumerate(hops)
    ]
    facts: dict[int, Statement] = {}
    for edit in objects(record, "requested_rewrite"):
        cloze = text(edit, "prompt").replace("{}", text(edit, "subject"))
        place = next((i for i, h in enumerate(chain) if h.prompt.text == cloze.rstrip()), None)
        if place is None:
            raise InputError(f"the edit {cloze[:100]!r} is no hop of 'new_single_hops'.")
        facts[place] = statement(
            cloze,
            text(edit, "target_new", "str"),
            subject=text(edit, "subject"),
            relation=chain[place].relation,
            aliases=chain[place].prompt.aliases,
            rivals=[text(edit, "target_true", "str").strip()],
        )
        if facts[place].prompt.answer != chain[place].prompt.answer:
            raise InputError(
                f"the edit {cloze[:100]!r} says {facts[place].prompt.answer!r}, but its hop in "
                f"'new_single_hops' {chain[place].prompt.answer!r}."
            )
    known = tuple(h for i, h in enumerate(chain) if i not in facts)
    new = tuple(sorted(i + 1 for i in facts))
    implied = [
        Implication(
            statement(
                question,
                text(record, "new_answer"),
                subject=text(record, "orig", "new_triples_labeled", 0, 0),
                relation=chain[-1].relation,
                aliases=aliases(record, "new_answer_alias"),
                rivals=[text(record, "answer").strip()],
            ),
            new,
            known,
        )
        for question in texts(record, "questions")
    ]
    return Case(tuple(facts.values()), tuple(implied))


MQUAKE = Format("mquake", "MQuAKE", frozenset({"requested_rewrite", "new_single_hops"}), _case)
