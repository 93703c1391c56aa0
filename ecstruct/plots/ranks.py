"""How facts, and the implications that were never trained, are learned: mean rank per epoch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Protocol

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.style import LINE_COLOURS, TEMPLATE

RANGE = (-0.5, 11.0)
"""Ranks that are always shown: 20 options, as in the paper, make 9.5 the rank of guessing."""


class RankHistory(Protocol):
    """What a finetuning run keeps: the mean rank per epoch of each set of prompts."""

    @property
    def ranks(self) -> Mapping[str, Sequence[float]]: ...


def rank_curves(history: RankHistory | Mapping[str, Sequence[float]]) -> go.Figure:
    """Mean rank of the answers per epoch, a line per set of prompts.

    Names that contain "impl" are drawn dashed, all others (facts) solid; names that differ only
    in "facts" and "implications" share a colour. Ranks are counted from 0, so that lower is
    better and 0 is a right answer first of all options. Epoch 0 is the model before finetuning.

    Args:
        history: Mean ranks by name, or what has them as `.ranks`; the first value of each is
            that before finetuning.

    Raises:
        InputError: nothing to show.
    """
    ranks = history if isinstance(history, Mapping) else history.ranks
    if not ranks or not all(len(values) for values in ranks.values()):
        raise InputError("there are no ranks to show; name prompts with evaluate= in finetune")
    settings = list(dict.fromkeys(_setting(name) for name in ranks))
    colours = {setting: LINE_COLOURS[i % len(LINE_COLOURS)] for i, setting in enumerate(settings)}
    figure = go.Figure()
    for name, values in ranks.items():
        dashed = _is_implication(name)
        shown = escape(name, quote=False)
        figure.add_trace(
            go.Scatter(
                x=list(range(len(values))),
                y=[float(value) for value in values],
                name=shown,
                mode="lines+markers",
                cliponaxis=False,
                line={"color": colours[_setting(name)], "dash": "dash" if dashed else "solid"},
                marker={"size": 6, "symbol": "circle-open" if dashed else "circle"},
                hovertemplate=f"{shown}<br>epoch %{{x}}: mean rank %{{y:.2f}}<extra></extra>",
            )
        )
    epochs = max(len(values) for values in ranks.values()) - 1
    largest = max(float(np.nanmax(np.asarray(values, dtype=float))) for values in ranks.values())
    longest = max(len(name) for name in ranks)
    figure.update_layout(
        template=TEMPLATE,
        plot_bgcolor="white",
        width=480 + 60 + 7 * longest,
        height=340,
        margin={"l": 64, "r": 70 + 7 * longest, "t": 20, "b": 56},
        showlegend=True,
        legend={"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"},
        xaxis={
            "title": {"text": "epoch", "standoff": 8},
            "range": [-0.2, epochs + 0.2],
            "dtick": max(1, -(-epochs // 12)),
            "showline": True,
            "linecolor": "#222222",
        },
        yaxis={
            "title": {"text": "mean rank of the answer (0 is best)"},
            "range": [RANGE[0], max(RANGE[1], 1.05 * largest)],
            "showgrid": True,
            "gridcolor": "#e4e4e4",
            "showline": True,
            "linecolor": "#222222",
        },
    )
    return figure


def _is_implication(name: str) -> bool:
    return "impl" in name.lower()


def _setting(name: str) -> str:
    """What is left of a name without "facts" and "implications".

    >>> _setting("first-hop facts") == _setting("first-hop implications")
    True
    """
    return re.sub(r"(?i)\W*(facts?|implications?|impl)\W*", " ", name).strip()
