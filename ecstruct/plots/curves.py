"""Numbers through training: by step in panels side by side, by epoch, and by learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol, TypeAlias

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.layout import legend_width, side_by_side
from ecstruct.plots.lines import Line, add_line, line_colours, line_panels
from ecstruct.plots.style import GREY

Curve: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | np.ndarray
"""Values by step, or by step and seed."""

RANGE = (-0.5, 11.0)
"""The ranks that are always shown: with 20 options, as in the paper, guessing has a rank of 9.5."""


class RankHistory(Protocol):
    """What a finetuning run keeps: the mean rank per epoch of each set of prompts."""

    @property
    def ranks(self) -> Mapping[str, Curve]:
        """Mean ranks by the name of the prompts."""
        ...


def curve_panels(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    x: str,
    y: str,
    boundaries: Mapping[str, Sequence[float]] | None = None,
) -> go.Figure:
    """Draw panels of curves that share the y axis; a line is the mean over seeds, its band their range.

    Names that end in "implications" are drawn dashed; names that differ only in "facts" and
    "implications" share a colour. A name looks the same in every panel. Where a seed is missing (NaN), line
    and band have a gap, because a mean over fewer seeds is another number.

    Args:
        panels: By title, and in each by name, values (step, seed) at the steps 0, 1, 2...
        x: The title of the x axes.
        y: The title of the y axis, with its unit.
        boundaries: By panel, steps at which a phase of training ends, drawn as dotted lines.

    Raises:
        InputError: There is nothing to show, a step lacks a seed, or boundaries name a panel that is not
            there.
    """
    if not panels or not all(panels.values()):
        raise InputError("there are no curves to show; give each panel at least one")
    boundaries = boundaries or {}
    if unknown := [title for title in boundaries if title not in panels]:
        raise InputError(f"boundaries= names {unknown[0]!r}, but the panels are {list(panels)}")
    lines = {title: {n: _over_seeds(n, c) for n, c in curves.items()} for title, curves in panels.items()}
    if not any(line.extent() for by_name in lines.values() for line in by_name.values()):
        raise InputError("there are no curves to show; none has a finite value")
    figure: Any = line_panels(
        lines, x=x, y=y, between="seeds", hover=f"{escape(x, quote=False)} %{{x}}: %{{y:.3~g}}"
    )
    for i, title in enumerate(panels):
        for step in boundaries.get(title, ()):
            line = {"color": GREY, "width": 1, "dash": "dot"}
            x_axis, y_axis = (f"{axis}{i + 1 if i else ''}" for axis in "xy")
            place = {"x0": step, "x1": step, "xref": x_axis, "y0": 0, "y1": 1, "yref": f"{y_axis} domain"}
            figure.add_shape(type="line", line=line, layer="below", **place)
    return figure


def rank_curves(history: RankHistory | Mapping[str, Curve]) -> go.Figure:
    """Draw the mean rank of the answers per epoch, a line per set of prompts.

    Names that end in "implications" are drawn dashed, all others (facts) solid; names that differ only
    in "facts" and "implications" share a colour. Ranks are counted from 0, so that lower is
    better and 0 is a right answer first of all options. Epoch 0 is the model before finetuning.

    Of several seeds the line is the mean, and a band spans the lowest to the highest.

    Args:
        history: Mean ranks by name, or an object that has them as `.ranks`: by epoch, or by epoch and seed;
            the first value of each is that before finetuning.

    Raises:
        InputError: There is nothing to show, or an epoch lacks a seed.
    """
    ranks = history if isinstance(history, Mapping) else history.ranks
    if not ranks or not all(len(values) for values in ranks.values()):
        raise InputError("there are no ranks to show; name prompts with evaluate= in finetune")
    lines = {name: _over_seeds(name, values) for name, values in ranks.items()}
    largest = max((value for line in lines.values() for value in line.extent()), default=0.0)
    title, hover = "mean rank of the answer (0 is best)", "epoch %{x}: mean rank %{y:.2f}"
    figure = line_panels({"": lines}, x="epoch", y=title, hover=hover, between="seeds", include=RANGE)
    return figure.update_yaxes(range=[RANGE[0], max(RANGE[1], 1.05 * largest)])


def number_by_rate(series: Mapping[str, Mapping[float, Sequence[float]]], *, y: str = "value") -> go.Figure:
    """Draw lines through the means over seeds by learning rate, and a dot per seed.

    Lines of implications are dashed.

    Args:
        series: By name, the values of the seeds at each learning rate.
        y: The title of the axis of values.

    Raises:
        InputError: There are no series, or a learning rate is not positive.
    """
    if not series:
        raise InputError("there are no series to show; give at least one")
    if wrong := [lr for values in series.values() for lr in values if not lr > 0]:
        raise InputError(f"lr={wrong[0]} has no place on a logarithmic axis; give positive ones")
    right = legend_width(list(series))
    figure = side_by_side([""], x="learning rate", y=y, widths=[480], height=264, right=right)
    for (name, values), colour in zip(series.items(), line_colours(series).values(), strict=True):
        rates = sorted(values)
        line = Line(np.array(rates), np.array([float(np.mean(values[lr])) for lr in rates]))
        add_line(figure, name, line, "", colour, "lr %{x:.3~g}: %{y:.3~g}")
        dots = [(lr, value) for lr in rates for value in values[lr] if len(values[lr]) > 1]
        if dots:
            shown = escape(name, quote=False)
            figure.add_scatter(
                x=[lr for lr, _ in dots],
                y=[value for _, value in dots],
                mode="markers",
                legendgroup=shown,
                showlegend=False,
                marker={"size": 4, "color": colour, "opacity": 0.5},
                hovertemplate=f"{shown}, one seed<br>lr %{{x:.3~g}}: %{{y:.3~g}}<extra></extra>",
            )
    measured = sorted({lr for values in series.values() for lr in values})
    names = [f"{lr:g}" for lr in measured]
    figure.update_xaxes(type="log", showgrid=True, tickvals=measured, ticktext=names)
    return figure.update_layout(showlegend=True)


def _over_seeds(name: str, values: Curve) -> Line:
    """Return the mean over seeds at the steps 0, 1, 2..., and the range of the seeds about it.

    Raises:
        InputError: There are no values, or not the same number of seeds at each step.
    """
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{name!r} does not have a number for each seed at every step") from None
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name!r} is no curve: it needs values by step, or by step and seed")
    ends = (array.min(1), array.max(1)) if array.shape[1] > 1 else None
    return Line(np.arange(len(array)), array.mean(1), ends)
