"""Scores averaged over prompts, at the slots of a template; see `ecstruct.scores.aggregate`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.plots.scores import head_map, heatmap
from ecstruct.plots.style import number, plain_token
from ecstruct.scores.components import both_kinds
from ecstruct.scores.summary import HOW, agree


@dataclass(frozen=True, eq=False)
class SlotScores:
    """Scores per slot of a template: what `ExtractiveScores.aggregate()` returns.

    `dataset` holds `mlp` (score, layer, slot), `heads` (score, layer, head, slot), `count` (slot) and the
    other variables of the scores (`reward`, `rest`, attributions), averaged over the prompts; with
    intervals, also their ends, such as `mlp_low`. If components were verified, it also holds causal scores,
    `causal_mlp` (score, layer) and `causal_heads` (score, layer, head), and the scores summed over all
    tokens, `total_mlp` and `total_heads`. The dimension `slot` has the coordinates `slot_text`, its label;
    `part`, one of "prefix", "entity" and "suffix"; and `wrapper`, whether it belongs to a chat template.
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
        """The level of the intervals, such as 0.95; None if there are no intervals."""
        return self.dataset.attrs.get("aggregate", {}).get("ci")

    @property
    def low(self) -> xr.Dataset:
        """The lower ends of the intervals: `mlp` and `heads` as above, and `attention` (score,
        layer, slot) for the sum over a layer's heads. NaN where fewer than two prompts have a token.
        """
        return self._ends("low")

    @property
    def high(self) -> xr.Dataset:
        """The upper ends of the intervals, with the same variables as `low`."""
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
        """Whether each slot belongs to the chat template around the prompts."""
        known = self.dataset.coords.get("wrapper")
        return [False] * len(self.slot_text) if known is None else [bool(one) for one in known.values]

    @property
    def attrs(self) -> dict[str, Any]:
        """A copy of the scores' attributes, including the options of the aggregation."""
        return copy.deepcopy(self.dataset.attrs)

    def folded(self) -> SlotScores:
        """Sum each run of chat-template tokens into one slot, except for the prompt's last token, where the
        answer is read. Means with intervals are returned unchanged, because ends do not add up."""
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

    def slots(self, prompt: int | None = None, template: str | None = None) -> SlotScores:
        """Return these scores themselves, so that figures can take them in place of `ExtractiveScores`.

        Raises:
            InputError: `prompt` or `template` is given, but aggregated scores have none to choose from.
        """
        if prompt is not None or template is not None:
            raise InputError("aggregated scores have no prompt= or template= to choose from")
        return self

    def verdicts(self, score: str) -> dict[tuple[int, int | None], str]:
        """Return lines that compare scores of whole components with their causal scores, for the components
        that were verified, by the places of their layer and head in the arrays (None for MLPs)."""
        lines, layers, heads = {}, *(self.dataset[name].values for name in ("layer", "head"))
        for kind in ("mlp", "heads"):
            if f"causal_{kind}" not in self.dataset:
                continue
            totals, causal = (
                self.dataset[f"{what}_{kind}"].sel(score=score).transpose("layer", ...).values
                for what in ("total", "causal")
            )
            for at in map(tuple, np.argwhere(~np.isnan(causal))):
                layer, head = at[0], at[1] if kind == "heads" else None
                name = f"MLP {layers[layer]}" if head is None else f"head {layers[layer]}.{heads[head]}"
                total, effect = totals[at].item(), causal[at].item()
                lines[layer, head] = (
                    f"{name}, all tokens: {number(total)}; {HOW[agree(total, effect)]} {number(effect)}"
                )
        return lines

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per score, component and slot; `head` is missing for MLPs.

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
        """Plot layer by slot, one row per score; see `ecstruct.plots.heatmap`."""
        return heatmap(self, **options)

    def head_map(self, slot: int | str = -1, **options: Any) -> go.Figure:
        """Plot layer by head at one slot; see `ecstruct.plots.head_map`."""
        return head_map(self, slot, **options)

    def __repr__(self) -> str:
        sizes = self.heads.sizes
        return (
            f"<SlotScores of {sizes['layer']} layers x {sizes['head']} heads at "
            f"{' '.join(plain_token(text) for text in self.slot_text)!r}>"
        )
