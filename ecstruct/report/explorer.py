"""Scores to look through in a report: any prompt, or the mean of a template's, and the heads of any cell.

The page holds the numbers, as float32 in base64, and `explorer.js` draws them. Figures are those of
`ecstruct.plots.panels`, made here without their numbers, one per template, for the longest of its prompts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from ecstruct.plots.panels import TAG, Column, Panel, label_length
from ecstruct.plots.scores import ROWS, slot_labels
from ecstruct.plots.screen import panel_figure
from ecstruct.plots.style import reward_title
from ecstruct.report.templates import render
from ecstruct.scores.aggregate import aggregate_dataset, prompt_slots
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.slots import SlotScores

BYTES = 20_000_000
"""The bytes of a page that the numbers of one explorer take at most, without those of means."""

MOST_PROMPTS = 500
"""The largest number of prompts that can be chosen from in one list."""

_KEPT = ("type", "xaxis", "yaxis", "colorscale", "colorbar")


@dataclass(frozen=True)
class Explorer:
    """An explorer shows the scores of one prompt at a time, layer by token, and the heads of any cell."""

    scores: ExtractiveScores
    caption: str = ""

    def html(self, name: str) -> str:
        """Return the explorer as a part of a page; `name` is unique there."""
        chosen, total = self._chosen(), self.scores.dataset.sizes["prompt"]
        caption = self.caption
        if len(chosen) < total:
            caption += (
                f" {len(chosen)} of {total} prompts are in this page, the first of each template; "
                "means are over all."
            )
        return render("explorer.html", name=name, caption=caption.strip(), data=self._data(chosen))

    def _chosen(self) -> list[int]:
        """Choose the prompts that there is room for: the first of every template, then the second, ..."""
        dataset = self.scores.dataset
        templates = pd.Series(dataset["template"].values.astype(str))
        order = np.argsort(templates.groupby(templates).cumcount().values, kind="stable")
        per_token = dataset.sizes["layer"] * (1 + dataset.sizes["head"]) * len(self._rows()) * 4 * 4 / 3
        fitting = np.cumsum(dataset["length"].values[order] * per_token) <= BYTES
        fitting[0] = True  # one is always there
        return sorted(int(prompt) for prompt in order[fitting][:MOST_PROMPTS])

    def _rows(self) -> list[str]:
        """Return the scores, from the top row of panels to the lowest."""
        return [row for row in ROWS if row in self.scores.dataset["score"].values]

    def _data(self, chosen: list[int]) -> dict[str, Any]:
        """Return what `explorer.js` draws: names, views of means and prompts, and empty figures."""
        dataset = self.scores.dataset
        frames: dict[tuple[int, str], int] = {}
        views = []
        for template in dict.fromkeys(map(str, dataset["template"].values)):
            own = [view | {"group": template or "prompts"} for view in self._views(template, chosen)]
            if not own:  # its only prompt is not in the page
                continue
            widest = max(len(view["labels"]) for view in own)
            longest = max((label for view in own for label in view["labels"]), key=label_length)
            frame = frames.setdefault((widest, longest), len(frames))
            views += [view | {"frame": frame} for view in own]
        return {
            "unit": reward_title(dataset.attrs),
            "scores": self._rows(),
            "layers": [int(layer) for layer in dataset["layer"].values],
            "heads": [str(head) for head in dataset["head"].values],
            "frames": [self._frame(*frame) for frame in frames],
            "views": views,
        }

    def _views(self, template: str, chosen: list[int]) -> Iterator[dict[str, Any]]:
        """Yield the views of one template: the mean of its prompts, then each of them."""
        dataset = self.scores.dataset
        small = dataset[[name for name in ("mlp", "heads", "reward") if name in dataset]]
        of_template = np.flatnonzero(dataset["template"].values.astype(str) == template)
        if len(of_template) > 1:
            mean = aggregate_dataset(small, template=template)
            named = f"{template}: " if template else ""
            label = f"{named}mean of {len(of_template)} prompts"
            yield self._view(mean, label, f"Template {label}." if template else f"{label.capitalize()}.")
        for prompt in of_template:
            if prompt in chosen:
                text, answer = (str(dataset[name].values[prompt]) for name in ("text", "answer"))
                yield self._view(
                    prompt_slots(small, int(prompt)), f"{prompt}: {text}", f"“{text}” Answer: “{answer}”."
                )

    def _view(self, slots: SlotScores, label: str, about: str) -> dict[str, Any]:
        """Return what one entry of the list of prompts shows; `about` is the sentence above it."""
        slots = slots.folded()
        shown = np.flatnonzero(slots.count.values > 0)
        all_labels = slot_labels(slots)
        labels = [all_labels[slot] for slot in shown]
        rows = self._rows()
        mlp = slots.mlp.sel(score=rows).transpose("score", "layer", "slot").values[..., shown]
        heads = slots.heads.sel(score=rows).transpose("score", "layer", "head", "slot").values[..., shown]
        if "reward" in slots.dataset:
            before, after = (float(slots.dataset["reward"].sel(state=s)) for s in ("before", "after"))
            about += f" Reward before {before:.3g}, after {after:.3g}.".replace("-", "−")
        if "rank" in slots.attrs.get("prompt", {}):
            before, after = slots.attrs["prompt"]["rank"]
            about += f" Rank before {before:g}, after {after:g}."
        return {
            "label": label,
            "about": about,
            "labels": labels,
            "tokens": [unescape(TAG.sub("", text)) for text in labels],
            "mlp": _base64(mlp),
            "heads": _base64(heads),
        }

    def _frame(self, n_tokens: int, longest: str) -> dict[str, Any]:
        """Return a figure without values for `n_tokens` tokens, of which `longest` is the longest."""
        layers = [int(layer) for layer in self.scores.dataset["layer"].values]
        nothing = np.zeros((len(layers), n_tokens))
        panel = Panel(nothing, layers, [longest] * n_tokens, reward_title(self.scores.dataset.attrs))
        rows = self._rows()
        columns = [
            Column(title, [panel] * len(rows), "token") for title in ("MLP", "attention (heads summed)")
        ]
        figure = json.loads(str(panel_figure(columns, rows, scale="symmetric").to_json()))
        data = [{key: trace[key] for key in _KEPT} for trace in figure["data"]]
        return {"data": data, "layout": figure["layout"]}


def explorer_script() -> str:
    """Return the script that draws the explorers of a page."""
    return (files("ecstruct.report") / "explorer.js").read_text(encoding="utf-8")


def _base64(values: np.ndarray) -> str:
    """Write numbers as float32, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
