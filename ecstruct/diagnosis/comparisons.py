"""What two models answer, and the comparisons that decide whether a number is more than chance.

**Shuffled answers.** If the model has learnt nothing of which answer belongs to which prompt, the prompts
may as well have each other's answers. With s_i(a) a number of prompt i and its option a, such as the rank
that a has lost from W to W',

    p = share of the permutations pi with mean_i s_i(a_pi(i)) >= mean_i s_i(a_i)

An answer that is no option of a prompt has the mean of the prompt's options there.

**Gained and lost.** Of the prompts that changed, as many would have changed for the worse as for the better
by chance: p is that of the one-sided sign test.

Both p are compared with `LEVEL`. They are NaN, and the question cannot be told, if no outcome on these
prompts would have a p as small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import binom, rankdata

from ecstruct.engine.forward import embed, logits_of
from ecstruct.engine.session import Session
from ecstruct.evaluate import rank_of
from ecstruct.facts.prompt import Prompt, PromptsLike
from ecstruct.facts.tokens import Batch, TokenizedPrompt

LEVEL = 0.05
"""One comparison in twenty passes it by chance."""

_PERMUTATIONS, _EVERY = 2000, 6
"""How many permutations are drawn; of so many prompts or fewer, every permutation is taken once."""

OfOptions = Sequence[Float[np.ndarray, " option"]]
"""A number for every option of every prompt."""


class Compared(NamedTuple):
    """The mean over prompts, that with shuffled answers, and p."""

    mean: float
    shuffled: float
    p: float


@dataclass(frozen=True)
class Answers:
    """The log-probabilities, in nats, of the first tokens of every prompt's options, after the prompt, and
    the ranks of the right answers (with their aliases), under one set of weights."""

    prompts: Sequence[TokenizedPrompt]
    logprobs: OfOptions
    ranks: Float[np.ndarray, " prompt"]

    @classmethod
    def of(cls, session: Session, prompts: PromptsLike) -> Answers:
        """Ask a model.

        Raises:
            InputError: a prompt that cannot be used, see `ecstruct.facts.tokens.tokenize`.
        """
        return cls(*asked(session, session.tokenize(prompts)))

    @property
    def option_ranks(self) -> list[np.ndarray]:
        """The rank that every option has among the others, ties counted half."""
        return [rankdata(-its) - 1 for its in self.logprobs]

    @property
    def chosen(self) -> list[str]:
        """The option of highest probability, of each prompt."""
        best = zip(self.prompts, self.logprobs, strict=True)
        return [(t.prompt.options or ())[int(its.argmax())] for t, its in best]

    @property
    def first(self) -> Compared:
        """Compare the share of right answers that come first."""
        return self.shuffled(self.first_if(np.ones(len(self.prompts), bool)))

    @property
    def known(self) -> bool | None:
        """Whether most answers come first, and more of them than shuffled answers; None if that cannot be
        told."""
        return passes(self.first.p) if np.median(self.ranks) == 0 else False

    @property
    def loss(self) -> float:
        """The mean loss of the right answers' first tokens, in nats."""
        return -self.shuffled(self.logprobs).mean

    @property
    def loss_of_others(self) -> float:
        """The mean loss of the other options."""
        sums = [its.sum() for its in self.logprobs]
        return float((sum(sums) + self.loss * len(sums)) / -sum(len(its) - 1 for its in self.logprobs))

    def first_if(self, chosen: Bool[np.ndarray, " prompt"]) -> OfOptions:
        """Return 1 for the option that comes first after a `chosen` prompt, and 0 for all others."""
        both = zip(self.option_ranks, chosen, strict=True)
        return [(its == 0).astype(float) * of for its, of in both]

    def since(self, before: Answers) -> Compared:
        """Compare by how much the right answers' ranks fell since another state."""
        fell = zip(before.option_ranks, self.option_ranks, strict=True)
        return self.shuffled([old - new for old, new in fell])

    def shuffled(self, values: OfOptions, answers: Sequence[str] | None = None) -> Compared:
        """Compare the mean of the right answers' values, or of other `answers`, with that of shuffled
        ones."""
        given = [t.prompt.answer for t in self.prompts] if answers is None else answers
        names, own = np.unique(given, return_inverse=True)
        table = np.empty((len(own), len(names)))
        for i, (t, its) in enumerate(zip(self.prompts, values, strict=True)):
            of = dict(zip(t.prompt.options or (), its, strict=True))
            table[i] = [of.get(name, its.mean()) for name in names]
        every = np.arange(len(own))
        if len(own) <= _EVERY:
            drawn = np.array([*permutations(every)])
        else:
            drawn = np.random.default_rng(0).permuted(np.tile(every, (_PERMUTATIONS, 1)), axis=1)
            drawn = np.concatenate([every[None], drawn])
        means, mean = table[every, own[drawn]].mean(1), float(table[every, own].mean())
        least = (own[drawn] == own).all(1).mean()
        p = float((means >= mean - 1e-9).mean()) if least < LEVEL else np.nan
        return Compared(mean, float(means.mean()), p)


def asked(
    session: Session, prompts: Sequence[TokenizedPrompt]
) -> tuple[Sequence[TokenizedPrompt], list[np.ndarray], np.ndarray]:
    """Return the prompts, the log-probabilities of their options, and the ranks of their answers."""
    logprobs, ranks = [np.empty(0)] * len(prompts), np.empty(len(prompts))

    def run(rows: list[int], batch: Batch) -> None:
        logits = logits_of(session, embed(session, batch)).cpu()
        for row, its in zip(rows, logits.double().log_softmax(-1), strict=True):
            logprobs[row] = its[list(prompts[row].option_ids)].numpy()
            ranks[row] = rank_of(prompts[row], its)

    session.each_batch(prompts, run)
    return prompts, logprobs, ranks


def written_out(session: Session, prompts: Sequence[TokenizedPrompt]) -> float:
    """Return the share of the answers of several tokens of which, once the first token is there, the model
    predicts all others, each after the ones before; NaN if there are no such answers."""
    no_options: Any = {"option_ids": (), "alias_ids": ()}
    of = [(i, k) for i, t in enumerate(prompts) for k in range(1, len(t.answer_ids))]
    rest = [
        replace(t, ids=t.ids + t.answer_ids[:k], answer_ids=t.answer_ids[k : k + 1], **no_options)
        for t, k in ((prompts[i], k) for i, k in of)
    ]
    if not rest:
        return float("nan")
    predicted = pd.Series(asked(session, rest)[2] == 0).groupby([i for i, _ in of]).all()
    return float(predicted.mean())


def in_context(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return every prompt after another one of these that has another answer, with that answer."""

    def other(i: int) -> Prompt:
        others = (*prompts[i - 1 :: -1], *prompts[:i:-1])
        return next((p for p in others if p.answer != prompts[i].answer), others[0])

    return [
        replace(
            p,
            text=f"{(q := other(i)).text}{' ' * q.space}{q.answer}\n{p.text}",
            subject=None,
            template="in context",
        )
        for i, p in enumerate(prompts)
    ]


def sign_test(before: np.ndarray, after: np.ndarray) -> tuple[int, int, float]:
    """Return how many ranks fell, how many rose, and p that so many fall by chance; NaN if no outcome has a
    p below `LEVEL`."""
    fell, rose = int((after < before).sum()), int((after > before).sum())
    p = float(binom.sf(fell - 1, fell + rose, 0.5))
    return fell, rose, p if 0.5 ** len(before) < LEVEL else float("nan")


def passes(p: float) -> bool | None:
    """Return whether p is below `LEVEL`; None if it cannot be told."""
    return None if np.isnan(p) else p < LEVEL
