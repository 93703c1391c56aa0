"""Runs in which sets of weights have other values at some positions.

A site with the input x and the change dW of its weights gives f(x; W + dW) at those features and positions
that a graft chooses, and f(x; W) at all others. A weight is replaced where it multiplies: keys and values
at the token that is attended to. Every row of a batch has a graft of its own, so that many run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ecstruct.engine.forward import Intervention, Step, embed, entering, run_blocks
from ecstruct.engine.plan import each_piece, rows_at_once
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.facts.tokens import Batch
from ecstruct.grafting.weight_sets import WeightSet
from ecstruct.models.edits import Edit
from ecstruct.models.sites import SINKS, Site, Weights, token_axis

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Graft:
    """A set of weights that have other values, and the positions at which they do: `places` has a list for
    every prompt."""

    weights: WeightSet
    places: Sequence[Sequence[int]]


@dataclass(frozen=True)
class GraftedModel:
    """A model, and the change dW of its weights; every graft applies a part of this change."""

    session: Session
    change: Weights

    def each(
        self,
        rows: Sequence[int],
        batch: Batch,
        grafts: Mapping[Name, Graft],
        see: Callable[[Name, Float[Tensor, "batch d_vocab"]], object],
    ) -> None:
        """Run a batch under every graft: call `see` with the graft's name and the logits at the position of
        each prompt where its answer is predicted. `rows` are the indices of the batch's prompts."""
        view = self.session.view
        embedded = embed(self.session, batch)
        inputs = entering(self.session, embedded)
        # Layers below the first one that is changed have run already.
        first = {name: min(its.weights.layers, default=view.n_layers) for name, its in grafts.items()}
        ordered = sorted(grafts, key=first.__getitem__)
        copies = rows_at_once(view, batch.ids.shape[1]) // len(rows)

        def run(names: Sequence[Name]) -> None:
            piece, start = [grafts[name] for name in names], first[names[0]]
            calls = embed(self.session, batch.repeat(len(piece))).calls
            resid = inputs[start].repeat(len(piece), 1, 1)
            at = _where(rows, batch, piece)
            left = run_blocks(self.session, calls, resid, self._grafting(piece, at), start)
            logits = view.logits_at(self.session.weights, left, embedded.read.repeat(len(piece)))
            for name, its in zip(names, logits.split(len(rows)), strict=True):
                see(name, its)

        each_piece(ordered, copies, run)

    def _grafting(self, grafts: Sequence[Graft], at: Bool[Tensor, "row pos"]) -> Intervention:
        """Return the intervention by which every row has its graft."""
        view, copies = self.session.view, len(grafts)

        def edits(step: Step) -> Iterator[tuple[str, Edit, Edit]]:
            for name, site in view.block_sites[step.layer].items():
                change = {w: self.change[w] for w in site.weights.values() if w in self.change}
                chosen = [graft.weights.features(view, step.layer, site) for graft in grafts]
                features = None if chosen[0] is None else torch.stack([f for f in chosen if f is not None])
                if not change or features is None or not features.any():
                    continue
                if name == SINKS:
                    raise InputError(
                        "this model's attention has sinks, which are read inside it and cannot be grafted: "
                        "graft MLPs, or other projections of heads than 'heads.k'."
                    )
                of_rows = features.to(at.device).repeat_interleave(len(at) // copies, 0)
                yield name, *_edit(site, change, self.session.weights, of_rows, at)

        def grafted(step: Step) -> Step:
            found = [*edits(step)]
            inputs = {name: seeing for name, seeing, _ in found}
            outputs = {name: moving for name, _, moving in found}
            return replace(step, inputs=inputs, outputs=outputs)

        return grafted


def _edit(
    site: Site,
    change: Weights,
    weights: Weights,
    features: Bool[Tensor, "row feature"],
    at: Bool[Tensor, "row pos"],
) -> tuple[Edit, Edit]:
    """Return the edit that notes the input of a site, and the one that moves its output."""
    seen: list[Tensor] = []
    of_columns = site.name == "attn.o" and features.shape[1] > 1
    if of_columns:
        change = {
            own: change[own] for own in site.weights.values() if own in change and change[own].ndim == 2
        }

    def see(x: Tensor) -> Tensor:
        seen[:] = [x]
        return x

    def move(y: Tensor) -> Tensor:
        x = seen.pop()
        if of_columns:
            x = x * rearrange(features, "row feature -> row 1 feature")
        moved = site.difference(x, change, weights)
        if moved is None:
            return y
        return y + moved * _mask(site, moved, at, None if of_columns else features)

    return see, move


def _mask(
    site: Site, moved: Tensor, at: Bool[Tensor, "row pos"], features: Bool[Tensor, "row feature"] | None
) -> Bool[Tensor, "row ..."]:
    """Return which entries of the difference count, in a shape that broadcasts to it."""
    if moved.ndim == 3:
        places = rearrange(at, "row pos -> row pos 1")
        return places if features is None else places & features[:, None]
    # The norm of single queries or keys: [row, head, pos, d_head] or [row, pos, head, d_head].
    pattern = "row pos -> row pos 1 1" if token_axis(site) == 1 else "row pos -> row 1 pos 1"
    places = rearrange(at, pattern)
    if features is None or features.shape[1] == 1:
        return places if features is None else places & features[:, :, None, None]
    return places & rearrange(features, "row (head d) -> row 1 head d", d=moved.shape[-1])


def _where(rows: Sequence[int], batch: Batch, grafts: Sequence[Graft]) -> Bool[Tensor, "row pos"]:
    found = torch.zeros_like(batch.ids, dtype=torch.bool).repeat(len(grafts), 1)
    for i, graft in enumerate(grafts):
        for j, row in enumerate(rows):
            found[i * len(rows) + j, list(graft.places[row])] = True
    return found
