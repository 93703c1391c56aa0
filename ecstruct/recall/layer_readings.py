"""What is read off the vocabulary in every layer: the rank of a token, and which tokens come first.

For every layer there are four readings:

* "attention" and "mlp": E a_l and E m_l of what they add at the last position, as for extraction events;
* "subject": E h of the state of the subject's last token after the layer (Geva et al. 2023, section 6: what
  attention extracts is seldom the first token of the subject's own state);
* "last": the logit lens, that is, the logits if the state of the last token after the layer were the final
  one, so with the final norm (nostalgebraist 2020).

The rank of a token is the number of tokens with a larger entry: 0 is first. Where it is 0 in the reading of
attention or of an MLP, there is an extraction event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ecstruct.engine.forward import traces
from ecstruct.engine.session import Model
from ecstruct.errors import InputError
from ecstruct.models.finite import finite
from ecstruct.recall.runs import PARTS, Places, Prompts, Run, Runs, TokenKind
from ecstruct.recall.vocabulary import LOGITS, final_norm, projections, tokens_matrix

LENS = "last"
"""The reading of the logit lens."""
READINGS = (*PARTS, "subject", LENS)


def readings(
    model: Model,
    prompts: Prompts,
    *,
    which: Sequence[str] | None = None,
    normed: bool = False,
    token: TokenKind = "predicted",
    top: int = 10,
    progress: bool = True,
) -> xr.Dataset:
    """Read ranks and first tokens off the vocabulary in every layer.

    Args:
        model: from `ecstruct.load`; it is not changed.
        prompts: as everywhere in ecstruct.
        which: the names of the readings; all by default, without "subject" if a prompt has none.
        normed: apply the model's final norm to all readings; that of the logit lens always has it.
        token: the token whose rank is given: the model's prediction, or the answer's first token.
        top: how many tokens are named.
        progress: show a progress bar.

    Returns:
        `rank` (reading, prompt, layer), 0 for the first token; `top_tokens` (reading, prompt, layer,
        place); `probability` (prompt, layer) of the token under the logit lens, and `top_probability`
        (prompt, layer) of its first token. The coordinate `token` (prompt) is the one whose rank is given.

    Raises:
        InputError: an unknown token or reading, no reading, a `top` that the vocabulary does not have, a
            subject that this tokenizer does not tell, or logits that are NaN.
    """
    if token not in get_args(TokenKind):
        raise InputError(f"token={token!r} is unknown: it is 'predicted' or 'answer'.")
    runs = Runs.of(model, prompts)
    d_vocab = runs.view.model.cfg.d_vocab
    if not 1 <= top <= d_vocab:
        raise InputError(f"top={top}: the vocabulary has {d_vocab} tokens, name 1 to all of them.")
    has_subjects = all(p.subject is not None for p in runs.prompts)
    names = [n for n in READINGS if has_subjects or n != "subject"] if which is None else list(which)
    if not names or set(names) - set(READINGS):
        raise InputError(f"which={names!r}: name some of {', '.join(READINGS)}.")
    subjects = runs.places("subject-last") if "subject" in names else None
    unembedding = None if names == [LENS] else tokens_matrix(runs.session, "unembedding")
    n_layers, n = runs.view.n_layers, len(runs.prompts)
    shape, ids = (len(names), n, n_layers), np.empty(n, int)
    ranks, firsts = np.empty(shape, int), np.empty((*shape, top), int)
    probability, of_first = np.empty((n, n_layers)), np.empty((n, n_layers))

    def measure(run: Run) -> None:
        states = _states(run, subjects)
        asked = run.batch.answer_ids[:, 0]
        if token == "predicted":
            asked = next(_lens(run, states[LENS][:, -1])).argmax(-1)
        ids[run.rows] = asked.cpu()
        its = asked.repeat_interleave(n_layers)
        for i, name in enumerate(names):
            rows = states[name].flatten(0, 1)
            if name == LENS or unembedding is None:
                pieces = _lens(run, rows)
            else:
                hidden = final_norm(run.session, rows) if normed else rows
                pieces = projections(hidden, unembedding)
            found = _read(pieces, its, top)
            by_layer = [value.unflatten(0, (-1, n_layers)).cpu().numpy() for value in found]
            ranks[i, run.rows], firsts[i, run.rows] = by_layer[:2]
            if name == LENS:
                probability[run.rows], of_first[run.rows] = by_layer[2:]

    runs.each(measure, "readings", progress)
    tokenizer = runs.session.tokenizer
    distinct, places = np.unique(firsts, return_inverse=True)
    texts = np.array([str(tokenizer.decode([int(i)])) for i in distinct], dtype=object)
    coordinates = {
        **runs.coordinates(),
        "reading": names,
        "layer": np.arange(n_layers),
        "place": np.arange(top),
        "token": ("prompt", [str(tokenizer.decode([int(i)])).strip() for i in ids]),
    }
    dims = ("reading", "prompt", "layer")
    variables = {
        "rank": (dims, ranks),
        "top_tokens": ((*dims, "place"), texts[places.reshape(firsts.shape)]),
        "probability": (dims[1:], probability),
        "top_probability": (dims[1:], of_first),
    }
    options = {"normed": normed, "token": token, "top": top}
    return xr.Dataset(variables, coordinates, runs.attrs("readings", options))


def _states(run: Run, subjects: Places | None) -> dict[str, Float[Tensor, "batch layer d_model"]]:
    """Return by reading what is projected on the vocabulary, after every layer."""
    embedded, states = run.embed(), {name: [] for name in READINGS}
    rows, last = torch.arange(len(run.rows), device=embedded.read.device), embedded.read
    of_subject = None if subjects is None else torch.tensor([subjects[row][0] for row in run.rows])
    for layer, trace in enumerate(traces(run.session, embedded.calls, embedded.resid)):
        for part in PARTS:
            states[part].append(trace.taps[run.runs.written_by(layer, part)].output[rows, last])
        if of_subject is not None:
            states["subject"].append(trace.output[rows, of_subject.to(rows.device)])
        states[LENS].append(trace.output[rows, last])
    return {name: torch.stack(of_layers, 1) for name, of_layers in states.items() if of_layers}


def _lens(run: Run, states: Float[Tensor, "n d_model"]) -> Iterator[Float[Tensor, "some d_vocab"]]:
    """Yield the logits of states at the last token, as if they were final."""
    view, weights = run.runs.view, run.session.weights
    for some in states.split(max(1, LOGITS // view.model.cfg.d_vocab)):
        yield finite(view.head(weights, some[:, None]).output[:, 0], "the model's logits")


def _read(
    pieces: Iterator[Float[Tensor, "some d_vocab"]], tokens: Int[Tensor, " n"], top: int
) -> list[Shaped[Tensor, "n ..."]]:
    """Return four tensors: the rank of its token in each row [n], the ids of the `top` first tokens of the
    row [n, top], and the probabilities of the row's token and of the first one [n each]. Probabilities have
    a meaning only if the rows are logits. `pieces` have the rows in order, some at a time."""
    found, done = [], 0
    for logits in pieces:
        own = logits.gather(1, tokens[done : done + len(logits), None])
        done += len(logits)
        first, scale = logits.topk(top), logits.logsumexp(-1)
        probabilities = [(value[:, 0] - scale).exp() for value in (own, first.values)]
        found.append(((logits > own).sum(-1), first.indices, *probabilities))
    return [torch.cat(values) for values in zip(*found, strict=True)]
