"""What a head reads, in words.

Where a head h writes, at the token t of its largest score, what it writes is a sum over the tokens s that
it attends to, with its attention A and its values v:

    y_t = sum_s A_ts W_O v_s

Of these, the token whose part changes most from W to W' (by its norm) is the one that is *read*: attention
alone would often be to the first token, from which nothing comes. What the head's OV circuit reads there is
put into words before and after finetuning, and what is new, see `ecstruct.scores.words`:

    J_head W_O v_s,    J_head W'_O v'_s,    J_head (W'_O v'_s - W_O v_s)

with the derivative of the model's head at t. Beside it stands what is new in the residual stream x that
enters the layer *there*, J_head (x'_s - x_s) at s; that need not show what an OV circuit finds in it.
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
from ecstruct.scores.interventions import written_by_heads
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
            x, x_new = (its.resid[each, source] for its in (a, b))
            y, y_new = (its.written[each, source] for its in (a, b))
            logits = {
                "": through_head(old, a.final, y_new - y),
                " before": through_head(old, a.final, y),
                " after": through_head(old, a.final, y_new),
                " there": through_head(old, x, x_new - x),
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
    """What a head sees where it writes: its `attention` to all tokens; what is `written` if it attends to
    one token alone, W_O v; the residual stream that enters its layer, `resid`; and the one that leaves the
    last layer where the head writes, `final`."""

    attention: Float[Tensor, "batch pos"]
    written: Float[Tensor, "batch pos d_model"]
    resid: Float[Tensor, "batch pos d_model"]
    final: Float[Tensor, "batch d_model"]

    @property
    def parts(self) -> Float[Tensor, "batch pos d_model"]:
        """The parts of what the head writes that come from each token."""
        return self.attention[..., None] * self.written


def _seen(
    session: Session, batch: Batch, heads: dict[str, Component], at: dict[str, Int[Tensor, " batch"]]
) -> dict[str, _Seen]:
    """Return what heads see where they write, at `at`."""
    view, embedded, found = session.view, embed(session, batch), {}
    each = torch.arange(len(batch.ids), device=view.device)
    resid = embedded.resid
    for layer, trace in enumerate(traces(session, embedded.calls, embedded.resid)):
        its = {name: head for name, (of, head) in heads.items() if of == layer and head is not None}
        if its:
            pattern = attention_pattern(session, embedded.calls[layer], resid, layer).to(resid)
            values = trace.taps["attn.v"].output.flatten(2)
            values = rearrange(values, "b pos (kv d) -> kv b pos d", d=view.d_head)
            for_head = values.repeat_interleave(view.n_heads // len(values), 0)
            z = rearrange(for_head, "head b pos d -> b pos (head d)")
            written = written_by_heads(view, layer, z, session.weights)
            for name, head in its.items():
                found[name] = (pattern[each, head, at[name]], written[head], resid)
        resid = trace.output
    return {
        name: _Seen(attention, written, entering, resid[each, at[name]])
        for name, (attention, written, entering) in found.items()
    }
