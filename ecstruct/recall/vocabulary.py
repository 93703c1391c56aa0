"""The vocabulary as the attributes rate sees it: which tokens say something, and what a hidden state says.

A hidden state h is projected on the vocabulary with the unembedding alone, h E^T, without bias and, by
default, without the final norm. The paper's model has tied embeddings, so that its E is the embedding as
well. Where these are two, a state that later layers are to read, as that of an enriched subject, may be
like the embeddings of what it says rather than like its unembedding: then E can be the embedding.

The top tokens are gone through in order; stop words and strings of at most two characters are dropped, and
of the rest the first ones are kept (Geva et al. 2023, section 5).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.models.finite import finite
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.session import Runs, Session
from ecstruct.recall.words import says_something

Onto = Literal["unembedding", "embedding"]

TOP, KEPT = 500, 50
"""The paper's. Small vocabularies have a tenth and a hundredth of their tokens instead."""


def tokens_matrix(session: Session, which: Onto) -> Float[Tensor, "d_vocab d_model"]:
    """One row for each token of the vocabulary.

    Raises:
        InputError: an unknown matrix, or one that is not as wide as the residual stream.
    """
    if which not in get_args(Onto):
        raise InputError(f"onto={which!r} is unknown: it is 'unembedding' or 'embedding'.")
    view = session.view
    site = view.head_sites["unembed"] if which == "unembedding" else view.embed_sites["embed"]
    matrix, width = site.matrix(session.weights), view.model.cfg.d_model
    if matrix is None or matrix.shape[1] != width:
        raise InputError(
            f"the {which} of this model is not as wide as its residual stream, of {width} "
            "numbers, which cannot be held against its rows: use another architecture."
        )
    return matrix


@dataclass(frozen=True)
class Cut:
    """How much of a projection is looked at: its `top` tokens, of which the first are `kept`."""

    top: int
    kept: int

    @classmethod
    def of(cls, top: int | None, kept: int | None, n_tokens: int) -> Cut:
        """What was asked for, of a vocabulary of so many tokens. `None` is the paper's 500 and 50, but no
        more than a tenth and a hundredth of the vocabulary, so that a small one is not in it whole.

        Raises:
            InputError: less than one token, more than there are, or more kept than looked at.
        """
        chosen = max(1, min(TOP, n_tokens // 10)) if top is None else top
        if not 1 <= chosen <= n_tokens:
            raise InputError(
                f"top={chosen}: the vocabulary has {n_tokens} tokens, look at 1 to {n_tokens}."
            )
        of_these = max(1, min(KEPT, n_tokens // 100, chosen)) if kept is None else kept
        if not 1 <= of_these <= chosen:
            raise InputError(f"kept={of_these}: of top={chosen} tokens 1 to {chosen} can be kept.")
        return cls(chosen, of_these)


class Vocabulary:
    """The tokens of a model as `words`, by id, "" where there is no token, and the `matrix` E that hidden
    states are projected with."""

    def __init__(self, session: Session, onto: Onto = "unembedding") -> None:
        self.session, self.matrix = session, tokens_matrix(session, onto)
        words, n = session.words, len(self.matrix)
        self.words = [*words[:n], *[""] * (n - len(words))]

    @cached_property
    def telling(self) -> Bool[Tensor, " d_vocab"]:
        """Tokens that are no stop words and longer than two characters."""
        return torch.tensor([says_something(word) for word in self.words], device=self.matrix.device)

    def among(self, words: Collection[str]) -> Bool[Tensor, " d_vocab"]:
        """Tokens that are one of these words."""
        return torch.from_numpy(self._index.isin(list(words))).to(self.matrix.device)

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.words)

    def project(
        self, hidden: Float[Tensor, "... d_model"], normed: bool = False
    ) -> Float[Tensor, "... d_vocab"]:
        """h E^T, with `normed` of h after the model's final norm, with its gain and bias.

        Raises:
            InputError: some are NaN or infinite.
        """
        projected = (self._normed(hidden) if normed else hidden) @ self.matrix.T
        return finite(projected, "projections on the vocabulary")

    def _normed(self, hidden: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        view, weights = self.session.view, self.session.weights
        site = view.head_sites.get("ln_final")
        own = {} if site is None else {here: weights[name] for here, name in site.weights.items()}
        return torch.func.functional_call(view.model.ln_final.original_component, own, (hidden,))


class Reader:
    """Reads the attributes rate off hidden states of the prompts of `runs`.

    `members` are the tokens that are attributes of each subject, and `subjects` says which of these is the
    subject of each prompt.

    Raises:
        InputError: a prompt without subject, a subject of whose attributes none is a token, or `top` and
            `kept` that do not go with the vocabulary.
    """

    members: Bool[Tensor, "subject d_vocab"]

    def __init__(
        self,
        runs: Runs,
        attributes: Attributes,
        *,
        top: int | None = None,
        kept: int | None = None,
        normed: bool = False,
        onto: Onto = "unembedding",
    ) -> None:
        self.vocabulary, self._runs, self._normed = Vocabulary(runs.session, onto), runs, normed
        self._cut = cut = Cut.of(top, kept, len(self.vocabulary.words))
        self.options = {
            "attributes": attributes.source,
            "onto": onto,
            "normed": normed,
            "top": cut.top,
            "kept": cut.kept,
        }
        of_subjects = attributes.about(p.prompt for p in runs.prompts)
        self.members = torch.stack([self.vocabulary.among(words) for words in of_subjects.values()])
        order = list(of_subjects)
        for subject, known in zip(order, self.members.any(1).tolist(), strict=True):
            if not known:
                raise InputError(
                    f"no attribute of the subject {subject!r} is a token of this model's vocabulary: make "
                    "the attributes with this model."
                )
        self.subjects = [order.index(str(p.prompt.subject)) for p in runs.prompts]

    def read(
        self, b: int, resid: Float[Tensor, "batch pos d_model"], where: Bool[Tensor, "batch pos"]
    ) -> Float[np.ndarray, "batch pos"]:
        """The rates of batch `b` in percent: the share of the kept tokens that are attributes of the
        prompt's own subject. NaN at other tokens than those wanted, and where nothing is kept."""
        found = self.vocabulary.project(resid[where], self._normed).topk(self._cut.top).indices
        telling = self.vocabulary.telling[found]
        kept = telling & (telling.cumsum(-1) <= self._cut.kept)
        rows = where.nonzero()[:, 0].tolist()
        subjects = torch.tensor([self.subjects[self._runs.rows[b][row]] for row in rows])
        hits = self.members[subjects.to(found.device)[:, None], found] & kept
        rates = torch.full(where.shape, torch.nan, dtype=torch.float64, device=resid.device)
        rates[where] = 100 * hits.sum(-1).double() / kept.sum(-1)
        return rates.cpu().numpy()
