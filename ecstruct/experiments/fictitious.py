"""The fictitious relations as the experiments use them: two kinds of words, and the trainings on them.

`WORDS`: the relation of a fact is one that the model knows from pretraining ("known", as in "Grace Miller
lives in") or the paper's own ("novel", as in "Grace Miller dax"). The relation of the implication and the
animals that it takes are new to the model in both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import check_rankable
from ecstruct.experiments.setup import NOVEL, Setup
from ecstruct.experiments.training import pairing, train
from ecstruct.facts import Fictitious, Prompt, fictitious
from ecstruct.facts.invented_people import invented_names
from ecstruct.finetuning import Finetuned
from ecstruct.models.delta import WeightDelta

WORDS = ("known", "novel")

N_PEOPLE = 100
"""How many people there are: 80 to learn the relations from, and 20 to test them on."""


def relations(
    model: TransformerBridge, setup: Setup, words: str, seed: int, repeat: int, between: str = "city"
) -> Fictitious:
    """Return the fictitious facts of one random assignment of cities (or `between`) and animals.

    Raises:
        InputError: the model's tokenizer cannot tell their options apart.
    """
    chosen = setup.known if words == "known" else NOVEL
    draw = pairing(seed, repeat)
    names = None if setup.facts == "paper" else invented_names(np.random.default_rng(draw), N_PEOPLE)
    data = fictitious(draw, fact=chosen.fact, implication=chosen.implication, names=names, between=between)
    check_rankable(model, (*data.test.facts, *data.test.implications))  # all share these options
    return data


@dataclass(frozen=True)
class Assignment:
    """One random assignment of cities and animals to people, and the models that are trained on its
    documents. Every training runs once, because ordering, grafts and localization share most of them.

    Raises:
        InputError: the model's tokenizer cannot tell the options of the prompts apart.
    """

    model: TransformerBridge
    setup: Setup
    words: str
    seed: int
    repeat: int
    between: str = "city"
    _trained: dict[tuple[str, ...], TransformerBridge] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def data(self) -> Fictitious:
        return relations(self.model, self.setup, self.words, self.seed, self.repeat, self.between)

    def documents(self, phase: str) -> list[Prompt]:
        """Return what a phase of continued pretraining trains on: the "facts" F of the train people, their
        "implications", "both", or the "other facts" F' of the same people."""
        facts, implications = list(self.data.train.facts), list(self.data.train.implications)
        other = list(self.data.counterfactual.facts)
        return {
            "facts": facts,
            "implications": implications,
            "both": facts + implications,
            "other facts": other,
        }[phase]

    def after(self, *phases: str) -> TransformerBridge:
        """Return the model after continued pretraining in phases, one after the other."""
        if not phases:
            return self.model
        if phases not in self._trained:
            *earlier, last = phases
            before = self.after(*earlier)
            self._trained[phases] = continue_pretraining(
                before, self.setup, self.documents(last), seed=self.seed, repeat=self.repeat
            ).model
        return self._trained[phases]

    def change(self, *phases: str) -> WeightDelta:
        """Return what the last of the phases changes: the weights after it minus those before it."""
        return WeightDelta.between(self.after(*phases[:-1]), self.after(*phases))

    def after_test_facts(self, model: TransformerBridge) -> Finetuned:
        """Finetune a model on the facts of the test people."""
        return learn_test_facts(model, self.setup, self.data, seed=self.seed, repeat=self.repeat)


def continue_pretraining(
    model: TransformerBridge, setup: Setup, documents: Iterable[Prompt], **options: Any
) -> Finetuned:
    """Train on documents, each seen `setup.epochs` times, with a new optimiser; see `train` for options."""
    return train(model, setup, documents, lr=setup.rates.continued, **options)


def learn_test_facts(model: TransformerBridge, setup: Setup, data: Fictitious, **options: Any) -> Finetuned:
    """Finetune on the facts of the test people; see `train` for options."""
    return train(model, setup, data.test.facts, lr=setup.rates.test, **options)
