"""Ranks under both sets of weights of a pair."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from ecstruct.engine.plan import halving
from ecstruct.errors import InputError
from ecstruct.evaluate import rank_of
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import TokenizedPrompt, tokenize
from ecstruct.models.bridge import still
from ecstruct.models.provenance import tokenizer_of
from ecstruct.scores.batching import cut, prompts_per_batch, rounds
from ecstruct.scores.pair import Pair
from ecstruct.scores.result import ExtractiveScores


def rankable(pair: Pair, prompts: PromptsLike) -> list[TokenizedPrompt] | None:
    """Return prompts, tokenised with their options; None if there are none that they can be ranked among:
    such prompts can still be scored by their log-probability."""
    model = pair.view.model
    try:
        return tokenize(prompts, tokenizer_of(model), n_ctx=model.cfg.n_ctx)
    except InputError:
        return None


def with_ranks(
    scores: ExtractiveScores,
    pair: Pair,
    tokenized: Sequence[TokenizedPrompt] | None,
    batch_size: int | None = None,
) -> ExtractiveScores:
    """Return scores with the prompts' ranks as the coordinate `rank` (prompt, state); without it if the
    prompts are not `rankable`."""
    if tokenized is None:
        return scores
    found = ranks_of_pair(pair, tokenized, batch_size)
    by_state = np.stack([found[str(state)] for state in scores.dataset["state"].values], 1)
    return ExtractiveScores(scores.dataset.assign_coords(rank=(("prompt", "state"), by_state)))


def ranks_of_pair(
    pair: Pair, tokenized: Sequence[TokenizedPrompt], batch_size: int | None = None
) -> dict[str, Float[np.ndarray, " prompt"]]:
    """Compute `ecstruct.ranks` for "before" and "after". `batch_size` is as for `ecstruct.score`.

    Blocks are the outer loop, states and batches the inner ones, so that offloaded weights are read once
    for both states and all batches of a round.
    """
    view, prompts = pair.view, [*tokenized]
    states = {"before": pair.before, "after": pair.after}
    found = {state: np.empty(len(prompts)) for state in states}

    def measure(size: int) -> None:
        job = cut(prompts, size, view.device, pair.pad_id, False)
        for some in rounds(view, job.batches, range(len(job.batches))):
            of = [(state, weights, b) for state, weights in states.items() for b in some]
            embedded = [view.embed(w, job.batches[b].ids, job.batches[b].mask) for _, w, b in of]
            resid = [trace.output for trace, _ in embedded]
            for layer in range(view.n_layers):
                for i, (_, weights, _) in enumerate(of):
                    resid[i] = view.through(layer, weights, embedded[i][1][layer], resid[i])
            for (state, weights, b), leaving in zip(of, resid, strict=True):
                logits = view.logits_at(weights, leaving, job.batches[b].read).cpu()
                for row, of_prompt in zip(job.rows[b], logits, strict=True):
                    found[state][row] = rank_of(prompts[row], of_prompt)

    with still(view.model), torch.no_grad():
        halving(min(batch_size or prompts_per_batch(prompts), len(prompts)), measure)
    return found
