"""Scores at the slots of a template, which prompts were averaged onto: see `ecstruct.scores.aggregate`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.scores.components import both_kinds

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class SlotScores:
    """Scores per slot of a template: what `ExtractiveScores.aggregate()` returns.

    `dataset` holds `mlp` (score, layer, slot), `heads` (score, layer, head, slot), `count` (slot)
    and whatever else the scores had (`reward`, `rest`, attributions), averaged over the prompts; with
    intervals, also their ends, as `mlp_low`. If components were verified, it has what interventions do,
    `causal_mlp` (score, layer) and `causal_heads` (score, layer, head), and what the scores of all tokens
    sum to, `total_mlp` and `total_heads`.
    Coordinates of `slot`: `slot_text`, its label, `part`: "prefix", "entity" or "suffix", and `wrapper`:
    whether it is of the chat template that the prompts are in.
    """

    dataset: xr.Dataset

    @property
    def mlp(self) -> xr.DataArray:
        """Mean scores of the MLPs (score, layer, slot); NaN where no prompt has a token."""
        return self.dataset["mlp"]

    @property
    def heads(self) -> xr.DataArray:
        """Mean scores of the attention heads (score, layer, head, slot)."""
        return self.dataset["heads"]

    @property
    def count(self) -> xr.DataArray:
        """The number of prompts behind each slot (slot)."""
        return self.dataset["count"]

    @property
    def ci(self) -> float | None:
        """The level of the intervals, as 0.95; None when there are none."""
        return self.dataset.attrs.get("aggregate", {}).get("ci")

    @property
    def low(self) -> xr.Dataset:
        """The lower ends of the intervals: `mlp` and `heads` as above, and `attention` (score,
        layer, slot), of the heads of a layer summed. NaN where fewer than two prompts have a token.
        """
        return self._ends("low")

    @property
    def high(self) -> xr.Dataset:
        """The upper ends of the intervals, as `low`."""
        return self._ends("high")

    def _ends(self, which: str) -> xr.Dataset:
        if self.ci is None:
            raise InputError("these means have no intervals; .aggregate(ci=0.95) gives some")
        return xr.Dataset({name: self.dataset[f"{name}_{which}"] for name in ("mlp", "heads", "attention")})

    @property
    def slot_text(self) -> list[str]:
        """The slots' labels, as the tokenizer spells its tokens; labels may repeat."""
        return [str(label) for label in self.dataset["slot_text"].values]

    @property
    def in_wrapper(self) -> list[bool]:
        """Whether each slot is of the chat template that the prompts are in."""
        known = self.dataset.coords.get("wrapper")
        return [False] * len(self.slot_text) if known is None else [bool(one) for one in known.values]

    @property
    def attrs(self) -> dict[str, Any]:
        """A copy of the attributes of the scores, with what was aggregated and how."""
        return copy.deepcopy(self.dataset.attrs)

    def folded(self) -> SlotScores:
        """The same with each run of the chat template's tokens summed into one slot, but for the prompt's
        last token, where the answer is read. Means with intervals stay as they are: ends do not add up."""
        wrapped, n = self.in_wrapper, len(self.slot_text)
        inner = [one and slot < n - 1 for slot, one in enumerate(wrapped)]
        starts = [slot for slot in range(n) if not (slot and inner[slot] and inner[slot - 1])]
        if self.ci is not None or len(starts) == n:
            return self
        sizes = np.diff([*starts, n])
        whole = self.dataset
        texts = [
            text if size == 1 else f"{size} template tokens"
            for text, size in zip(whole["slot_text"].values[starts], sizes, strict=True)
        ]
        dataset = whole.isel(slot=starts).assign_coords(slot_text=("slot", texts))
        for name, values in whole.data_vars.items():
            if "slot" in values.dims:
                add = np.maximum if name == "count" else np.add
                summed = add.reduceat(values.values, starts, axis=values.get_axis_num("slot"))
                dataset[name] = (values.dims, summed)
        return SlotScores(dataset)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per score, component and slot; `head` is missing for MLPs.

        Means with intervals also have the columns `low` and `high`.
        """
        ends = {} if self.ci is None else {"low": self.low, "high": self.high}

        def rows(name: str) -> pd.DataFrame:
            columns = {"value": self.dataset[name], **{end: values[name] for end, values in ends.items()}}
            return xr.Dataset(columns).to_dataframe([*self.dataset[name].dims]).reset_index()

        frame = both_kinds(rows("mlp"), rows("heads"))
        frame["count"] = self.count.values[frame["slot"].to_numpy()]
        columns = ["score", "kind", "layer", "head", "slot", "slot_text", "count", "value", *ends]
        return frame.reindex(columns=columns).reset_index(drop=True)

    def heatmap(self, **options: Any) -> go.Figure:
        """Layer by slot, one row per score: `ecstruct.plots.heatmap`."""
        from ecstruct.plots import heatmap

        return heatmap(self, **options)

    def head_map(self, slot: int | str = -1, **options: Any) -> go.Figure:
        """Layer by head at one slot: `ecstruct.plots.head_map`."""
        from ecstruct.plots import head_map

        return head_map(self, slot, **options)

    def __repr__(self) -> str:
        sizes = self.heads.sizes
        return (
            f"<SlotScores of {sizes['layer']} layers x {sizes['head']} heads at "
            f"{' '.join(plain_token(text) for text in self.slot_text)!r}>"
        )


def plain_token(text: str) -> str:
    """A token as one reads it: without its tokenizer's mark for the space before it.

    >>> plain_token("Ġspeak"), plain_token("▁speak"), plain_token(" speak"), plain_token("a b")
    ('speak', 'speak', 'speak', 'a b')
    """
    return text.lstrip("Ġ▁ ") or text
