"""Components by role and layer, and the edges between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ecstruct.plots.layout import legend_width, note, pixel_grid, text_width
from ecstruct.plots.style import FONT_SIZE, INK, colour_scale, number

ROLES = ("upstream", "informative", "downstream")
LEAST = 0.05
"""Edges that are weaker than this share of the strongest one are not drawn."""

_NODE, _BETWEEN, _LAYER, _LEAST_HEIGHT = 22, 220, 30, 340
"""Pixels: the size of a node, the free space between two columns, the height of a layer, and of all layers
at least."""
_WIDEST, _STAGGERED = 6, 0.12
"""The pixels of the strongest line, and how far above or below it components of a layer are, in layers."""
_COLOURS = {1: colour_scale()[-2][1], -1: colour_scale()[1][1]}
_MEANING = {1: "raises the reward", -1: "lowers the reward"}


def role_graph(nodes: pd.DataFrame, edges: pd.DataFrame, *, n_layers: int, unit: str) -> go.Figure:
    """Draw a column per role, with its components at the height of their layers, and lines between them.

    MLPs are squares with their layer, heads circles with layer and head. A line is as wide as its edge is
    strong, red if it raises the reward and blue if it lowers it; very weak ones are left out. Hovering
    over a component or the middle of a line gives the number.

    Args:
        nodes: Rows with `role`, `component` and `score`.
        edges: Rows with `from`, `from_role`, `to`, `to_role`, `effect` and `share`.
        n_layers: The number of layers of the model.
        unit: What scores and effects are, with their unit.
    """
    places, columns = _places(nodes)
    width = columns[-1][1]
    figure = pixel_grid(
        [width],
        max(_LAYER * n_layers, _LEAST_HEIGHT),
        lefts=[56],
        right=legend_width(list(_MEANING.values())),
        top=34,
        bottom=34,
    )
    sizes = edges["effect"].abs()
    largest = sizes.max()
    drawn = edges[(sizes >= LEAST * largest) & (sizes > 0)].iloc[::-1]  # the strongest on top
    for sign, meaning in _MEANING.items():
        if (np.sign(drawn["effect"]) == sign).any():
            line = {"color": _COLOURS[sign], "width": 3}
            figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=meaning, showlegend=True)
    for edge in drawn.to_dict("records"):
        ends = [places[edge[f"{end}_role"], edge[end]] for end in ("from", "to")]
        (left, low), (right, high) = ends
        strength = abs(edge["effect"]) / largest
        figure.add_scatter(
            x=[left, (left + right) / 2, right],
            y=[low, (low + high) / 2, high],
            mode="lines",
            line={"color": _COLOURS[int(np.sign(edge["effect"]))], "width": max(0.6, _WIDEST * strength)},
            opacity=0.2 + 0.7 * strength,
            showlegend=False,
            text=[_said(edge, unit)] * 3,
            hovertemplate="%{text}<extra></extra>",
        )
    names = [str(name) for name in nodes["component"]]
    figure.add_scatter(
        x=[places[role, name][0] for role, name in zip(nodes["role"], names, strict=True)],
        y=[places[role, name][1] for role, name in zip(nodes["role"], names, strict=True)],
        mode="markers+text",
        marker={
            "size": _NODE,
            "symbol": ["square" if name.startswith("MLP") else "circle" for name in names],
            "color": "white",
            "line": {"color": INK, "width": 1},
        },
        text=[name.split()[1] for name in names],
        textfont={"size": FONT_SIZE - 3, "color": INK},
        cliponaxis=False,
        showlegend=False,
        customdata=[
            f"<b>{name}</b>, {role}<br>{unit}: {number(score)}"
            for name, role, score in zip(names, nodes["role"], nodes["score"], strict=True)
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
    for role, (start, end) in zip(ROLES, columns, strict=True):
        above = {"yref": "paper", "yanchor": "bottom", "yshift": 6, "showarrow": False}
        figure.add_annotation(x=(start + end) / 2, y=1, text=f"<b>{role}</b>", **above)
    figure.add_annotation(note("■ MLPs &nbsp; ● heads", x=0, y=0, xanchor="left", yanchor="top", yshift=-8))
    figure.update_xaxes(range=[0, width], visible=False)
    layers = {"tickvals": [*range(0, n_layers, 1 + n_layers // 16)], "range": [-0.6, n_layers - 0.4]}
    return figure.update_yaxes(title_text="layer", showgrid=False, **layers)


def _places(
    nodes: pd.DataFrame,
) -> tuple[dict[tuple[str, str], tuple[float, float]], list[tuple[float, float]]]:
    """Return the place of every component, across in pixels and up in layers, by role and name; and where
    the column of every role begins and ends. Components of one layer are side by side, slightly slanted."""
    places, columns, start = {}, [], 0.0
    for role in ROLES:
        of_layer: dict[int, list[str]] = {}
        for name in sorted(nodes.loc[nodes["role"] == role, "component"], key=_numbers):
            of_layer.setdefault(_numbers(name)[0], []).append(name)
        widest = max(map(len, of_layer.values()), default=1)
        end = start + max((_NODE + 6) * widest, text_width(role) + 30)
        for layer, names in of_layer.items():
            for i, name in enumerate(names):
                off = i - (len(names) - 1) / 2
                up = _STAGGERED * off / (len(names) / 2)  # so that lines pass each other
                places[role, name] = ((start + end) / 2 + off * (_NODE + 6), layer + up)
        columns.append((start, end))
        start = end + _BETWEEN
    return places, columns


def _numbers(name: str) -> tuple[int, ...]:
    """Return the layer of a component and, of a head, its number in it."""
    return tuple(map(int, name.split()[1].split(".")))


def _said(edge: Mapping[str, Any], unit: str) -> str:
    ends = f"<b>{edge['from']}</b> ({edge['from_role']}) to <b>{edge['to']}</b> ({edge['to_role']})"
    of = f", {edge['share']:.0%} of the latter's score" if np.isfinite(edge["share"]) else ""
    return f"{ends}<br>{unit}: {number(edge['effect'])}{of}"
