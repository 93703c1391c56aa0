"""Facts to finetune a model on, and the implications it is never trained on."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt, as_prompts
from ecstruct.io.values import bounded

_TEXT, _TEXTS = datasets.Value("string"), datasets.Sequence(datasets.Value("string"))
_FEATURES = {
    **{"prompt": _TEXT, "answer": _TEXT, "options": _TEXTS, "subject": _TEXT, "template": _TEXT},
    **{"aliases": _TEXTS, "wrapper": _TEXTS, "space": datasets.Value("bool"), "second": _TEXT},
}
_INTEGER = datasets.Value("int64")
_INDICES = ("from_facts", "from_known", "new_hops")


@dataclass(frozen=True)
class Derivation:
    """Why an implication holds: the indices of the `facts` and the `known` facts of its set from which it
    follows, and the numbers of its new hops, counted from 1 at its entity. There are no hops if it is not
    a chain of hops; everything is empty if its derivation is not known."""

    facts: tuple[int, ...] = ()
    known: tuple[int, ...] = ()
    new_hops: tuple[int, ...] = ()


@dataclass(frozen=True, repr=False)
class FactSet:
    """The facts and the implications of one experiment; both are kept as tuples of `Prompt`.

    `known` are facts that the model knows already and from which implications follow as well, such as the
    language of a city. `derivations` has one entry per implication, or is empty.

    Prompts without options get those of `as_prompts`. There must be at least one fact, but there may be
    no implications.

    Raises:
        InputError: There are no facts, or the derivations do not fit the prompts.
    """

    facts: Sequence[Prompt]
    implications: Sequence[Prompt]
    name: str = ""
    known: Sequence[Prompt] = ()
    derivations: Sequence[Derivation] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", as_prompts(self.facts))
        for field in ("implications", "known"):
            prompts = getattr(self, field)
            object.__setattr__(self, field, as_prompts(prompts) if prompts else ())
        object.__setattr__(self, "derivations", tuple(self.derivations))
        if self.derivations and len(self.derivations) != len(self.implications):
            raise InputError(
                f"there are {len(self.derivations)} derivations of {len(self.implications)} implications: "
                "give one for each, or none."
            )
        for i, derivation in enumerate(self.derivations):
            for field in ("facts", "known"):
                beyond = [j for j in getattr(derivation, field) if not 0 <= j < len(getattr(self, field))]
                if beyond:
                    raise InputError(
                        f"implication {i} follows from {field}[{beyond[0]}], but there are only "
                        f"{len(getattr(self, field))}: count from 0."
                    )

    def __repr__(self) -> str:
        """
        >>> FactSet([("Mia lives in", "Tokyo"), ("Al lives in", "Rome")], (), "two")
        <FactSet two: 2 facts, 0 implications>
        """
        name, known = (
            f" {self.name}" if self.name else "",
            f", {len(self.known)} known" if self.known else "",
        )
        return f"<FactSet{name}: {len(self.facts)} facts, {len(self.implications)} implications{known}>"

    def subset(self, implications: Iterable[int]) -> "FactSet":
        """Return the implications with these indices, and the facts and known facts they follow from.

        `data.subset(i for i, d in enumerate(data.derivations) if d.new_hops == (1,))` has the implications
        whose first hop is new. Options stay as they are.

        Raises:
            InputError: The set has no derivations, or no fact is left.
        """
        if not self.derivations:
            raise InputError(
                f"the fact set {self.name!r} has no derivations, which say what its implications follow "
                "from: give them, as ecstruct.facts.read and compose do."
            )
        chosen = list(implications)
        derivations = [self.derivations[i] for i in chosen]
        facts, known = (
            sorted({j for d in derivations for j in getattr(d, field)}) for field in ("facts", "known")
        )
        if not facts:
            raise InputError("no fact is left that an implication follows from: choose other implications.")
        return FactSet(
            [self.facts[j] for j in facts],
            [self.implications[i] for i in chosen],
            self.name,
            [self.known[j] for j in known],
            [
                Derivation(tuple(map(facts.index, d.facts)), tuple(map(known.index, d.known)), d.new_hops)
                for d in derivations
            ],
        )

    @bounded
    def shuffled(self, seed: int) -> "FactSet":
        """Return the same facts with shuffled answers: no fact keeps its answer, and each gets one of its
        options. The implications stay but do not follow from the new facts, so there are no derivations.

        Raises:
            InputError: This is impossible, for example if more than half of the facts have one answer.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.facts))
        answers = [self.facts[i].answer for i in rng.permutation(len(self.facts))]
        others = [set(self.facts[i].options or ()) - {self.facts[i].answer} for i in order]
        # Both sides are in random order, so the matching is random.
        matched = maximum_bipartite_matching(
            csr_array([[answer in options for answer in answers] for options in others]), perm_type="column"
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
        """Return the splits `facts`, `implications` and `known` with columns prompt, answer, options,
        subject, template, aliases, wrapper and space (null where a prompt has none). The set's name is the
        datasets' description. Implications with derivations also have the columns from_facts, from_known
        and new_hops. Splits without prompts are left out.
        """
        facts, implied, known = (
            [prompt.to_record() for prompt in prompts]
            for prompts in (self.facts, self.implications, self.known)
        )
        features = dict.fromkeys(("facts", "implications", "known"), _FEATURES)
        if self.derivations:
            features["implications"] = _FEATURES | dict.fromkeys(_INDICES, datasets.Sequence(_INTEGER))
            for record, d in zip(implied, self.derivations, strict=True):
                record.update(zip(_INDICES, map(list, (d.facts, d.known, d.new_hops)), strict=True))
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(
                    {column: [record.get(column) for record in records] for column in features[split]},
                    info=datasets.DatasetInfo(
                        description=self.name, features=datasets.Features(features[split])
                    ),
                    split=datasets.NamedSplit(split),
                )
                for split, records in zip(features, (facts, implied, known), strict=True)
                if records
            }
        )

    @classmethod
    def from_dataset(cls, dataset: Mapping[Any, datasets.Dataset]) -> "FactSet":
        """Make a fact set of the splits `facts`, `implications` and `known`; the latter two may be missing.

        `FactSet.from_dataset(data.to_dataset()) == data`.

        Raises:
            InputError: There is no split `facts`, or a row is not a prompt.
        """
        if not isinstance(dataset, Mapping) or "facts" not in dataset:
            splits = ", ".join(map(repr, dataset)) if isinstance(dataset, Mapping) else "no splits"
            raise InputError(
                f"a fact set needs a datasets.DatasetDict with the splits 'facts' and "
                f"'implications', but this {type(dataset).__name__} has {splits}."
            )
        name = dataset["facts"].info.description or ""
        prompts = {s: as_prompts(dataset[s]) for s in ("facts", "implications", "known") if s in dataset}
        derivations: list[Derivation] = []
        if "implications" in dataset and set(_INDICES) <= set(dataset["implications"].column_names):
            columns = [dataset["implications"][name] for name in _INDICES]
            derivations = [Derivation(*map(tuple, row)) for row in zip(*columns, strict=True)]
        return cls(
            prompts["facts"],
            prompts.get("implications", ()),
            name,
            prompts.get("known", ()),
            derivations,
        )
