"""Bars by group and series: means over seeds, the seeds, and the values that they are compared with."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.layout import legend_width, pixel_grid, text_width
from ecstruct.plots.style import GREY, INK, LINE_COLOURS

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
    """Draw a bar per series in each group, which is the mean over seeds; dots are the seeds, if several.

    Every group has a place for every series; one without values is left empty.

    Args:
        values: By group (on the x axis) and series (a colour), a value per seed.
        y: The title of the y axis, with its unit.
        reference: By group and series, the paper's values to compare with, drawn as diamonds.
        chance: The value of guessing, a dashed line.

    Raises:
        InputError: There is nothing to show, or a reference is of a group or series that is not among the
            values.
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

    legend = [*series, *(["paper"] if compared else [])]
    figure = _empty(groups, legend, len(series), y, right=16 if chance is None else 62)
    slot = _SHARE / len(series)
    offsets = [(s - (len(series) - 1) / 2) * slot for s in range(len(series))]
    for s, name in enumerate(series):
        shown = escape(name, quote=False)
        with_seeds = [g for g in range(len(groups)) if seeds[g, s].size]
        figure.add_bar(
            x=[g + offsets[s] for g in with_seeds],
            y=[float(seeds[g, s].mean()) for g in with_seeds],
            width=0.9 * slot,
            name=shown,
            legendgroup=shown,
            marker={"color": LINE_COLOURS[s % len(LINE_COLOURS)], "opacity": 0.75},
            customdata=[[escape(groups[g], quote=False), seeds[g, s].size] for g in with_seeds],
            hovertemplate=f"%{{customdata[0]}}<br>{shown}: %{{y:.3~g}}"
            "<br>seeds: %{customdata[1]}<extra></extra>",
        )
        # Seeds stand apart, so that equal values are seen to be several.
        dots = [
            (g + offsets[s] + float(apart), float(value))
            for g in with_seeds
            if (n := seeds[g, s].size) > 1
            for apart, value in zip(np.linspace(-0.25, 0.25, n) * slot, seeds[g, s], strict=True)
        ]
        if dots:
            figure.add_scatter(
                x=[x for x, _ in dots],
                y=[value for _, value in dots],
                name=shown,
                legendgroup=shown,
                showlegend=False,
                mode="markers",
                cliponaxis=False,
                marker={"color": INK, "size": 4, "line": {"color": "white", "width": 0.5}},
                hovertemplate=f"{shown}<br>one seed: %{{y:.3~g}}<extra></extra>",
            )
    if compared:
        # Diamonds look open, but are filled with white, as an outline alone would vanish on dark bars.
        outline = {"color": INK, "width": 1.5}
        figure.add_scatter(
            x=[g + offsets[s] for g, s in compared],
            y=list(compared.values()),
            name="paper",
            mode="markers",
            cliponaxis=False,
            marker={"symbol": "diamond", "size": 9, "color": "white", "line": outline},
            hovertemplate="paper: %{y:.3~g}<extra></extra>",
        )
    if chance is not None:
        line = {"color": GREY, "width": 1, "dash": "dash"}
        figure.add_shape(type="line", x0=0, x1=1, xref="x domain", y0=chance, y1=chance, line=line)
        style = {"xanchor": "left", "xshift": 4, "yanchor": "middle", "font_color": GREY}
        figure.add_annotation(text="chance", x=1, xref="paper", y=chance, showarrow=False, **style)
    shown = [*every[np.isfinite(every)].tolist(), *compared.values(), 0.0]
    shown += [] if chance is None else [chance]
    low, high = min(shown), max(shown)
    spare = 0.06 * (high - low) or 0.5
    figure.update_xaxes(showline=low == 0)
    figure.update_yaxes(range=[low - (spare if low < 0 else 0), high + spare])
    return figure.update_yaxes(zeroline=low < 0, zerolinecolor=INK, zerolinewidth=1)


def _empty(groups: list[str], legend: list[str], n_series: int, y: str, *, right: float) -> go.Figure:
    """Return an empty figure with room for the bars of all groups and series, labels and the legend."""
    labels = [textwrap.wrap(group, _LABEL) or [""] for group in groups]
    widest = max(text_width(line) for lines in labels for line in lines)
    entry = legend_width(legend)
    inner = max(len(groups) * max(widest + 14, n_series * 24 + 20, 60), 200, entry)
    # Above the bars, as what is right of wide figures is off the screen; it breaks into equal columns.
    together = sum(legend_width([name]) for name in legend)
    lines = 1 if together <= inner else -(-len(legend) // int(inner // entry))
    figure = pixel_grid(
        [inner],
        max(284, text_width(y) + 20),
        lefts=[76],
        right=right,
        top=20 + _LINE * lines,
        bottom=24 + 16 * max(map(len, labels)),
    )
    figure.update_xaxes(
        range=[-0.5, len(groups) - 0.5],
        tickvals=list(range(len(groups))),
        ticktext=["<br>".join(escape(line, quote=False) for line in lines) for lines in labels],
        tickangle=0,
        ticks="",
    )
    figure.update_yaxes(title=escape(y, quote=False))
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    return figure.update_layout(
        barmode="overlay",  # bars stand where they are told to
        showlegend=True,
        legend={"orientation": "h", "tracegroupgap": 0, **place},
    )


def _compared(
    reference: Mapping[str, Mapping[str, float]], groups: list[str], series: list[str]
) -> dict[tuple[int, int], float]:
    """Return the reference values by the indices of their group and series."""
    compared = {}
    for group, of_group in reference.items():
        for name, value in of_group.items():
            if group not in groups or name not in series:
                raise InputError(f"reference= has {name!r} of {group!r}, which is not among the bars")
            if np.isfinite(value):
                compared[groups.index(group), series.index(name)] = float(value)
    return compared
