"""Which part of a program has which role: the definitions of the scores, in the interpreter of RASP.

A component C is what the compiler makes of some values: of one, a head; of all tables of a layer, its MLP.
Let W be the program before it is taught, W' the one after, and `late` the components after C. Then, at one
token,

    I = R[C by W'] - R        D = R[C by W, of what it reads in W'] - R
    U = (R[late by W'] - R[late by W', C as for the other prompt]) - (R - R[C as for the other prompt])

From a component B to a later component C goes, at all tokens, what C is queried of through B, and what C
reads of the change of B:

    R[C by W'] - R - (R[C by W', of what it reads with B as for the other prompt]
                      - R[C by W, of what it reads with B as for the other prompt])
    R[C by W, of what it reads with B by W'] - R

A value that the program says has its part of the logits, which are 0 for all other words; R is the logit of
the answer minus the mean of those of all options.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from compiled import Compiled, Component
from parts import DOWNSTREAM, INFORMATIVE, UPSTREAM
from tracr.rasp import causal_eval, rasp

ROLES = (INFORMATIVE, UPSTREAM, DOWNSTREAM)

Words = Sequence[str]
Values = list[rasp.Value]


class Run(causal_eval.CausalEvaluator):
    """A program on one prompt, with some values computed as after it was taught, and others written."""

    def __init__(
        self,
        pair: "Pair",
        words: Words,
        new: Collection[str] = (),
        written: Mapping[str, Values] | None = None,
        token: int | None = None,
    ) -> None:
        """`new`: labels of what is computed as after. `written`: values, at `token` or at all of them."""
        super().__init__()
        self._pair, self._words, self._new = pair, words, new
        self._written, self._token = written or {}, token
        self._known: dict[str, Values] = {}

    def evaluate(self, expr: rasp.RASPExpr, xs: Words) -> Values:
        """The values of an expression, whichever of the two programs it is from."""
        label = expr.label
        if label not in self._known:
            program = self._pair.after if label in self._new else self._pair.before
            values = super().evaluate(program.expressions[label], xs)
            if label in self._written:
                at = range(len(xs)) if self._token is None else [self._token]
                values = [self._written[label][t] if t in at else value for t, value in enumerate(values)]
            self._known[label] = values
        return self._known[label]

    def of(self, labels: Collection[str]) -> dict[str, Values]:
        """Values by their labels."""
        return {label: self.evaluate(self._pair.before.expressions[label], self._words) for label in labels}

    @property
    def said(self) -> list[Values]:
        """What the program says at every token, value by value."""
        return [*self.of(self._pair.before.sinks).values()]


@dataclass(frozen=True)
class Pair:
    """A program before and after it is taught."""

    before: Compiled
    after: Compiled

    def said(self, state: str, words: Words) -> list[Values]:
        """What it says at every token of a prompt, value by value."""
        return Run(self, words, self.before.expressions if state == "after" else ()).said

    def scores(self, prompts: Sequence[tuple[Words, str]]) -> dict[tuple[str, str], np.ndarray]:
        """By role and component, the scores [prompt, token] of prompts with their answers, which are one
        another's baselines by twos."""
        options = {answer for _, answer in prompts}
        found = {}
        for component in self.before.components:
            for i, (words, answer) in enumerate(prompts):
                other, _ = prompts[i ^ 1]
                for t in range(len(words)):
                    reward = _Reward(self, words, answer, options, component, t)
                    for role, value in zip(ROLES, reward.scores(other), strict=True):
                        scores = found.setdefault(
                            (role, component.name), np.zeros((len(prompts), len(words)))
                        )
                        scores[i, t] = value
        return found

    def edges(self, prompts: Sequence[tuple[Words, str]]) -> dict[tuple[str, str, str], list[float]]:
        """By role of the second of two components, and both of them, what goes from one to the other, by
        prompt."""
        options = {answer for _, answer in prompts}
        found = {}
        for second in self.before.components:
            rewards = [_Reward(self, words, answer, options, second) for words, answer in prompts]
            for first in self.before.components:
                if first.place >= second.place:
                    continue
                others = [prompts[i ^ 1][0] for i in range(len(prompts))]
                pairs = [each.edges(first, other) for each, other in zip(rewards, others, strict=True)]
                queried, read = zip(*pairs, strict=True)
                found[INFORMATIVE, first.name, second.name] = list(queried)
                found[DOWNSTREAM, first.name, second.name] = list(read)
        return found


@dataclass(frozen=True)
class _Reward:
    """R of one prompt, with one component changed at one token, or at all of them."""

    pair: Pair
    words: Words
    answer: str
    options: Collection[str]
    component: Component
    token: int | None = None

    def __call__(self, new: Collection[str] = (), written: Mapping[str, Values] | None = None) -> float:
        said = Run(self.pair, self.words, new, written, self.token).said
        each = [
            (at_end == self.answer) - (at_end in self.options) / len(self.options) for *_, at_end in said
        ]
        return sum(each) / len(each)

    def scores(self, other: Words) -> tuple[float, float, float]:
        """I, U and D."""
        pair, labels, place = self.pair, self.component.labels, self.component.place
        late = {label for c in pair.before.components if c.place > place for label in c.labels}
        every = set(pair.before.expressions)
        by_new = Run(pair, self.words, labels).of(labels)
        of_new = Run(pair, self.words, every - set(labels)).of(labels)
        of_other = Run(pair, other).of(labels)
        upstream = self(late) - self(late, of_other) - (self() - self(written=of_other))
        return self(written=by_new) - self(), upstream, self(written=of_new) - self()

    def edges(self, first: Component, other: Words) -> tuple[float, float]:
        """What is queried of this component through the first one, and what it reads of that one's change.
        Runs in which the first one is changed say what this one writes, which alone is kept of them."""
        pair, labels = self.pair, self.component.labels
        of_other = Run(pair, other).of(first.labels)
        by_new = Run(pair, self.words, first.labels).of(first.labels)
        own = Run(pair, self.words, labels).of(labels)
        asked_else = Run(pair, self.words, labels, of_other).of(labels)
        as_before = Run(pair, self.words, written=of_other).of(labels)
        read = Run(pair, self.words, written=by_new).of(labels)
        queried = self(written=own) - self() - (self(written=asked_else) - self(written=as_before))
        return queried, self(written=read) - self()
