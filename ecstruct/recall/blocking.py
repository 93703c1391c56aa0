"""Probabilities with attention edges blocked: many knockouts of a prompt at once.

Blocking edges into a token changes that token and those after it. A knockout therefore only needs a *copy*
of the prompt's tokens from the first such token on (for edges into the last position: the last token
alone). All copies can follow the prompt in one row (`Packed`). The mask lets each copy see itself and the
prompt's tokens before it, whose keys and values all copies share. It hides the other copies and the tokens
that the copy replaces. Before the first layer of its window a copy equals the prompt, so it joins there.

The mask of each layer is the model's own at the positions of the row's tokens in the prompt, with the
blocked edges closed. An architecture that derives positions from the order of the row would compute
something else. To detect this, one copy has nothing blocked, and its logits must be the prompt's. If they
are not, the copies are batches of whole prompts (`Stacked`), which such models read like any others.

Knockouts run in the order in which their windows begin, as many at once as is efficient. Those that
run together only need the layers from the first of their windows on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ecstruct.engine.forward import Step, embed, leaving
from ecstruct.engine.plan import each_piece, is_out_of_memory, rows_at_once
from ecstruct.errors import InputError
from ecstruct.models.calls import BlockCall
from ecstruct.recall.masks import Mask, closing, is_closed, mask_of, with_mask
from ecstruct.recall.runs import Places, Run, Runs
from ecstruct.recall.vocabulary import LOGITS
from ecstruct.scores.walk import Walk

TokenKind = Literal["predicted", "answer"]

Edges = Bool[Tensor, "batch copy own pos"]
"""The edges from the own tokens of each copy to the positions of its prompt; True is blocked."""

TOKENS_PER_ROW = 512
"""The number of copied tokens per row. It is bounded because every token attends to the whole row."""
AGREE = 1e-4
"""How far the logits of a copy with nothing blocked may be from the prompt's, relative to the largest."""

_logger = logging.getLogger("ecstruct.recall")


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
    kind: type[Packed | Stacked] = Packed
    with tqdm(total=n, desc="knockouts", unit="prompt", disable=not progress) as bar:

        def measure(run: Run) -> None:
            nonlocal kind
            plain = Plain(run, into)
            ids = plain.logits.argmax(-1) if token == "predicted" else run.batch.answer_ids[:, 0]
            found.ids[run.rows] = ids.cpu()
            found.p0[run.rows] = _probability(plain.logits[:, None], ids)[:, 0].cpu()
            _check_probabilities(run, found.p0)
            sources = [run.where(places) for places in groups.values()]
            knockouts = [Knockout([*groups][g], sources[g], windows[w]) for g, w in asked]
            try:
                p = _probabilities(plain, kind(plain), knockouts, ids)
            except (Unlike, RuntimeError, ValueError, TypeError, IndexError) as error:
                if kind is Stacked or isinstance(error, InputError) or is_out_of_memory(error):
                    raise
                _logger.info("this model cannot read packed prompts: knockouts take whole ones, and longer")
                kind = Stacked
                p = _probabilities(plain, kind(plain), knockouts, ids)
            for (g, w), of_knockout in zip(asked, p.T.cpu().numpy(), strict=True):
                found.p[run.rows, g, w] = of_knockout
            bar.update(len(run.rows))

        runs.each(measure, _batch_size(runs, into, len(asked)))
    return found


class Unlike(Exception):
    """The logits of a copy with nothing blocked differ from the prompt's."""


@dataclass(frozen=True)
class Knockout:
    """Edges from `sources` that are blocked in the layers of `window`; errors show `label`."""

    label: str
    sources: Bool[Tensor, "batch pos"]
    window: range


class Plain:
    """The undisturbed run of a batch: the input and the call of every block (`walk`), their `masks`, and
    the `logits` [batch, d_vocab] at the last token. Knockouts block edges into the tokens `into` [batch,
    pos]; `first` [batch] is the first of them in each prompt."""

    def __init__(self, run: Run, into: Places) -> None:
        self.session, self.batch, self.into = run.session, run.batch, run.where(into)
        self.view, self.weights = run.session.view, run.session.weights
        self._prompts = [run.runs.prompts[row] for row in run.rows]
        n_layers, n = self.view.n_layers, len(run.rows)
        self.walk = Walk(self.view, self.weights, [self.batch], keep_graphs=False, descends=False)
        self.walk.up()
        self.masks = [mask_of(self.walk.call(layer, 0), n) for layer in range(n_layers)]
        self.logits = self.view.logits_at(self.weights, self.walk.resid(n_layers, 0), self.batch.last)
        self.first = torch.tensor([min(into[row]) for row in run.rows], device=self.into.device)

    def edges(
        self,
        layer: int,
        knockouts: Sequence[Knockout],
        positions: Int[Tensor, "batch own"],
        real: Bool[Tensor, "batch own"],
    ) -> Edges:
        """Return the edges that the knockouts block in a layer, into the tokens at `positions`. Tokens that
        are not `real` are padding.

        Raises:
            InputError: a token is left with nothing to see.
        """
        sources = torch.stack([k.sources & (layer in k.window) for k in knockouts], 1)
        into = self.into.gather(1, positions) & real
        edges = rearrange(sources, "b copy pos -> b copy 1 pos") & rearrange(into, "b own -> b 1 own 1")
        rows = torch.arange(len(real), device=real.device)[:, None]
        closed = rearrange(is_closed(self.masks[layer])[rows, positions], "b own pos -> b 1 own pos")
        blind = (closed | edges).all(-1) & real[:, None]
        if blind.any():
            row, copy, own = (int(i) for i in blind.nonzero()[0])
            prompt = self._prompts[row]
            raise InputError(
                f"without {knockouts[copy].label!r} the token {prompt.tokens[positions[row, own]]!r} of "
                f"{prompt.prompt.text!r} sees nothing in layer {layer}: block less."
            )
        return edges


class Packed:
    """All copies of a prompt follow it in one row."""

    def __init__(self, plain: Plain) -> None:
        self._plain, self._batch, self._length = plain, plain.batch, plain.batch.ids.shape[1]
        self._n_own = int((self._batch.lengths - plain.first).max())
        here = plain.first[:, None] + torch.arange(self._n_own, device=plain.first.device)
        self._real = here <= self._batch.last[:, None]
        # The position in the prompt of each token of a copy, [batch, own]; padding repeats the last one.
        self._positions = here.minimum(self._batch.last[:, None])
        # The index of the last token within a copy, [batch].
        self._last = self._batch.last - plain.first
        self._calls = lru_cache(maxsize=2)(self._record)

    @property
    def at_once(self) -> int:
        """The number of copies of each prompt that run together."""
        return max(1, TOKENS_PER_ROW // self._n_own)

    def finals(self, knockouts: Sequence[Knockout]) -> Float[Tensor, "batch copy d_model"]:
        """Return what leaves the last block at the last token, for knockouts sorted by window start."""
        plain, view, start = self._plain, self._plain.view, knockouts[0].window.start
        rows = torch.arange(len(self._last), device=self._last.device)
        copies = plain.walk.resid(start, 0).new_zeros(len(rows), 0, self._n_own, view.model.cfg.d_model)
        for layer in range(start, view.n_layers):
            joining = sum(k.window.start == layer for k in knockouts)
            entering = plain.walk.resid(layer, 0)[rows[:, None], self._positions]
            copies = torch.cat([copies, entering[:, None].expand(-1, joining, -1, -1)], 1)
            n_copies = copies.shape[1]
            edges = plain.edges(layer, knockouts[:n_copies], self._positions, self._real)
            flat = rearrange(copies, "b copy own d -> b (copy own) d")
            row = torch.cat([plain.walk.resid(layer, 0), flat], 1)
            call = with_mask(self._calls(n_copies)[layer], self._mask(layer, edges))
            at = None
            if layer == view.n_layers - 1:
                each = torch.arange(n_copies, device=row.device) * self._n_own
                at = self._length + each + self._last[:, None]
            out = view.through(layer, plain.weights, call, row, at=at)[:, self._length :]
            copies = rearrange(out, "b (copy own) d -> b copy own d", copy=n_copies)
        return copies[rows, :, self._last]

    def _mask(self, layer: int, edges: Edges) -> Mask:
        """Return the model's own mask at the positions of the row's tokens. It also closes the blocked
        edges, and the edges from a copy to other copies and to the tokens that it replaces."""
        own, n_copies, length = self._plain.masks[layer], edges.shape[1], self._length
        order, at = torch.arange(length, device=own.device), self._in_prompt(n_copies)
        mask = own.gather(2, at[:, None, :, None].expand(-1, own.shape[1], -1, length))
        mask = mask.gather(3, at[:, None, None, :].expand(-1, own.shape[1], at.shape[1], -1))
        here = torch.arange(n_copies * self._n_own, device=own.device)
        same = here[:, None] // self._n_own == here // self._n_own
        padding = ~self._real.repeat(1, n_copies)  # sees itself, so that it does not see nothing
        unseen = ~same | padding[:, None] & (here[:, None] != here)
        blocked = rearrange(edges, "b copy own pos -> b (copy own) pos")
        closed = torch.zeros(len(own), *mask.shape[2:], dtype=torch.bool, device=own.device)
        closed[:, :, length:] = True
        closed[:, length:, :length] = blocked | (order >= self._plain.first[:, None])[:, None]
        closed[:, length:, length:] = unseen | blocked.take_along_dim(at[:, None, length:], 2)
        return closing(mask, closed)

    def _record(self, n_copies: int) -> list[BlockCall]:
        """Record how the model calls its blocks on rows with `n_copies` copies."""
        view, positions = self._plain.view, self._in_prompt(n_copies)
        ids = self._batch.ids.gather(1, positions)
        mask = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1], dtype=view.dtype, device=ids.device)
        return view.embed(self._plain.weights, ids, mask, positions)[1]

    def _in_prompt(self, n_copies: int) -> Int[Tensor, "batch token"]:
        """Return the position in the prompt of every token of a row."""
        order = torch.arange(self._length, device=self._positions.device)
        return torch.cat([order.expand(len(self._positions), -1), self._positions.repeat(1, n_copies)], 1)


class Stacked:
    """The copies are a batch of whole prompts, one copy of the batch after another."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain

    @property
    def at_once(self) -> int:
        """The number of copies of each prompt that run together."""
        n, length = self._plain.batch.ids.shape
        return max(1, rows_at_once(self._plain.view, length) // n)

    def finals(self, knockouts: Sequence[Knockout]) -> Float[Tensor, "batch copy d_model"]:
        """Return what leaves the last block at the last token, for knockouts sorted by window start."""
        plain, start, n_copies = self._plain, knockouts[0].window.start, len(knockouts)
        batch = plain.batch.repeat(n_copies)
        real = plain.batch.mask.bool()
        positions = torch.arange(real.shape[1], device=real.device).expand(len(real), -1)

        def closed(step: Step) -> Step:
            edges = plain.edges(step.layer, knockouts, positions, real)
            mask = mask_of(step.call, len(batch.ids))
            mask = closing(mask, rearrange(edges, "b copy own pos -> (copy b) own pos"))
            return replace(step, call=with_mask(step.call, mask))

        calls = embed(plain.session, batch).calls
        entering = plain.walk.resid(start, 0).repeat(n_copies, 1, 1)
        out = leaving(plain.session, calls, entering, closed, start)
        rows = torch.arange(len(out), device=out.device)
        return rearrange(out[rows, batch.last], "(copy b) d -> b copy d", copy=n_copies)


def _probabilities(
    plain: Plain, copies: Packed | Stacked, knockouts: Sequence[Knockout], ids: Int[Tensor, " batch"]
) -> Float[Tensor, "batch knockout"]:
    """Return the probabilities of `ids`; raise `Unlike` if an unblocked copy differs from its prompt."""

    def logits(finals: Float[Tensor, "batch copy d_model"]) -> Float[Tensor, "batch copy d_vocab"]:
        return plain.view.head(plain.weights, finals).output

    found, within = [], AGREE * float(plain.logits.abs().max())

    def run(some: Sequence[Knockout]) -> None:
        start = some[0].window.start
        finals = copies.finals([replace(some[0], window=range(start, start)), *some])
        if not torch.allclose(logits(finals[:, :1])[:, 0], plain.logits, rtol=0, atol=within):
            raise Unlike
        parts = finals[:, 1:].split(max(1, LOGITS // plain.logits.numel()), dim=1)
        found.append(torch.cat([_probability(logits(part), ids) for part in parts], 1))

    each_piece(knockouts, copies.at_once, run)
    return torch.cat(found, 1)


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


def _batch_size(runs: Runs, into: Places, n_knockouts: int) -> int:
    """Return how many prompts to run together, each with one row of copies."""
    own = max(len(p.ids) - min(places) for p, places in zip(runs.prompts, into, strict=True))
    copied = min(n_knockouts * own, max(TOKENS_PER_ROW, own))
    return rows_at_once(runs.view, max(len(p.ids) for p in runs.prompts) + own + copied)
