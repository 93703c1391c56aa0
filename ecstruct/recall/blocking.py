"""Probabilities with attention edges blocked; `ecstruct.recall.copies` explains how many run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ecstruct.errors import InputError
from ecstruct.recall.copies import Copies, Copying, Knockout, Plain, States, batch_size
from ecstruct.recall.runs import Places, Run, Runs
from ecstruct.recall.vocabulary import LOGITS

TokenKind = Literal["predicted", "answer"]


@dataclass(frozen=True)
class Blocked:
    """The probability of one token per prompt, given by its id, without (`p0`) and with knockouts (`p`)."""

    ids: Int[np.ndarray, " prompt"]
    p0: Float[np.ndarray, " prompt"]
    p: Float[np.ndarray, "prompt group window"]


def blocked(
    runs: Runs,
    groups: Mapping[str, Places],
    into: Places,
    windows: Sequence[range],
    token: TokenKind,
    progress: bool,
) -> Blocked:
    """Compute probabilities with each group hidden from the positions `into`, in each window.

    Raises:
        InputError: a token is left with nothing to see, or a probability is 0 or NaN.
    """
    n = len(runs.prompts)
    found = Blocked(np.empty(n, np.int64), np.empty(n), np.empty((n, len(groups), len(windows))))
    asked = [(g, w) for g in range(len(groups)) for w in range(len(windows))]
    asked.sort(key=lambda ask: windows[ask[1]].start)
    copying = Copying()
    with tqdm(total=n, desc="knockouts", unit="prompt", disable=not progress) as bar:

        def measure(run: Run) -> None:
            plain = Plain(run, into)
            ids = plain.logits.argmax(-1) if token == "predicted" else run.batch.answer_ids[:, 0]
            found.ids[run.rows] = ids.cpu()
            found.p0[run.rows] = _probability(plain.logits[:, None], ids)[:, 0].cpu()
            _check_probabilities(run, found.p0)
            sources = [run.where(places) for places in groups.values()]
            knockouts = [Knockout([*groups][g], sources[g], windows[w]) for g, w in asked]
            p = copying.measure(plain, knockouts, runs.view.n_layers, partial(_probabilities, plain, ids))
            for (g, w), of_knockout in zip(asked, p.T.cpu().numpy(), strict=True):
                found.p[run.rows, g, w] = of_knockout
            bar.update(len(run.rows))

        runs.each(measure, batch_size(runs, into, len(asked)))
    return found


def _probabilities(
    plain: Plain, ids: Int[Tensor, " batch"], copies: Copies, states: States
) -> Float[Tensor, "batch copy"]:
    """Return the probabilities of `ids` after the last token of each copy."""
    rows = torch.arange(len(ids), device=ids.device)
    parts = states[rows, :, copies.last].split(max(1, LOGITS // plain.logits.numel()), dim=1)
    return torch.cat([_probability(plain.view.head(plain.weights, p).output, ids) for p in parts], 1)


def _probability(
    logits: Float[Tensor, "batch copy d_vocab"], ids: Int[Tensor, " batch"]
) -> Float[Tensor, "batch copy"]:
    """Return the probability of one token per prompt, in float64."""
    logprobs = logits.double().log_softmax(-1)
    return logprobs[torch.arange(len(ids), device=ids.device), :, ids].exp()


def _check_probabilities(run: Run, p0: Float[np.ndarray, " prompt"]) -> None:
    for row in run.rows:
        if not p0[row] > 0:
            raise InputError(
                f"the token after {run.runs.prompts[row].prompt.text!r} has the probability {p0[row]}, of "
                "which no percentage can be told: take another, or look for NaN in the checkpoint."
            )
