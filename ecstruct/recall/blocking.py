"""Probabilities with attention edges blocked: all groups and windows on a set of prompts.

Knockouts are taken in the order in which their windows begin, as many at once as go well together: these
need the layers from the first one's window on. Among them is always one that blocks nothing, whose logits
must be the prompt's own.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ecstruct.errors import InputError
from ecstruct.facts.tokens import pad_id_of
from ecstruct.models.provenance import tokenizer_of
from ecstruct.recall.copies import TOKENS_PER_ROW, Blind, Copies, Knockout, Packed, Run, Stacked
from ecstruct.recall.running import Runs, is_in
from ecstruct.scores.batching import TOKENS_PER_BATCH, cut, free_bytes, graph_bytes, is_out_of_memory

TokenKind = Literal["predicted", "answer"]
Places = Sequence[Sequence[int]]
"""Positions, prompt by prompt."""

LOGITS = 2**25
"""That are there at once."""
AGREE = 1e-4
"""How far, relative to the largest logit, those of a copy with nothing blocked may be from the prompt's."""

_logger = logging.getLogger("ecstruct.recall")


class Unlike(Exception):
    """A copy with nothing blocked is not what the prompt is."""


@dataclass(frozen=True)
class Blocked:
    """Probabilities of one token of every prompt, by its id, without (`p0`) and with knockouts (`p`)."""

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
    """Each group not seen from the positions `into`, in each window.

    Raises:
        InputError: a token is left with nothing to see; a probability that is 0 or NaN.
    """
    n, view = len(runs.prompts), runs.view
    found = Blocked(np.empty(n, np.int64), np.empty(n), np.empty((n, len(groups), len(windows))))
    asked = [(label, w) for label in groups for w in range(len(windows))]
    asked.sort(key=lambda ask: windows[ask[1]].start)
    batch_size = _batch_size(runs, into, len(asked))
    pad_id = pad_id_of(tokenizer_of(view.model))
    job = cut([*runs.prompts], batch_size, view.device, pad_id, False)
    kind: type[Copies] = Packed
    with tqdm(total=len(job.batches), desc="knockouts", unit="batch", disable=not progress) as bar:
        for rows, batch in zip(job.rows, job.batches, strict=True):
            run = Run.of(view, runs.weights, batch)
            ids = run.logits.argmax(-1) if token == "predicted" else batch.answer_ids[:, 0]
            found.ids[rows] = ids.cpu()
            found.p0[rows] = _probability(run.logits[:, None], ids)[:, 0].cpu()
            _check_probabilities(runs, rows, found.p0)
            edges = _Edges(run, is_in(into, rows, batch), torch.tensor([min(into[row]) for row in rows]))
            sources = {label: is_in(places, rows, batch) for label, places in groups.items()}
            knockouts = [Knockout(windows[w], sources[label], label) for label, w in asked]
            try:
                p, kind = edges.probabilities(kind, knockouts, ids)
            except Blind as blind:
                prompt = runs.prompts[rows[blind.row]]
                raise InputError(
                    f"without {blind.label!r} the token {prompt.tokens[blind.position]!r} of "
                    f"{prompt.prompt.text!r} sees nothing in layer {blind.layer}: block less."
                ) from None
            for (label, w), of_knockout in zip(asked, p.T.cpu().numpy(), strict=True):
                found.p[rows, list(groups).index(label), w] = of_knockout
            bar.update()
    return found


@dataclass(frozen=True)
class _Edges:
    """Those into some positions of the prompts of a batch, `first` being the first one of each."""

    run: Run
    into: Bool[Tensor, "batch pos"]
    first: Int[Tensor, " batch"]

    def probabilities(
        self, kind: type[Copies], knockouts: Sequence[Knockout], ids: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch knockout"], type[Copies]]:
        """Of the tokens `ids`, with copies of a kind, or of the kind that this model needs."""
        try:
            return self._probabilities(kind, knockouts, ids), kind
        except (Unlike, RuntimeError, ValueError, TypeError, IndexError) as error:
            if kind is Stacked or isinstance(error, InputError) or is_out_of_memory(error):
                raise
            _logger.info("this model cannot read packed prompts: knockouts take whole ones, and longer")
            return self.probabilities(Stacked, knockouts, ids)

    def _probabilities(
        self, kind: type[Copies], knockouts: Sequence[Knockout], ids: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch knockout"]:
        copies, found = kind(self.run, self.first.to(ids.device), self.into), []
        for i in range(0, len(knockouts), copies.at_once):
            some = knockouts[i : i + copies.at_once]
            start = some[0].window.start
            nothing = Knockout(range(start, start), torch.zeros_like(self.into))
            finals = copies.finals([nothing, *some])
            self._check_alike(finals[:, :1])
            found += [_probability(self._logits(part), ids) for part in self._parts(finals[:, 1:])]
        return torch.cat(found, 1)

    def _parts(self, finals: Float[Tensor, "batch copy d_model"]) -> Sequence[Tensor]:
        return finals.split(max(1, LOGITS // self.run.logits.numel()), dim=1)

    def _logits(self, finals: Float[Tensor, "batch copy d_model"]) -> Float[Tensor, "batch copy d_vocab"]:
        return self.run.view.head(self.run.weights, finals).output

    def _check_alike(self, finals: Float[Tensor, "batch 1 d_model"]) -> None:
        expected, found = self.run.logits, self._logits(finals)[:, 0]
        if not torch.allclose(found, expected, rtol=0, atol=AGREE * float(expected.abs().max())):
            raise Unlike


def _batch_size(runs: Runs, into: Places, n_knockouts: int) -> int:
    """Prompts that go well together, each with the copies of one row."""
    own = max(len(p.ids) - min(places) for p, places in zip(runs.prompts, into, strict=True))
    copied = min(n_knockouts * own, max(TOKENS_PER_ROW, own))
    length = max(len(p.ids) for p in runs.prompts) + own + copied
    affordable = free_bytes(runs.view.device) // 4 // graph_bytes(runs.view, 1, length)
    return max(1, min(affordable, TOKENS_PER_BATCH // length))


def _probability(
    logits: Float[Tensor, "batch copy d_vocab"], ids: Int[Tensor, " batch"]
) -> Float[Tensor, "batch copy"]:
    """Of one token, in float64."""
    logprobs = logits.double().log_softmax(-1)
    return logprobs[torch.arange(len(ids), device=ids.device), :, ids].exp()


def _check_probabilities(runs: Runs, rows: Sequence[int], p0: Float[np.ndarray, " prompt"]) -> None:
    for row in rows:
        if not p0[row] > 0:
            raise InputError(
                f"the token after {runs.prompts[row].prompt.text!r} has the probability {p0[row]}, of "
                "which no percentage can be told: take another, or look for NaN in the checkpoint."
            )
