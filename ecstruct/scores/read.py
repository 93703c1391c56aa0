"""What a head reads, in words.

Where a head h writes, at the token t of its largest score, what it writes is a sum over the tokens s that
it attends to, with its attention A and its values v:

    y_t = sum_s A_ts W_O v_s

Of these, the token whose part changes most from W to W' (by its norm) is the one that is *read*: attention
alone would often be to the first token, from which nothing comes. There, the residual stream x that enters
the head's layer is put into words, see `ecstruct.scores.words`: before and after finetuning through the
model's head, and what is new,

    J_head (x'_s - x_s)

through its derivative. It is what there is to read; a head reads of it what its W_V keeps, and
`ecstruct.written_words` says what it makes of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ecstruct.engine.attention import attention_pattern
from ecstruct.engine.forward import embed, traces
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.evaluate import rank_of
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch
from ecstruct.io.values import bounded
from ecstruct.scores.components import Component, component_names, located
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import Reward
from ecstruct.scores.words import Words, check_same, through_head, where_largest, word


@bounded
def read_words(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    scores: ExtractiveScores,
    *,
    score: str = "downstream",
    n: int = 5,
    top: int = 10,
) -> Words:
    """Put into words what the strongest heads read before and after, see `ecstruct.scores.read`.

    Args:
        before, after: as for `ecstruct.score`.
        prompts: the prompts that were scored, with their options.
        scores: their scores, by token.
        score: which of them chooses heads, and the tokens at which these write.
        n: how many heads, those that raise the reward most.
        top: how many words of each.

    Raises:
        InputError: the scores are of other prompts, of another model, or not by token; `n` or `top` is
            below 1; an attention cannot be read.
    """
    if top < 1:
        raise InputError(f"top={top} words say nothing: use 1 or more.")
    pair = Pair.of(before, after)
    tokenized, _ = pair.tokenize(prompts, Reward.of("logit_diff"))
    check_same(scores, [p.prompt.text for p in tokenized], pair)
    names = component_names(scores.top(n, score, "head"))
    heads = dict(located(names, pair.view.n_layers, pair.view.n_heads))
    places = {name: where_largest(scores, score, of) for name, of in heads.items()}
    rows_of: dict[str, list[dict[str, object]]] = {name: [{}] * len(tokenized) for name in heads}
    old, new = pair.sessions

    def run(rows: list[int], batch: Batch) -> None:
        each = torch.arange(len(rows), device=pair.view.device)
        at = {name: torch.tensor(its[rows], device=pair.view.device) for name, its in places.items()}
        seen = [_seen(session, batch, heads, at) for session in (old, new)]
        for name in heads:
            a, b = (of[name] for of in seen)
            source = (b.parts - a.parts).norm(dim=-1).argmax(-1)
            x, x_new = a.resid[each, source], b.resid[each, source]
            logits = {
                "": through_head(old, x, x_new - x),
                " before": old.view.head(old.weights, x[:, None]).output[:, 0],
                " after": new.view.head(new.weights, x_new[:, None]).output[:, 0],
            }
            best = {k: its.topk(min(top, its.shape[1])).indices.tolist() for k, its in logits.items()}
            for i, row in enumerate(rows):
                prompt, s = tokenized[row], int(source[i])
                attention = {"before": float(a.attention[i, s]), "after": float(b.attention[i, s])}
                rows_of[name][row] = {
                    **{"component": name, "text": prompt.prompt.text, "answer": prompt.prompt.answer},
                    **{"at": prompt.tokens[int(at[name][i])], "token": prompt.tokens[s]},
                    **{f"attention {state}": value for state, value in attention.items()},
                    **{f"rank{k}": rank_of(prompt, its[i].cpu()) for k, its in logits.items()},
                    **{f"words{k}": [word(old.tokenizer, t) for t in its[i]] for k, its in best.items()},
                }

    old.each_batch(tokenized, run)
    chance = float(np.mean([(len(p.option_ids) - 1) / 2 for p in tokenized]))
    frame = pd.DataFrame([row for rows in rows_of.values() for row in rows])
    return Words(frame, chance, "what is new where heads read")


@dataclass(frozen=True)
class _Seen:
    """What a head sees at the token where it writes: its `attention` to all tokens, the `parts` of what it
    writes that come from them, and what of the residual stream enters its layer there."""

    attention: Float[Tensor, "batch pos"]
    parts: Float[Tensor, "batch pos d_model"]
    resid: Float[Tensor, "batch pos d_model"]


def _seen(
    session: Session, batch: Batch, heads: dict[str, Component], at: dict[str, Int[Tensor, " batch"]]
) -> dict[str, _Seen]:
    """Return what heads see where they write, at `at`."""
    view, embedded, found = session.view, embed(session, batch), {}
    each = torch.arange(len(batch.ids), device=view.device)
    resid = embedded.resid
    for layer, trace in enumerate(traces(session, embedded.calls, embedded.resid)):
        its = {name: head for name, (of, head) in heads.items() if of == layer}
        if its:
            pattern = attention_pattern(session, embedded.calls[layer], resid, layer).to(resid)
            values = trace.taps["attn.v"].output.flatten(2)
            values = rearrange(values, "b pos (kv d) -> kv b pos d", d=view.d_head)
            matrix = view.block_sites[layer]["attn.o"].matrix(session.weights)
            assert matrix is not None
            w_o = rearrange(matrix, "d_model (head d) -> head d_model d", head=view.n_heads)
        for name, head in its.items():
            attention = pattern[each, head, at[name]]
            written = values[head * len(values) // view.n_heads] @ w_o[head].T
            found[name] = _Seen(attention, attention[..., None] * written, resid)
        resid = trace.output
    return found
