"""Many knockouts of a prompt at once: copies of its tokens that are kept from seeing some of the others.

Blocking edges into a token changes that token and those after it. So a knockout is a *copy* of the prompt's
tokens from the first such token on (for edges into the last position, of the last token alone), and all
copies may follow the prompt in one row (`Packed`): the mask lets each see the tokens before it, as the
prompt's own, whose keys and values all share, and itself, but neither the other copies nor the tokens that
it stands for. Before the first layer of its window a copy is what the prompt is, so it joins there.

Each layer's mask is the model's own, its edges at the positions that the row's tokens have in the prompt,
and the blocked ones closed. An architecture that takes positions from the order of the row would compute
something else. That is seen by a copy of which nothing is blocked; then copies are batches of whole prompts
instead (`Stacked`), which such models read as any others.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ecstruct.facts.tokens import Batch
from ecstruct.models.calls import BlockCall
from ecstruct.models.hooked import HookedView
from ecstruct.models.sites import Weights
from ecstruct.recall.masks import Mask, closing, is_closed, mask_of, with_mask
from ecstruct.scores.batching import TOKENS_PER_BATCH

Own = Float[Tensor, "batch copy own d_model"]
"""Residual streams at the own tokens of copies."""
Blocked = Bool[Tensor, "batch copy own pos"]
"""The edges from those tokens to the prompt's positions that are closed in a layer."""

TOKENS_PER_ROW = 512
"""Of copies, as every token of a row is multiplied with all the others'."""


@dataclass(frozen=True)
class Knockout:
    """Edges from `sources` that are blocked in the layers of `window`; `label` is for errors."""

    window: range
    sources: Bool[Tensor, "batch pos"]
    label: str = ""


class Blind(Exception):
    """A knockout leaves a token of a prompt, by its row in the batch, with nothing to see in a layer."""

    def __init__(self, knockout: Knockout, row: int, position: int, layer: int) -> None:
        super().__init__(knockout.label, row, position, layer)
        self.label, self.row, self.position, self.layer = knockout.label, row, position, layer


@dataclass(frozen=True)
class Run:
    """A batch as the model runs it: what enters every block, how blocks are called, and the logits at the
    last token, [batch, d_vocab]."""

    view: HookedView
    weights: Weights
    batch: Batch
    resid: list[Float[Tensor, "batch pos d_model"]]
    calls: list[BlockCall]
    masks: list[Mask]
    logits: Float[Tensor, "batch d_vocab"]

    @classmethod
    def of(cls, view: HookedView, weights: Weights, batch: Batch) -> "Run":
        embedded, calls = view.embed(weights, batch.ids, batch.mask)
        resid = [embedded.output]
        for layer, call in enumerate(calls):
            resid.append(view.through(layer, weights, call, resid[-1]))
        logits = view.logits_at(weights, resid[-1], batch.last)
        masks = [mask_of(call, len(batch.ids)) for call in calls]
        return cls(view, weights, batch, resid[:-1], calls, masks, logits)


class Copies(ABC):
    """Copies of a batch's prompts from `first` [batch] on, which are kept from seeing sources from where
    `into` is true."""

    def __init__(self, run: Run, first: Int[Tensor, " batch"], into: Bool[Tensor, "batch pos"]) -> None:
        self.run, self.first, self.into = run, first, into
        length, last = run.batch.ids.shape[1], run.batch.last
        n_own = int((run.batch.lengths - first).max())
        here = first[:, None] + torch.arange(n_own, device=first.device)
        self.length, self.n_own = length, n_own
        self.real = here <= last[:, None]
        self.positions = here.minimum(last[:, None])
        """Of a copy's tokens in the prompt, [batch, own]; the last one's instead of padding."""
        self.read = last - first
        """Which of a copy's tokens is the last, [batch]."""
        self._calls = lru_cache(maxsize=2)(self._record)

    def finals(self, knockouts: Sequence[Knockout]) -> Float[Tensor, "batch copy d_model"]:
        """What leaves the last block at the last token, for knockouts in the order of their windows."""
        view, rows = self.run.view, self._rows
        start = knockouts[0].window.start
        copies = self.run.resid[start].new_zeros(len(rows), 0, self.n_own, view.model.cfg.d_model)
        for layer in range(start, view.n_layers):
            joining = sum(k.window.start == layer for k in knockouts)
            entering = self.run.resid[layer][rows[:, None], self.positions]
            copies = torch.cat([copies, entering[:, None].expand(-1, joining, -1, -1)], 1)
            here = knockouts[: copies.shape[1]]
            copies = self._block(layer, copies, self._blocked(layer, here))
        return copies[rows, :, self.read]

    @property
    @abstractmethod
    def at_once(self) -> int:
        """How many copies of each prompt go well together."""

    @abstractmethod
    def _block(self, layer: int, copies: Own, blocked: Blocked) -> Own:
        """One block on all copies."""

    @abstractmethod
    def _record(self, n_copies: int) -> list[BlockCall]:
        """How the model calls its blocks on so many copies."""

    @cached_property
    def _rows(self) -> Int[Tensor, " batch"]:
        return torch.arange(len(self.first), device=self.first.device)

    def _blocked(self, layer: int, knockouts: Sequence[Knockout]) -> Blocked:
        """Raise `Blind` if a token is left with nothing to see."""
        sources = torch.stack([k.sources & (layer in k.window) for k in knockouts], 1)
        into = self.into[self._rows[:, None], self.positions] & self.real
        blocked = sources[:, :, None] & into[:, None, :, None]
        closed = is_closed(self.run.masks[layer])[self._rows[:, None], self.positions]
        blind = (closed[:, None] | blocked).all(-1) & self.real[:, None]
        if blind.any():
            row, copy, own = (int(i) for i in blind.nonzero()[0])
            raise Blind(knockouts[copy], row, int(self.positions[row, own]), layer)
        return blocked


class Packed(Copies):
    """All copies of a prompt after it, in one row."""

    @property
    def at_once(self) -> int:
        return max(1, TOKENS_PER_ROW // self.n_own)

    def _block(self, layer: int, copies: Own, blocked: Blocked) -> Own:
        run, n_copies = self.run, copies.shape[1]
        row = torch.cat([run.resid[layer], copies.flatten(1, 2)], 1)
        call = with_mask(self._calls(n_copies)[layer], self._mask(layer, blocked))
        at = None
        if layer == run.view.n_layers - 1:
            each = torch.arange(n_copies, device=row.device) * self.n_own
            at = self.length + each + self.read[:, None]
        out = run.view.through(layer, run.weights, call, row, at=at)
        return out[:, self.length :].unflatten(1, (n_copies, self.n_own))

    def _mask(self, layer: int, blocked: Blocked) -> Mask:
        """The model's own, at the positions of the row's tokens; closed are blocked edges, and those
        between copies, or from a copy to the tokens that it stands for."""
        own, n_copies, length = self.run.masks[layer], blocked.shape[1], self.length
        order = torch.arange(length, device=own.device)
        at = self._row(order.expand(len(own), -1), self.positions, n_copies)
        mask = own.gather(2, at[:, None, :, None].expand(-1, own.shape[1], -1, length))
        mask = mask.gather(3, at[:, None, None, :].expand(-1, own.shape[1], at.shape[1], -1))
        here = torch.arange(n_copies * self.n_own, device=own.device)
        same = here[:, None] // self.n_own == here // self.n_own
        padding = ~self.real.repeat(1, n_copies)  # sees itself, lest it see nothing
        unseen = ~same | padding[:, None] & (here[:, None] != here)
        blocked = blocked.flatten(1, 2)
        closed = torch.zeros(len(own), *mask.shape[2:], dtype=torch.bool, device=own.device)
        closed[:, :, length:] = True
        closed[:, length:, :length] = blocked | (order >= self.first[:, None])[:, None]
        closed[:, length:, length:] = unseen | blocked.take_along_dim(at[:, None, length:], 2)
        return closing(mask, closed)

    def _record(self, n_copies: int) -> list[BlockCall]:
        batch, view = self.run.batch, self.run.view
        order = torch.arange(self.length, device=batch.ids.device).expand(len(batch.ids), -1)
        ids = self._row(batch.ids, batch.ids.gather(1, self.positions), n_copies)
        positions = self._row(order, self.positions, n_copies)
        mask = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1], dtype=view.dtype, device=ids.device)
        return view.embed(self.run.weights, ids, mask, positions)[1]

    def _row(
        self, prompt: Int[Tensor, "batch pos"], own: Int[Tensor, "batch own"], n_copies: int
    ) -> Int[Tensor, "batch token"]:
        return torch.cat([prompt, own.repeat(1, n_copies)], 1)


class Stacked(Copies):
    """Copies are batches of whole prompts, copy after copy."""

    def __init__(self, run: Run, first: Int[Tensor, " batch"], into: Bool[Tensor, "batch pos"]) -> None:
        super().__init__(run, torch.zeros_like(first), into)

    @property
    def at_once(self) -> int:
        return max(1, TOKENS_PER_BATCH // self.run.batch.ids.numel())

    def _block(self, layer: int, copies: Own, blocked: Blocked) -> Own:
        run, n_copies = self.run, copies.shape[1]
        stacked = copies.transpose(0, 1).flatten(0, 1)
        call = self._calls(n_copies)[layer]
        mask = closing(mask_of(call, len(stacked)), blocked.transpose(0, 1).flatten(0, 1))
        at = self.read.repeat(n_copies)[:, None] if layer == run.view.n_layers - 1 else None
        out = run.view.through(layer, run.weights, with_mask(call, mask), stacked, at=at)
        return out.unflatten(0, (n_copies, -1)).transpose(0, 1)

    def _record(self, n_copies: int) -> list[BlockCall]:
        batch = self.run.batch.repeat(n_copies)
        return self.run.view.embed(self.run.weights, batch.ids, batch.mask)[1]
