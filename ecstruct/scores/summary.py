"""The summary of scores that a notebook shows: models, options, rewards, and the strongest components."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import pandas as pd
import xarray as xr

from ecstruct.scores.components import component_names

MISSED = 0.5
"""If informative scores miss more than this share of the reward's change, they are no shares of it."""

_AGREES = 0.1

HOW = {True: "causal", False: "refuted: causal"}
"""The label of a causal score, by whether the fast score agrees with it."""

_FOR_MACHINES = ("fingerprint", "versions")
"""Attributes that the summary omits; they are in `.attrs`."""


def agree(score: float, causal: float) -> bool:
    """Return whether an intervention does at least a tenth of what a score says, in the same direction.
    Sizes may differ several times even where the order of components holds, but an intervention that does
    next to nothing, or the opposite, refutes the score."""
    return abs(causal) >= _AGREES * abs(score) and causal * score >= 0


def summary_html(dataset: xr.Dataset, title: str, top: Callable[[int, str], pd.DataFrame]) -> str:
    """Return HTML with a title, a few lines and a small table per score; text in the scores is escaped.
    `top` returns the n strongest components by a score, as `ExtractiveScores.top`."""
    rows = [("prompts", _prompts(dataset))]
    if "reward" in dataset:
        before, after = (
            float(dataset["reward"].sel(state=state).astype("float64").mean())
            for state in ("before", "after")
        )
        rows.append(("mean reward", f"{before:.3g} before, {after:.3g} after"))
    rows += [
        (str(key).replace("_", " "), _plain(value))
        for key, value in dataset.attrs.items()
        if key not in _FOR_MACHINES
    ]
    listed = "".join(
        f'<tr><th style="text-align:left">{escape(key)}</th>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for key, value in rows
    )
    tops = "".join(
        f"<div><b>{escape(str(score))}</b>{_top_html(top(3, str(score)))}</div>"
        for score in dataset["score"].values
    )
    return (
        f"<div><b>{escape(title)}</b><table>{listed}</table>"
        f'<div style="display:flex;flex-wrap:wrap;gap:2em">{tops}</div></div>'
    )


def adding_up(reward: xr.DataArray, completeness: xr.DataArray) -> str:
    """Say in a sentence whether informative scores can be read as shares of the reward's change. The
    arguments are `reward` (prompt, state) and `completeness` (prompt) of `ExtractiveScores`."""
    change = float((reward.sel(state="after") - reward.sel(state="before")).mean())
    if not change:
        return "The reward did not change: there is nothing that the scores could be shares of."
    left = float(abs(completeness).mean())
    said = (
        f"The reward changed by {change:+.3g} on average, and the informative scores of a prompt miss its "
        f"change by {left:.3g}"
    ).replace("-", "−")
    if change < 0:
        return f"{said}: these answers lost by it, and ecstruct diagnose tells whether they were learnt."
    if left <= MISSED * abs(change):
        return f"{said}, {left / abs(change):.0%} of it: they are shares of the whole to that precision."
    return (
        f"{said}, which is more than half: do not read them as shares of the whole; their order may still "
        "hold, and --path-steps 4 makes them add up better."
    )


def with_values(top: pd.DataFrame) -> list[str]:
    """Return the names of the components of `ExtractiveScores.top`, with their fast and causal scores."""
    values = [f"{value:+.3g}" for value in top["value"]]
    if "causal" in top:
        verified = zip(values, top["causal"], top["agrees"], strict=True)
        values = [
            value if pd.isna(agrees) else f"{value}; {HOW[bool(agrees)]} {causal:+.3g}"
            for value, causal, agrees in verified
        ]
    return [f"{name} ({value})" for name, value in zip(component_names(top), values, strict=True)]


def _top_html(top: pd.DataFrame) -> str:
    shown = pd.DataFrame({"component (Δ reward)": with_values(top)})
    return shown.to_html(index=False, border=0)


def _prompts(dataset: xr.Dataset) -> str:
    texts = dataset["text"].values
    others = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
    return f"“{texts[0]}”{others}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        told = {key: part for key, part in value.items() if part is not None}
        return ", ".join(f"{key} {_plain(part)}" for key, part in told.items() if key not in _FOR_MACHINES)
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    text = str(value)
    return text if len(text) <= 120 else text[:119] + "…"
