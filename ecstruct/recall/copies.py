"""Knockouts of a prompt, many at once: what some tokens see is blocked, or what they write is silenced.

A knockout of some tokens changes these tokens and those after them. It therefore only needs a *copy* of
the prompt's tokens from the first such token on (for edges into the last position: the last token
alone). All copies can follow the prompt in one row (`Packed`). The mask lets each copy see itself and the
prompt's tokens before it, whose keys and values all copies share. It hides the other copies and the tokens
that the copy replaces. Before the first layer of its window a copy equals the prompt, so it joins there.

The mask of each layer is the model's own at the positions of the row's tokens in the prompt, with the
blocked edges closed. An architecture that derives positions from the order of the row would compute
something else. To detect this, one copy has nothing changed, and its logits must be the prompt's. If they
are not, the copies are batches of whole prompts (`Stacked`), which such models read like any others.

Knockouts run in the order in which their windows begin, as many at once as is efficient. Those that
run together only need the layers from the first of their windows on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ecstruct.engine.forward import Step, embed, entering, run_blocks
from ecstruct.engine.plan import each_piece, is_out_of_memory, rows_at_once
from ecstruct.errors import InputError
from ecstruct.models.calls import BlockCall
from ecstruct.models.edits import Edit, editing
from ecstruct.recall.masks import Mask, closing, is_closed, mask_of, with_mask
from ecstruct.recall.runs import PARTS, Part, Places, Run, Runs

Edges = Bool[Tensor, "batch copy own pos"]
"""The edges from the own tokens of each copy to the positions of its prompt; True is blocked."""
States = Float[Tensor, "batch copy own d_model"]
"""The residual stream at the own tokens of each copy."""

TOKENS_PER_ROW = 512
"""The number of copied tokens per row. It is bounded because every token attends to the whole row."""
AGREE = 1e-4
"""How far the logits of a copy with nothing blocked may be from the prompt's, relative to the largest."""

_logger = logging.getLogger("ecstruct.recall")


class Unlike(Exception):
    """The logits of a copy with nothing changed differ from the prompt's."""


@dataclass(frozen=True)
class Knockout:
    """What is changed in the layers of `window`, of the tokens that are knocked out: they do not see
    `sources`, and the part that is `silent` adds nothing to the residual stream. Errors show `label`."""

    label: str
    sources: Bool[Tensor, "batch pos"]
    window: range
    silent: Part | None = None


class Plain:
    """The undisturbed run of a batch: what is `entering` every block and the head, the `calls` of the
    blocks, their `masks`, and the `logits` [batch, d_vocab] at the last token. Knockouts are of the tokens
    `into` [batch, pos]; `first` [batch] is the first of them in each prompt."""

    def __init__(self, run: Run, into: Places) -> None:
        self.runs, self.session, self.batch, self.into = run.runs, run.session, run.batch, run.where(into)
        self.view, self.weights = run.session.view, run.session.weights
        self._prompts, embedded = [run.runs.prompts[row] for row in run.rows], run.embed()
        self.calls, self.entering = embedded.calls, entering(run.session, embedded)
        self.masks = [mask_of(call, len(run.rows)) for call in self.calls]
        self.logits = self.view.logits_at(self.weights, self.entering[-1], self.batch.last)
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

    def silenced(
        self,
        layer: int,
        knockouts: Sequence[Knockout],
        positions: Int[Tensor, "batch own"],
        real: Bool[Tensor, "batch own"],
        in_rows: Callable[[Bool[Tensor, "batch copy own"]], Bool[Tensor, "row token"]],
    ) -> dict[str, Edit]:
        """Return the edits that silence what the knockouts silence in a layer. `in_rows` lays the tokens of
        the copies out as the rows of the run."""
        into, edits = self.into.gather(1, positions) & real, {}
        for part in PARTS:
            which = [k.silent == part and layer in k.window for k in knockouts]
            if any(which):
                silent = into[:, None] & torch.tensor(which, device=into.device)[:, None]
                silence = partial(torch.Tensor.masked_fill, mask=in_rows(silent)[..., None], value=0)
                edits[self.runs.written_by(layer, part)] = silence
        return edits


class Packed:
    """All copies of a prompt follow it in one row. `positions` [batch, own] are those of a copy's tokens in
    the prompt, of which some are `real`; others are padding, and repeat the last one. `last` [batch] is the
    index of the prompt's last token in a copy."""

    def __init__(self, plain: Plain) -> None:
        self._plain, self._batch, self._length = plain, plain.batch, plain.batch.ids.shape[1]
        self._n_own = int((self._batch.lengths - plain.first).max())
        here = plain.first[:, None] + torch.arange(self._n_own, device=plain.first.device)
        self.real = here <= self._batch.last[:, None]
        self.positions = here.minimum(self._batch.last[:, None])
        self.last = self._batch.last - plain.first
        self._calls = lru_cache(maxsize=2)(self._record)

    @property
    def at_once(self) -> int:
        """The number of copies of each prompt that run together."""
        return max(1, TOKENS_PER_ROW // self._n_own)

    def run_blocks(self, knockouts: Sequence[Knockout], stop: int) -> States:
        """Return what enters layer `stop` at the tokens of each copy, for knockouts sorted by window
        start."""
        plain, view, start = self._plain, self._plain.view, knockouts[0].window.start
        rows, width = torch.arange(len(self.last), device=self.last.device), view.model.cfg.d_model
        copies = plain.entering[start].new_zeros(len(rows), 0, self._n_own, width)
        for layer in range(start, stop):
            joining = sum(k.window.start == layer for k in knockouts)
            joined = plain.entering[layer][rows[:, None], self.positions]
            copies = torch.cat([copies, joined[:, None].expand(-1, joining, -1, -1)], 1)
            n_copies = copies.shape[1]
            of_layer = (layer, knockouts[:n_copies], self.positions, self.real)
            edges, silenced = plain.edges(*of_layer), plain.silenced(*of_layer, self._after_prompt)
            flat = rearrange(copies, "b copy own d -> b (copy own) d")
            row = torch.cat([plain.entering[layer], flat], 1)
            call = with_mask(self._calls(n_copies)[layer], self._mask(layer, edges))
            with editing(view.block_sites[layer], {}, silenced, len(row)):
                out = view.through(layer, plain.weights, call, row)[:, self._length :]
            copies = rearrange(out, "b (copy own) d -> b copy own d", copy=n_copies)
        return copies

    def _after_prompt(self, of_copies: Bool[Tensor, "batch copy own"]) -> Bool[Tensor, "batch token"]:
        return pad(rearrange(of_copies, "b copy own -> b (copy own)"), (self._length, 0))

    def _mask(self, layer: int, edges: Edges) -> Mask:
        """Return the model's own mask at the positions of the row's tokens. It also closes the blocked
        edges, and the edges from a copy to other copies and to the tokens that it replaces."""
        own, n_copies, length = self._plain.masks[layer], edges.shape[1], self._length
        order, at = torch.arange(length, device=own.device), self._in_prompt(n_copies)
        mask = own.gather(2, at[:, None, :, None].expand(-1, own.shape[1], -1, length))
        mask = mask.gather(3, at[:, None, None, :].expand(-1, own.shape[1], at.shape[1], -1))
        here = torch.arange(n_copies * self._n_own, device=own.device)
        same = here[:, None] // self._n_own == here // self._n_own
        padding = ~self.real.repeat(1, n_copies)  # sees itself, so that it does not see nothing
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
        order = torch.arange(self._length, device=self.positions.device)
        return torch.cat([order.expand(len(self.positions), -1), self.positions.repeat(1, n_copies)], 1)


class Stacked:
    """The copies are a batch of whole prompts, one copy of the batch after another. The attributes are
    those of `Packed`."""

    def __init__(self, plain: Plain) -> None:
        self._plain, self.real, self.last = plain, plain.batch.mask.bool(), plain.batch.last
        order = torch.arange(self.real.shape[1], device=self.real.device)
        self.positions = order.expand(len(self.real), -1)

    @property
    def at_once(self) -> int:
        """The number of copies of each prompt that run together."""
        n, length = self._plain.batch.ids.shape
        return max(1, rows_at_once(self._plain.view, length) // n)

    def run_blocks(self, knockouts: Sequence[Knockout], stop: int) -> States:
        """Return what enters layer `stop` at the tokens of each copy, for knockouts sorted by window
        start."""
        plain, start, n_copies = self._plain, knockouts[0].window.start, len(knockouts)
        batch = plain.batch.repeat(n_copies)

        def changed(step: Step) -> Step:
            of_layer = (step.layer, knockouts, self.positions, self.real)
            edges = rearrange(plain.edges(*of_layer), "b copy own pos -> (copy b) own pos")
            mask = closing(mask_of(step.call, len(batch.ids)), edges)
            silenced = plain.silenced(*of_layer, partial(rearrange, pattern="b copy own -> (copy b) own"))
            return replace(step, call=with_mask(step.call, mask), outputs=silenced)

        calls = embed(plain.session, batch).calls[:stop]
        resid = plain.entering[start].repeat(n_copies, 1, 1)
        out = run_blocks(plain.session, calls, resid, changed, start)
        return rearrange(out, "(copy b) own d -> b copy own d", copy=n_copies)


Copies = Packed | Stacked


class Copying:
    """Runs the knockouts of one batch after another, packed until the model turns out not to read that."""

    def __init__(self) -> None:
        self._kind: type[Copies] = Packed

    def measure(
        self,
        plain: Plain,
        knockouts: Sequence[Knockout],
        stop: int,
        see: Callable[[Copies, States], Float[Tensor, "batch copy"]],
    ) -> Float[Tensor, "batch knockout"]:
        """Return what `see` makes of the copies that enter layer `stop`, for knockouts sorted by window
        start."""
        view, weights, found = plain.view, plain.weights, []
        expected = view.logits_at(weights, plain.entering[stop], plain.batch.last)
        copies = self._kind(plain)

        def run(some: Sequence[Knockout]) -> None:
            start = some[0].window.start
            states = copies.run_blocks([replace(some[0], window=range(start, start)), *some], stop)
            unchanged = view.logits_at(weights, states[:, 0], copies.last)
            if not torch.allclose(unchanged, expected, rtol=0, atol=AGREE * float(expected.abs().max())):
                raise Unlike
            found.append(see(copies, states[:, 1:]))

        try:
            each_piece(knockouts, copies.at_once, run)
        except (Unlike, RuntimeError, ValueError, TypeError, IndexError) as error:
            if self._kind is Stacked or isinstance(error, InputError) or is_out_of_memory(error):
                raise
            _logger.info("this model cannot read packed prompts: knockouts take whole ones, and longer")
            self._kind = Stacked
            return self.measure(plain, knockouts, stop, see)
        return torch.cat(found, 1)


def batch_size(runs: Runs, into: Places, n_knockouts: int) -> int:
    """Return how many prompts to run together, each with one row of copies."""
    own = max(len(p.ids) - min(places) for p, places in zip(runs.prompts, into, strict=True))
    copied = min(n_knockouts * own, max(TOKENS_PER_ROW, own))
    return rows_at_once(runs.view, max(len(p.ids) for p in runs.prompts) + own + copied)
