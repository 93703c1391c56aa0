"""What heads attend to: which share of a head's attention goes to which kind of token.

For a query token, every key token that it can see is of the first of these kinds that fits:

    itself; the same token (at another position); the first token; a special token (such as [SEP]);
    the previous token; the next token; other tokens.

A head's share of a kind is the mean over prompts of the mean over their tokens of the attention to it, so
that the shares of a head sum to 1 (to less in models whose attention has a sink). Beside it stands the
share that uniform attention would give.

Source: Bhaskar, Friedman & Chen, "The Heuristic Core" (ACL 2024), who find that heads of the core attend to
tokens that premise and hypothesis share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from ecstruct.engine.attention import attention_pattern
from ecstruct.engine.forward import embed, run_blocks
from ecstruct.engine.plan import rows_at_once
from ecstruct.engine.session import Model, Session
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch
from ecstruct.models.labels import labels_of
from ecstruct.models.provenance import tokenizer_of
from ecstruct.plots.bars import grouped_bars

KINDS = (
    "the token itself",
    "the same token",
    "the first token",
    "a special token",
    "the previous token",
    "the next token",
    "other tokens",
)


@dataclass(frozen=True)
class Attended:
    """Where the attention of heads goes; what `ecstruct.subnetworks.attended` returns.

    `shares` (layer, head, kind) is the share of a head's attention that goes to each kind of token,
    `uniform` (kind) is that of uniform attention, and `heads` (layer, head) are those that were asked for.
    """

    shares: xr.DataArray
    uniform: xr.DataArray
    heads: xr.DataArray

    def table(self) -> pd.DataFrame:
        """Return a row per kind of token: the mean share of the `heads` that were asked for, that of all
        `others`, and that of `uniform` attention."""
        means = self._means()
        table = pd.DataFrame({name: [values.mean() for values in of] for name, of in means.items()})
        table.insert(0, "kind", list(KINDS))
        return table.assign(uniform=self.uniform.values)

    def conclusion(self) -> str:
        """Say to which kind of token the heads attend more than all others do."""
        table = self.table()
        row = table.loc[(table["heads"] - table["others"]).idxmax()]
        return (
            f"The {int(self.heads.sum())} heads attend to {row['kind']} with {row['heads']:.0%} of their "
            f"attention, all other heads with {row['others']:.0%}; uniform attention would with "
            f"{row['uniform']:.0%}. Of all kinds, this is the one where they differ most."
        )

    @property
    def figure(self) -> go.Figure:
        """The shares by kind of token; dots are heads."""
        means = self._means()
        groups = {
            kind: {name: of[i].tolist() for name, of in means.items()}
            | {"uniform": [float(self.uniform[i])]}
            for i, kind in enumerate(KINDS)
        }
        return grouped_bars(groups, y="share of the attention")

    def _means(self) -> dict[str, np.ndarray]:
        """Return the shares (kind, head) of the heads that were asked for, and of all others."""
        asked, shares = self.heads.values, self.shares.transpose("kind", "layer", "head").values
        return {"heads": shares[:, asked], "others": shares[:, ~asked]}


def attended(model: Model, prompts: PromptsLike, heads: xr.DataArray) -> Attended:
    """Measure where heads attend to in the full model.

    Args:
        model: A model, what `ecstruct.load` takes, or a session.
        prompts: The prompts that are read.
        heads: Which heads are compared with all others (layer, head), as `Core.heads`.

    Raises:
        InputError: heads of another model, all of them or none; prompts that cannot be read; attention
            whose values cannot be replaced.
    """
    session = Session.of(model)
    view = session.view
    asked = np.asarray(heads, bool)
    if asked.shape != (view.n_layers, view.n_heads):
        raise InputError(
            f"heads= are of {asked.shape} (layers, heads), and the model has "
            f"{(view.n_layers, view.n_heads)}: give those of this model."
        )
    if asked.all() or not asked.any():
        raise InputError("heads= has all heads or none, so that there are no two groups to compare.")
    tokenizer = tokenizer_of(view.model)
    labels, special = labels_of(tokenizer), sorted(set(tokenizer.all_special_ids))
    period = labels.second_from if labels else None
    tokenized = session.tokenize(prompts, with_options=False)
    shares = torch.zeros(view.n_layers, view.n_heads, len(KINDS), dtype=torch.float64)
    uniform = torch.zeros(len(KINDS), dtype=torch.float64)
    longest = max(len(t.ids) for t in tokenized)
    kept = (2 * view.n_heads + len(KINDS)) * longest**2 * torch.finfo(view.dtype).bits // 8

    def add(_rows: list[int], batch: Batch) -> None:
        embedded = embed(session, batch)
        real = batch.mask.double().cpu()
        weight = real / real.sum(1, keepdim=True) / len(tokenized)
        # A second text may have ids of its own for the same tokens.
        kinds = _kinds((batch.ids if period is None else batch.ids % period).cpu(), special)
        resid = embedded.resid
        for layer in range(view.n_layers):
            pattern = attention_pattern(session, embedded.calls[layer], resid, layer)
            shares[layer] += torch.einsum("bhqk,bqkn,bq->hn", pattern, kinds, weight)
            if layer == 0:
                seen = (pattern > 0).any(1).double()
                even = seen / seen.sum(-1, keepdim=True).clamp(min=1)
                uniform.add_(torch.einsum("bqk,bqkn,bq->n", even, kinds, weight))
            resid = run_blocks(session, embedded.calls[: layer + 1], resid, start=layer)

    with session.still():
        session.each_batch(tokenized, add, rows_at_once(view, longest, kept=kept))
    coordinates = {"layer": range(view.n_layers), "head": range(view.n_heads), "kind": list(KINDS)}
    found = xr.DataArray(shares.numpy(), coordinates, ("layer", "head", "kind"))
    even = xr.DataArray(uniform.numpy(), {"kind": list(KINDS)}, ("kind",))
    return Attended(found, even, xr.DataArray(asked, dims=("layer", "head")))


def _kinds(ids: Int[Tensor, "batch pos"], special: list[int]) -> Float[Tensor, "batch query key kind"]:
    """Say of which kind every key token is for every query token, one-hot."""
    at = torch.arange(ids.shape[1])
    query, key = at[:, None], at[None, :]
    is_special = torch.isin(ids, torch.tensor(special, dtype=ids.dtype))[:, None, :]
    fits: list[Tensor] = [
        query == key,
        (ids[:, :, None] == ids[:, None, :]) & ~is_special,
        key == 0,
        is_special,
        key == query - 1,
        key == query + 1,
        torch.ones(1, dtype=torch.bool),
    ]
    left, kinds = torch.ones(len(ids), *[len(at)] * 2, dtype=torch.bool), []
    for fit in fits:
        kinds.append(left & fit)
        left = left & ~fit
    return torch.stack(kinds, dim=-1).double()
