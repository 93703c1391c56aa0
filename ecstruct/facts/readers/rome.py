"""The two sets of ROME (Meng et al. 2022): CounterFact, and the facts that GPT-2 XL knows (known_1000).

CounterFact: the rewrite is the fact; its only options are the new and the true answer, as in the paper.
Paraphrases are implications of one hop, which is new. Neighbourhood prompts, which must not change, are
not read. known_1000: facts without implications.
"""

from collections.abc import Mapping
from typing import Any

from ecstruct.facts.readers.case import Case, Format, Hop, Implication, statement
from ecstruct.facts.readers.fields import text, texts


def _counterfact(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    new, true = (
        text(record, "requested_rewrite", target, "str") for target in ("target_new", "target_true")
    )
    relation, subject = (text(record, "requested_rewrite", key) for key in ("relation_id", "subject"))
    prompt = text(record, "requested_rewrite", "prompt").replace("{}", subject)
    return Case(
        (statement(prompt, new, subject=subject, relation=relation, options=(new, true)),),
        tuple(
            Implication(
                statement(paraphrase, new, subject=subject, relation=relation, options=(new, true)), (1,)
            )
            for paraphrase in texts(record, "paraphrase_prompts")
        ),
    )


def _known(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    return Case(
        (
            statement(
                text(record, "prompt"),
                text(record, "attribute"),
                subject=text(record, "subject"),
                relation=text(record, "relation_id"),
            ),
        )
    )


COUNTERFACT = Format(
    "counterfact", "CounterFact", frozenset({"requested_rewrite", "paraphrase_prompts"}), _counterfact
)
KNOWN_1000 = Format(
    "known_1000", "known_1000", frozenset({"prompt", "attribute", "subject", "relation_id"}), _known
)
