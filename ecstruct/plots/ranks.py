"""How facts, and the implications that were never trained, are learned: mean rank per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.lines import Curve, add_curve, by_seed, line_colours, step_axis, value_axis
from ecstruct.plots.style import TEMPLATE

RANGE = (-0.5, 11.0)
"""Ranks that are always shown: 20 options, as in the paper, make 9.5 the rank of guessing."""


class RankHistory(Protocol):
    """What a finetuning run keeps: the mean rank per epoch of each set of prompts."""

    @property
    def ranks(self) -> Mapping[str, Curve]: ...


def rank_curves(history: RankHistory | Mapping[str, Curve]) -> go.Figure:
    """Mean rank of the answers per epoch, a line per set of prompts.

    Names that end in "implications" are drawn dashed, all others (facts) solid; names that differ only
    in "facts" and "implications" share a colour. Ranks are counted from 0, so that lower is
    better and 0 is a right answer first of all options. Epoch 0 is the model before finetuning.

    Of several seeds the line is the mean, and a band spans the lowest to the highest.

    Args:
        history: Mean ranks by name, or what has them as `.ranks`: by epoch, or by epoch and seed;
            the first value of each is that before finetuning.

    Raises:
        InputError: nothing to show, or not every seed at every epoch.
    """
    ranks = history if isinstance(history, Mapping) else history.ranks
    if not ranks or not all(len(values) for values in ranks.values()):
        raise InputError("there are no ranks to show; name prompts with evaluate= in finetune")
    curves = {name: by_seed(name, values) for name, values in ranks.items()}
    colours = line_colours(curves)
    figure = go.Figure()
    for name, values in curves.items():
        hover = "epoch %{x}: mean rank %{y:.2f}"
        add_curve(figure, name, values, colour=colours[name], hover=hover)
    epochs = max(len(values) for values in curves.values()) - 1
    largest = max(float(values.max(initial=0.0, where=values == values)) for values in curves.values())
    longest = max(len(name) for name in curves)
    figure.update_layout(
        template=TEMPLATE,
        plot_bgcolor="white",
        width=480 + 60 + 7 * longest,
        height=340,
        margin={"l": 64, "r": 70 + 7 * longest, "t": 20, "b": 56},
        showlegend=True,
        legend={"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top", "tracegroupgap": 0},
        xaxis=step_axis("epoch", epochs),
        yaxis=value_axis("mean rank of the answer (0 is best)", RANGE[0], max(RANGE[1], 1.05 * largest)),
    )
    return figure
