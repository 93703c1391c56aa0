"""What a component's change writes, in words.

At the token where a component C has its largest score, the change of what it writes from W to W' is put
into words, see `ecstruct.scores.words`:

    J_head (y'_C - y_C)

y is what the projection writes, before a post-norm, if the model has one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    check_same(scores, [p.prompt.text for p in tokenized], pair)
    chosen = scores.top(n, score)
    components = dict(located(component_names(chosen), view.n_layers, view.n_heads))
    places = {name: where_largest(scores, score, of) for name, of in components.items()}
    rows_of: dict[str, list[dict[str, object]]] = {name: [{}] * len(tokenized) for name in components}
    old, new = pair.sessions

    def run(rows: list[int], batch: Batch) -> None:
        at = {name: torch.tensor(its[rows], device=view.device) for name, its in places.items()}
        found = [_written(session, batch, components, at) for session in (old, new)]
        for name in components:
            (y, resid), (y_new, _) = (of[name] for of in found)
            logits = through_head(old, resid, y_new - y)
            words = logits.topk(min(top, logits.shape[1])).indices.tolist()
            for i, row in enumerate(rows):
                prompt = tokenized[row]
                rows_of[name][row] = {
                    "component": name,
                    "text": prompt.prompt.text,
                    "answer": prompt.prompt.answer,
                    "token": prompt.tokens[int(at[name][i])],
                    "rank": rank_of(prompt, logits[i].cpu()),
                    "words": [word(old.tokenizer, token) for token in words[i]],
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
            heads = written_by_heads(view, layer, trace.taps["attn.o"].input, session.weights)
            found[name] = heads[head, each, at[name]]
        left = trace.output
    return {name: (y, left[each, at[name]]) for name, y in found.items()}
