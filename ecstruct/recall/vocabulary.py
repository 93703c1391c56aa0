"""The vocabulary as the attributes rate uses it: which tokens say something, and what a hidden state says.

A hidden state h is projected on the vocabulary with the unembedding alone, h E^T, without bias and, by
default, without the final norm. The paper's model has tied embeddings, so its E is also the embedding.
Where the two differ, a state that later layers read, such as that of an enriched subject, may resemble the
embeddings of its words rather than their unembeddings. Therefore E can also be the embedding.

The gain of a final norm may differ much from one entry of the residual stream to another. Then only what it
has scaled is like the rows of E, and `normed` applies the norm first.

The top tokens are searched in order. Stop words and strings of at most two characters are dropped, and the
first of the rest are kept (Geva et al. 2023, section 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.models.finite import finite
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.runs import Places, Run, Runs
from ecstruct.recall.words import says_something, words_of

Onto = Literal["unembedding", "embedding"]

TOP, KEPT = 500, 50
"""The paper's numbers. For small vocabularies they are a tenth and a hundredth of the vocabulary."""
LOGITS = 2**25
"""How many entries of projections are in memory at once. Many rows share the work of reading the matrix."""


def tokens_matrix(session: Session, which: Onto) -> Float[Tensor, "d_vocab d_model"]:
    """Return the embedding or unembedding, with one row for each token of the vocabulary.

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


def projections(
    hidden: Float[Tensor, "n d_model"], matrix: Float[Tensor, "d_vocab d_model"]
) -> Iterator[Float[Tensor, "some d_vocab"]]:
    """Yield h E^T for as many of the rows at once as are efficient, in their order.

    Raises:
        InputError: some values are NaN or infinite.
    """
    for some in hidden.split(max(1, LOGITS // len(matrix))):
        yield finite(some @ matrix.T, "projections on the vocabulary")


def final_norm(session: Session, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """Apply the model's final norm, with its gain and bias."""
    view, weights = session.view, session.weights
    site = view.head_sites.get("ln_final")
    own = {} if site is None else {here: weights[name] for here, name in site.weights.items()}
    return torch.func.functional_call(view.model.ln_final.original_component, own, (hidden,))


def top_and_kept(top: int | None, kept: int | None, n_tokens: int) -> tuple[int, int]:
    """Return how many tokens of a projection are searched, and how many of these are kept. `None` is the
    paper's 500 and 50, but at most a tenth and a hundredth of the `n_tokens` of the vocabulary, so that the
    tokens that are searched are not a whole small vocabulary.

    Raises:
        InputError: less than one token, more than there are, or more kept than searched.
    """
    chosen = max(1, min(TOP, n_tokens // 10)) if top is None else top
    if not 1 <= chosen <= n_tokens:
        raise InputError(f"top={chosen}: the vocabulary has {n_tokens} tokens, look at 1 to {n_tokens}.")
    of_these = max(1, min(KEPT, n_tokens // 100, chosen)) if kept is None else kept
    if not 1 <= of_these <= chosen:
        raise InputError(f"kept={of_these}: of top={chosen} tokens 1 to {chosen} can be kept.")
    return chosen, of_these


class Reader:
    """Reads the attributes rate off hidden states of the prompts of `runs`.

    `words` [d_vocab] is what the tokens spell, "" for ids without one. `members` [subject, d_vocab] says
    which are attributes of each subject. `subjects` is the row of each prompt's subject in `members`.

    Raises:
        InputError: a prompt without subject, a subject of whose attributes none is a token, or `top` and
            `kept` that do not fit the vocabulary.
    """

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
        self._runs, self._normed, self._matrix = runs, normed, tokens_matrix(runs.session, onto)
        n, words, device = len(self._matrix), words_of(runs.session.tokenizer), runs.view.device
        self.words = [*words[:n], *[""] * (n - len(words))]
        self._top, self._kept = top_and_kept(top, kept, n)
        self.options = {
            "attributes": attributes.source,
            "onto": onto,
            "normed": normed,
            "top": self._top,
            "kept": self._kept,
        }
        self._telling = torch.tensor([says_something(word) for word in self.words], device=device)
        of_subjects, vocabulary = attributes.about(p.prompt for p in runs.prompts), pd.Index(self.words)
        members = np.stack([vocabulary.isin(list(its)) for its in of_subjects.values()])
        for subject, its in zip(of_subjects, members, strict=True):
            if not its.any():
                raise InputError(
                    f"no attribute of the subject {subject!r} is a token of this model's vocabulary: make "
                    "the attributes with this model."
                )
        self.members: Bool[Tensor, "subject d_vocab"] = torch.from_numpy(members).to(device)
        order = {subject: i for i, subject in enumerate(of_subjects)}
        self.subjects = [order[str(p.prompt.subject)] for p in runs.prompts]

    def read(
        self, run: Run, resid: Float[Tensor, "batch pos d_model"], where: Bool[Tensor, "batch pos"]
    ) -> Float[np.ndarray, "batch pos"]:
        """Return the rates of a batch in percent: the share of the kept tokens that are attributes of the
        prompt's own subject. It is NaN at tokens outside `where`, and where no token is kept."""
        hidden = resid[where]
        if self._normed:
            hidden = final_norm(self._runs.session, hidden)
        of_rows = torch.tensor([self.subjects[row] for row in run.rows], device=resid.device)
        rates = torch.full(where.shape, torch.nan, dtype=torch.float64, device=resid.device)
        rates[where] = self._rates(hidden, of_rows[where.nonzero()[:, 0]])
        return rates.cpu().numpy()

    def of_embeddings(self, places: Places) -> Float[np.ndarray, " prompt"]:
        """Return the rates of the mean embedding of the tokens at the places of each prompt, in percent:
        how much the tokens give away without any layer."""
        embedding = tokens_matrix(self._runs.session, "embedding")
        ids = [[p.ids[at] for at in its] for p, its in zip(self._runs.prompts, places, strict=True)]
        means = torch.stack([embedding[its].mean(0) for its in ids])
        if self._normed:
            means = final_norm(self._runs.session, means)
        return self._rates(means, torch.tensor(self.subjects, device=means.device)).cpu().numpy()

    def _rates(
        self, hidden: Float[Tensor, "n d_model"], subjects: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return the rates of hidden states, each with the row of its subject in `members`, in percent."""
        found = torch.cat([p.topk(self._top).indices for p in projections(hidden, self._matrix)])
        telling = self._telling[found]
        kept = telling & (telling.cumsum(-1) <= self._kept)
        hits = self.members[subjects[:, None], found] & kept
        return 100 * hits.sum(-1).double() / kept.sum(-1)
