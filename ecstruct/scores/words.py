"""Words for a change in the residual stream: what it does to the logits, as if the head read it there.

A change at one token is put through the derivative of the model's head (final norm and unembedding) at the
residual stream of that token,

    J_head change

in logits. The words with the largest entries are those that the change promotes. Later layers may read the
same direction in another way, so that words which say nothing are no evidence of absence; the right answer
on top of its options is evidence that it is legible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.models.labels import labels_of
from ecstruct.models.sites import forward_mode
from ecstruct.scores.components import Component
from ecstruct.scores.pair import Pair
from ecstruct.scores.result import ExtractiveScores

_MORE = ("before", "after", "there")


@dataclass(frozen=True)
class Words:
    """Changes in words. `frame` has a row per component and prompt: the `component`'s name, the prompt's
    `text` and `answer`, the `token` at which the change is, the `rank` of the answer among its options by
    what the change adds to their logits (0 is first), and the `words` that it promotes, the first one most.
    If heads read it, there are also the token `at` which they write and their attention to the one that
    they read, `attention before` and `attention after` finetuning; and ranks and words of all that they
    read (`rank before`, `rank after`, `words before`, `words after`), and of what is new in the residual
    stream there (`rank there`, `words there`)."""

    frame: pd.DataFrame
    chance: float
    """The mean rank of an answer among its options by chance."""
    of: str = "what the changes write"

    def table(self) -> pd.DataFrame:
        """Return a row per component: the mean rank of the answers, the share of prompts whose answer comes
        first, the token at which most prompts are read, and the words of the prompt with the best rank; if
        heads read, also their mean attention, and all mean ranks."""
        rows = []
        for component, of in self.frame.groupby("component", sort=False):
            best = of.loc[of["rank"].idxmin()]
            row = {"component": component, "mean rank": of["rank"].mean()}
            row["answer first"] = (of["rank"] == 0).mean()
            words = [name for name in of if name.startswith("words")]
            row |= {name: of[name].mean() for name in of if name.endswith(_MORE) and name not in words}
            row["read at"] = of["token"].mode().iloc[0]
            row["for example"] = f"{best['text']} ({best['answer']})"
            rows.append(row | {name: ", ".join(best[name]) for name in words})
        return pd.DataFrame(rows)

    def conclusion(self) -> str:
        """Say how legible the answers are."""
        table = self.table()
        ranks = zip(table["component"], table["mean rank"], strict=True)
        listed = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks)
        return (
            f"Mean rank of the answer among its options by {self.of} (chance is {self.chance:.2f}): "
            f"{listed}."
        )


def through_head(
    session: Session,
    resid: Float[Tensor, "batch d_model"],
    change: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch d_vocab"]:
    """Return the derivative of the logits at `resid` along `change`."""
    with forward_mode():
        moving = forward_ad.make_dual(resid[:, None].contiguous(), change[:, None].contiguous())
        tangent = forward_ad.unpack_dual(session.view.head(session.weights, moving).output).tangent
    assert tangent is not None
    return tangent[:, 0]


def word(tokenizer: Any, token: int) -> str:
    """Return what an entry of the logits stands for: a word, or a label of a classifier."""
    labels = labels_of(tokenizer)
    return labels.names[token] if labels else str(tokenizer.decode([token])).strip()


def where_largest(scores: ExtractiveScores, score: str, of: Component) -> Int[np.ndarray, " prompt"]:
    """Return the token of every prompt at which a component's score is largest; tokens of the answer, which
    are read with `answer_tokens="all"`, are left out."""
    layer, head = of
    values = (scores.mlp if head is None else scores.heads.sel(head=head)).sel(score=score, layer=layer)
    of_prompt = values["token"] < scores.dataset["prompt_length"]
    return values.where(of_prompt, -np.inf).fillna(-np.inf).transpose("prompt", "token").values.argmax(1)


def check_same(scores: ExtractiveScores, texts: list[str], pair: Pair) -> None:
    """Raise `InputError` unless the scores are by token, of these prompts and of this model."""
    if "token" not in scores.mlp.dims:
        raise InputError("these scores are not by token: compute them with ecstruct.score.")
    if scores.dataset["text"].values.tolist() != texts:
        raise InputError("the scores are of other prompts: give those that were scored.")
    scores.check_of(pair.view.n_layers, pair.view.n_heads)
