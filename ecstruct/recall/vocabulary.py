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

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.models.finite import finite
from ecstruct.models.hooked import HookedView
from ecstruct.models.provenance import tokenizer_of
from ecstruct.models.sites import Weights
from ecstruct.recall.stop_words import STOP_WORDS

Onto = Literal["unembedding", "embedding"]

TOP, KEPT = 500, 50
"""The paper's. Small vocabularies have a tenth and a hundredth of their tokens instead."""


def tokens_matrix(view: HookedView, weights: Weights, which: Onto) -> Float[Tensor, "d_vocab d_model"]:
    """One row for each token of the vocabulary.

    Raises:
        InputError: an unknown matrix, or one that is not as wide as the residual stream.
    """
    if which not in get_args(Onto):
        raise InputError(f"onto={which!r} is unknown: it is 'unembedding' or 'embedding'.")
    site = view.head_sites["unembed"] if which == "unembedding" else view.embed_sites["embed"]
    matrix = site.matrix(weights)
    if matrix is None or matrix.shape[1] != view.model.cfg.d_model:
        raise InputError(
            f"the {which} of this model is not as wide as its residual stream, of {view.model.cfg.d_model} "
            "numbers, which cannot be held against its rows: use another architecture."
        )
    return matrix


def word_of(token: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A token as tokens are compared: its text in lower case, without a marker of a space or white
    space."""
    return tokenizer.convert_tokens_to_string([token]).strip().removeprefix("##").lower()


def says_something(word: str) -> bool:
    """Whether a word, in lower case, is longer than two characters and no stop word.

    >>> says_something("tokyo"), says_something("the"), says_something("to")
    (True, False, False)
    """
    return len(word) > 2 and word not in STOP_WORDS


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


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model as `words`, by id, "" where there is no token; the `matrix` E
    that hidden states are projected with, and the model's final norm."""

    view: HookedView
    weights: Weights
    words: tuple[str, ...]
    matrix: Float[Tensor, "d_vocab d_model"]

    @classmethod
    def of(cls, view: HookedView, weights: Weights, onto: Onto = "unembedding") -> Vocabulary:
        tokenizer, matrix = tokenizer_of(view.model), tokens_matrix(view, weights, onto)
        tokens = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), len(matrix))))
        special = set(tokenizer.all_special_tokens)
        words = ["" if t is None or t in special else word_of(t, tokenizer) for t in tokens]
        return cls(view, weights, (*words, *[""] * (len(matrix) - len(words))), matrix)

    @cached_property
    def telling(self) -> Bool[Tensor, " d_vocab"]:
        """Tokens that are no stop words and longer than two characters."""
        return torch.tensor([says_something(w) for w in self.words], device=self.matrix.device)

    def among(self, words: Collection[str]) -> Bool[Tensor, " d_vocab"]:
        """Tokens that are one of these words."""
        found = torch.zeros(len(self.words), dtype=torch.bool)
        found[[i for word in words for i in self._ids.get(word, ())]] = True
        return found.to(self.matrix.device)

    @cached_property
    def _ids(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        for i, word in enumerate(self.words):
            ids.setdefault(word, []).append(i)
        return ids

    def project(self, hidden: Float[Tensor, "... d_model"], normed: bool = False) -> Tensor:
        """h E^T [..., d_vocab], with `normed` of h after the model's final norm, with its gain and bias.

        Raises:
            InputError: some are NaN or infinite.
        """
        projected = (self._normed(hidden) if normed else hidden) @ self.matrix.T
        return finite(projected, "projections on the vocabulary")

    def rates(
        self,
        hidden: Float[Tensor, "n d_model"],
        attributes: Bool[Tensor, "subject d_vocab"],
        subjects: Int[Tensor, " n"],
        cut: Cut,
        normed: bool = False,
    ) -> Float[Tensor, " n"]:
        """The attributes rate of hidden states, in percent: the share of the kept tokens that are
        attributes of the state's own subject. NaN where nothing is kept."""
        found = self.project(hidden, normed).topk(cut.top).indices
        telling = self.telling[found]
        kept = telling & (telling.cumsum(-1) <= cut.kept)
        hits = attributes[subjects[:, None], found] & kept
        return 100 * hits.sum(-1).double() / kept.sum(-1)

    def _normed(self, hidden: Tensor) -> Tensor:
        norm = self.view.model.ln_final.original_component
        site = self.view.head_sites.get("ln_final")
        own = {} if site is None else {here: self.weights[name] for here, name in site.weights.items()}
        return torch.func.functional_call(norm, own, (hidden,))
