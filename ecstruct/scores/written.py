"""What a component's change writes, in words.

At the token where a component C has its largest score, the change of what it writes from W to W' is put
through the derivative of the model's head (final norm and unembedding) at the residual stream there:

    J_head (y'_C - y_C)

in logits. The words with the largest entries are those that the change promotes, as if the head read the
stream at that token. Later layers may read the same direction in another way, so that words which say
nothing are no evidence of absence; the right answer on top of its options is evidence that it is legible.

y is what the projection writes, before a post-norm, if the model has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from ecstruct.engine.forward import embed, traces
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.evaluate import rank_of
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch
from ecstruct.io.values import bounded
from ecstruct.models.hooked import HookedView
from ecstruct.models.labels import labels_of
from ecstruct.models.sites import forward_mode
from ecstruct.scores.components import component_names
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import Reward

Component = tuple[int, int | None]
"""A layer, and the head or, for the MLP, None."""


@dataclass(frozen=True)
class Words:
    """What the changes of components write. `frame` has a row per component and prompt: the `component`'s
    name, the prompt's `text` and `answer`, the `token` at which the change is read, the `rank` of the
    answer among its options by what the change adds to their logits (0 is first), and the `words` that it
    promotes, the first one most."""

    frame: pd.DataFrame
    chance: float
    """The mean rank of an answer among its options by chance."""

    def table(self) -> pd.DataFrame:
        """Return a row per component: the mean rank of the answers, the share of prompts whose answer comes
        first, the token at which most prompts are read, and the words of the prompt with the best rank."""
        rows = []
        for component, of in self.frame.groupby("component", sort=False):
            best = of.loc[of["rank"].idxmin()]
            rows.append(
                {
                    "component": component,
                    "mean rank": of["rank"].mean(),
                    "answer first": (of["rank"] == 0).mean(),
                    "read at": of["token"].mode().iloc[0],
                    "for example": f"{best['text']} ({best['answer']})",
                    "words": ", ".join(best["words"]),
                }
            )
        return pd.DataFrame(rows)

    def conclusion(self) -> str:
        """Say how legible the answers are in what each component's change writes."""
        table = self.table()
        ranks = zip(table["component"], table["mean rank"], strict=True)
        listed = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks)
        return (
            "Mean rank of the answer among its options by what the changes write (chance is "
            f"{self.chance:.2f}): {listed}."
        )


@bounded
def written_words(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    scores: ExtractiveScores,
    *,
    score: str = "informative",
    n: int = 5,
    top: int = 10,
) -> Words:
    """Put into words what the changes of the strongest components write, see `ecstruct.scores.written`.

    Args:
        before, after: as for `ecstruct.score`.
        prompts: the prompts that were scored, with their options.
        scores: their scores, by token.
        score: which of them chooses components and tokens, such as "informative" or "downstream".
        n: how many components, those that raise the reward most.
        top: how many words of each.

    Raises:
        InputError: the scores are of other prompts, of another model, or not by token; `n` or `top` is
            below 1.
    """
    if top < 1:
        raise InputError(f"top={top} words say nothing: use 1 or more.")
    pair = Pair.of(before, after)
    view = pair.view
    tokenized, _ = pair.tokenize(prompts, Reward.of("logit_diff"))
    _check_same(scores, [p.prompt.text for p in tokenized], view)
    chosen = scores.top(n, score)
    parts = zip(component_names(chosen), chosen["layer"], chosen["head"], strict=True)
    components: dict[str, Component] = {
        name: (int(layer), None if pd.isna(head) else int(head)) for name, layer, head in parts
    }
    places = {name: _where_largest(scores, score, of) for name, of in components.items()}
    rows_of: dict[str, list[dict[str, object]]] = {name: [{}] * len(tokenized) for name in components}
    old, new = pair.sessions

    def run(rows: list[int], batch: Batch) -> None:
        at = {name: torch.tensor(its[rows], device=view.device) for name, its in places.items()}
        found = [_written(session, batch, components, at) for session in (old, new)]
        for name in components:
            (y, resid), (y_new, _) = (of[name] for of in found)
            logits = _through_head(view, old, resid, y_new - y)
            words = logits.topk(min(top, logits.shape[1])).indices.tolist()
            for i, row in enumerate(rows):
                prompt = tokenized[row]
                rows_of[name][row] = {
                    "component": name,
                    "text": prompt.prompt.text,
                    "answer": prompt.prompt.answer,
                    "token": prompt.tokens[int(at[name][i])],
                    "rank": rank_of(prompt, logits[i].cpu()),
                    "words": [_word(old.tokenizer, token) for token in words[i]],
                }

    old.each_batch(tokenized, run)
    chance = float(np.mean([(len(p.option_ids) - 1) / 2 for p in tokenized]))
    return Words(pd.DataFrame([row for rows in rows_of.values() for row in rows]), chance)


def _written(
    session: Session, batch: Batch, components: dict[str, Component], at: dict[str, Int[Tensor, " batch"]]
) -> dict[str, tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch d_model"]]]:
    """Return, by name of the component, what it writes at one position of each prompt, given in `at`, under
    the session's weights, and the final residual stream at the same position."""
    view = session.view
    embedded, found = embed(session, batch), {}
    each = torch.arange(len(batch.ids), device=view.device)
    left = embedded.resid
    for layer, trace in enumerate(traces(session, embedded.calls, embedded.resid)):
        for name, (its_layer, head) in components.items():
            if its_layer != layer:
                continue
            if head is None:
                found[name] = trace.taps["mlp.out"].output[each, at[name]]
                continue
            matrix = view.block_sites[layer]["attn.o"].matrix(session.weights)
            assert matrix is not None
            z = rearrange(trace.taps["attn.o"].input, "b pos (head d) -> b pos head d", head=view.n_heads)
            of_head = rearrange(matrix, "d_model (head d) -> head d_model d", head=view.n_heads)[head]
            found[name] = z[each, at[name], head] @ of_head.T
        left = trace.output
    return {name: (y, left[each, at[name]]) for name, y in found.items()}


def _through_head(
    view: HookedView,
    session: Session,
    resid: Float[Tensor, "batch d_model"],
    change: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch d_vocab"]:
    """Return the derivative of the logits at `resid` along `change`."""
    with forward_mode():
        moving = forward_ad.make_dual(resid[:, None].contiguous(), change[:, None].contiguous())
        tangent = forward_ad.unpack_dual(view.head(session.weights, moving).output).tangent
    assert tangent is not None
    return tangent[:, 0]


def _word(tokenizer: Any, token: int) -> str:
    """Return what an entry of the logits stands for: a word, or a label of a classifier."""
    labels = labels_of(tokenizer)
    return labels.names[token] if labels else str(tokenizer.decode([token])).strip()


def _where_largest(scores: ExtractiveScores, score: str, of: Component) -> Int[np.ndarray, " prompt"]:
    """Return the token of every prompt at which a component's score is largest; tokens of the answer, which
    are read with `answer_tokens="all"`, are left out."""
    layer, head = of
    values = (scores.mlp if head is None else scores.heads.sel(head=head)).sel(score=score, layer=layer)
    of_prompt = values["token"] < scores.dataset["prompt_length"]
    return values.where(of_prompt, -np.inf).fillna(-np.inf).transpose("prompt", "token").values.argmax(1)


def _check_same(scores: ExtractiveScores, texts: list[str], view: HookedView) -> None:
    if "token" not in scores.mlp.dims:
        raise InputError("these scores are not by token: compute them with ecstruct.score.")
    if scores.dataset["text"].values.tolist() != texts:
        raise InputError("the scores are of other prompts: give those that were scored.")
    sizes = scores.heads.sizes["layer"], scores.heads.sizes["head"]
    if sizes != (view.n_layers, view.n_heads):
        raise InputError(
            f"the scores are of {sizes[0]} layers of {sizes[1]} heads, but this model has {view.n_layers} "
            f"of {view.n_heads}: give scores of the same model."
        )
