"""Bars by group and series, with the seeds they are the mean of and what they are compared with."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.beside import legend_width, text_width
from ecstruct.plots.lines import value_axis
from ecstruct.plots.style import GREY, INK, LINE_COLOURS, TEMPLATE

_SHARE = 0.8  # of a group's width that its bars take
_LABEL = 16  # characters of a line of a group's label
_LINE = 20  # pixels of a line of the legend


def grouped_bars(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    y: str,
    reference: Mapping[str, Mapping[str, float]] | None = None,
    chance: float | None = None,
) -> go.Figure:
    """A bar per series in each group: the mean over seeds; dots are the seeds, if there are several.

    Every group has a place for every series; one without values is left empty.

    Args:
        values: By group (on the x axis) and series (a colour), a value per seed.
        y: The title of the y axis, with its unit.
        reference: By group and series, the paper's values to compare with, drawn as diamonds.
        chance: The value of guessing, a dashed line.

    Raises:
        InputError: nothing to show; a reference to a group or series that is not among the values.
    """
    groups = list(values)
    series = list(dict.fromkeys(name for group in values.values() for name in group))
    seeds = {
        (g, s): np.asarray(values[group].get(name, ()), dtype=float)
        for g, group in enumerate(groups)
        for s, name in enumerate(series)
    }
    every = np.concatenate([*seeds.values(), []])
    if not np.isfinite(every).any():
        raise InputError("there are no bars to show; give at least one group with one value")
    compared = _compared(reference or {}, groups, series)

    slot = _SHARE / len(series)
    offsets = [(s - (len(series) - 1) / 2) * slot for s in range(len(series))]
    figure = go.Figure()
    for s, name in enumerate(series):
        shown, colour = escape(name, quote=False), LINE_COLOURS[s % len(LINE_COLOURS)]
        with_seeds = [g for g in range(len(groups)) if seeds[g, s].size]
        figure.add_trace(
            go.Bar(
                x=[g + offsets[s] for g in with_seeds],
                y=[float(seeds[g, s].mean()) for g in with_seeds],
                width=0.9 * slot,
                name=shown,
                legendgroup=shown,
                marker={"color": colour, "opacity": 0.75},
                customdata=[[escape(groups[g], quote=False), seeds[g, s].size] for g in with_seeds],
                hovertemplate=f"%{{customdata[0]}}<br>{shown}: %{{y:.3~g}}"
                "<br>seeds: %{customdata[1]}<extra></extra>",
            )
        )
        several = [g for g in with_seeds if seeds[g, s].size > 1]
        if several:
            figure.add_trace(
                go.Scatter(
                    # Seeds stand apart, so that equal values are seen to be several.
                    x=[
                        float(g + offsets[s] + apart)
                        for g in several
                        for apart in np.linspace(-0.25, 0.25, seeds[g, s].size) * slot
                    ],
                    y=[float(value) for g in several for value in seeds[g, s]],
                    name=shown,
                    legendgroup=shown,
                    showlegend=False,
                    mode="markers",
                    cliponaxis=False,
                    marker={"color": INK, "size": 4, "line": {"color": "white", "width": 0.5}},
                    hovertemplate=f"{shown}<br>one seed: %{{y:.3~g}}<extra></extra>",
                )
            )
    legend = list(series)
    if compared:
        legend.append("paper")
        figure.add_trace(
            go.Scatter(
                x=[g + offsets[s] for g, s in compared],
                y=list(compared.values()),
                name="paper",
                mode="markers",
                cliponaxis=False,
                # Open, but filled with white, as its outline would vanish on dark bars.
                marker={
                    "symbol": "diamond",
                    "size": 9,
                    "color": "white",
                    "line": {"color": INK, "width": 1.5},
                },
                hovertemplate="paper: %{y:.3~g}<extra></extra>",
            )
        )
    shown_values = [*every[np.isfinite(every)].tolist(), *compared.values(), 0.0]
    if chance is not None:
        shown_values.append(chance)
    _lay_out(figure, groups, legend, y=y, n_series=len(series), shown=shown_values, chance=chance)
    return figure


def _compared(
    reference: Mapping[str, Mapping[str, float]], groups: list[str], series: list[str]
) -> dict[tuple[int, int], float]:
    """The reference values by the numbers of their group and series."""
    compared = {}
    for group, of_group in reference.items():
        for name, value in of_group.items():
            if group not in groups or name not in series:
                raise InputError(f"reference= has {name!r} of {group!r}, which is not among the bars")
            if np.isfinite(value):
                compared[groups.index(group), series.index(name)] = float(value)
    return compared


def _lay_out(
    figure: go.Figure,
    groups: list[str],
    legend: list[str],
    *,
    y: str,
    n_series: int,
    shown: list[float],
    chance: float | None,
) -> None:
    labels = [textwrap.wrap(group, _LABEL) or [""] for group in groups]
    widest = max(text_width(line) for lines in labels for line in lines)
    entry = legend_width(legend)
    inner = max(len(groups) * max(widest + 14, n_series * 24 + 20, 60), 200, entry)
    left, height = 76, max(284, text_width(y) + 20)
    bottom = 24 + 16 * max(map(len, labels))
    right = 16 if chance is None else 62  # the word "chance"
    # Above the bars, as what is right of wide figures is off the screen; it breaks into equal columns.
    together = sum(legend_width([name]) for name in legend)
    lines = 1 if together <= inner else -(-len(legend) // int(inner // entry))
    top = 20 + _LINE * lines
    spare = 0.06 * (max(shown) - min(shown)) or 0.5
    low, high = min(shown) - (spare if min(shown) < 0 else 0), max(shown) + spare
    figure.update_layout(
        template=TEMPLATE,
        plot_bgcolor="white",
        barmode="overlay",  # bars stand where they are told to
        width=round(left + inner + right),
        height=round(top + height + bottom),
        margin={"l": left, "r": right, "t": top, "b": bottom, "autoexpand": False},
        showlegend=True,
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "tracegroupgap": 0,
        },
        xaxis={
            "range": [-0.5, len(groups) - 0.5],
            "tickvals": list(range(len(groups))),
            "ticktext": ["<br>".join(escape(line, quote=False) for line in lines) for lines in labels],
            "tickangle": 0,
            "ticks": "",
            "showline": low == 0,
            "linecolor": INK,
        },
        yaxis={
            **value_axis(escape(y, quote=False), low, high),
            "zeroline": low < 0,
            "zerolinecolor": INK,
            "zerolinewidth": 1,
        },
    )
    if chance is not None:
        line = {"color": GREY, "width": 1, "dash": "dash"}
        figure.add_shape(type="line", x0=0, x1=1, xref="paper", y0=chance, y1=chance, line=line)
        figure.add_annotation(
            text="chance",
            x=1,
            xref="paper",
            xanchor="left",
            xshift=4,
            y=chance,
            yanchor="middle",
            showarrow=False,
            font={"color": GREY},
        )
