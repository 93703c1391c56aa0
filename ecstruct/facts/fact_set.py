"""Facts to finetune a model on, and the implications it is never trained on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt, as_prompts

_FEATURES = datasets.Features(
    {
        "prompt": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "options": datasets.Sequence(datasets.Value("string")),
        "subject": datasets.Value("string"),
        "template": datasets.Value("string"),
    }
)


@dataclass(frozen=True)
class FactSet:
    """The facts and the implications of one experiment; both are kept as tuples of `Prompt`.

    Prompts without options get those of `as_prompts`. There may be no implications, but at least
    one fact.
    """

    facts: Sequence[Prompt]
    implications: Sequence[Prompt]
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", as_prompts(self.facts))
        implications = as_prompts(self.implications) if self.implications else ()
        object.__setattr__(self, "implications", implications)

    def shuffled(self, seed: int) -> "FactSet":
        """The same facts with their answers dealt out anew, so that no prompt keeps its answer; each gets
        one of its options. The implications stay, and do not follow from the new facts.

        Raises:
            InputError: it is not possible, as when one answer is that of more than half of the facts.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.facts))
        answers = [self.facts[i].answer for i in rng.permutation(len(self.facts))]
        others = [set(self.facts[i].options or ()) - {self.facts[i].answer} for i in order]
        # With both sides in a random order, any matching is a random one.
        matched = maximum_bipartite_matching(
            csr_array([[answer in its for answer in answers] for its in others]), perm_type="column"
        )
        if (matched < 0).any():
            answer, count = Counter(answers).most_common(1)[0]
            raise InputError(
                f"the answers of the {len(answers)} facts cannot be dealt out so that each gets another of "
                f"its options ({answer!r} alone is that of {count}): use facts whose answers differ more."
            )
        facts = [
            replace(self.facts[i], answer=answers[j]) for i, j in sorted(zip(order, matched, strict=True))
        ]
        return FactSet(facts, self.implications, f"{self.name} (shuffled)".strip())

    def to_dataset(self) -> datasets.DatasetDict:
        """The splits `facts` and `implications` with columns prompt, answer, options, subject and
        template (null where a prompt has none); the name is the datasets' description. There is no
        split without prompts.
        """
        info = datasets.DatasetInfo(description=self.name, features=_FEATURES)
        splits = {"facts": self.facts, "implications": self.implications}
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(
                    _columns(prompts), info=info, split=datasets.NamedSplit(split)
                )
                for split, prompts in splits.items()
                if prompts
            }
        )

    @classmethod
    def from_dataset(cls, dataset: Mapping[Any, datasets.Dataset]) -> "FactSet":
        """The fact set of the splits `facts` and `implications`; the latter may be missing.

        `FactSet.from_dataset(data.to_dataset()) == data`.

        Raises:
            InputError: there is no split `facts`, or a row is no prompt.
        """
        if not isinstance(dataset, Mapping) or "facts" not in dataset:
            splits = ", ".join(map(repr, dataset)) if isinstance(dataset, Mapping) else "no splits"
            raise InputError(
                f"a fact set needs a datasets.DatasetDict with the splits 'facts' and "
                f"'implications', but this {type(dataset).__name__} has {splits}."
            )
        name = dataset["facts"].info.description or ""
        implications = as_prompts(dataset["implications"]) if "implications" in dataset else ()
        return cls(as_prompts(dataset["facts"]), implications, name)


def _columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    records = [prompt.to_record() for prompt in prompts]
    return {column: [record.get(column) for record in records] for column in _FEATURES}
