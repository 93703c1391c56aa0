"""Subnetworks: how often each component is kept, and what they can do in-domain and beyond."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.plots.beside import BAR_WIDTH, axes_of, colour_bar, legend_width, side_by_side
from ecstruct.plots.grids import COLOURS
from ecstruct.plots.style import EMPTY, INK, LINE_COLOURS

if TYPE_CHECKING:
    from ecstruct.subnetworks.core import Core

_CELL = 26  # pixels of a cell, where there is room
_MOST = 640  # of a panel


def frequencies(core: Core) -> go.Figure:
    """The share of the subnetworks that keep each head (layer by head) and each MLP, the last column.

    A panel per sparsity, and one of all. Layer 0 is at the bottom; what all subnetworks keep has a dot.
    """
    n_layers, n_heads = core.heads.sizes["layer"], core.heads.sizes["head"]
    columns = [*map(str, range(n_heads)), "MLP"]
    cell = max(8, min(_CELL, _MOST // max(n_layers, n_heads + 1)))
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, n_heads + n_layers) if step * cell >= 20)
    figure = go.Figure()
    for i, group in enumerate(core.groups):
        share = core.frequency(group)
        values = np.column_stack([share["heads"].values, share["mlp"].values])
        pruned = np.repeat(["heads" in core.kinds, "mlp" in core.kinds], [n_heads, 1])
        values = np.where(pruned, values, np.nan)
        figure.add_trace(
            go.Heatmap(
                z=values.tolist(),
                x=list(range(n_heads + 1)),
                y=list(range(n_layers)),
                text=[
                    [*(f"head {layer}.{head}" for head in range(n_heads)), f"MLP {layer}"]
                    for layer in range(n_layers)
                ],
                hovertemplate="<b>%{text}</b><br>kept by %{z:.0%}<extra></extra>",
                hoverongaps=False,
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                **axes_of(i),
            )
        )
        layers, places = np.nonzero(values == 1)
        figure.add_trace(
            go.Scatter(
                x=places.tolist(),
                y=layers.tolist(),
                mode="markers",
                marker={"size": 6, "color": INK, "line": {"color": "white", "width": 1}},
                hoverinfo="skip",
                showlegend=False,
                **axes_of(i),
            )
        )
        shown = [*range(0, n_heads, step), n_heads]
        if n_heads - shown[-2] < step and step > 1 and len(shown) > 2:
            del shown[-2]  # its number would meet the word
        figure.update_layout(
            {
                f"xaxis{i + 1}": {
                    "range": [-0.5, n_heads + 0.5],
                    "tickvals": shown,
                    "ticktext": [columns[place] for place in shown],
                    "tickangle": 0,
                },
                f"yaxis{i + 1}": {
                    "range": [-0.5, n_layers - 0.5],
                    "tickvals": list(range(0, n_layers, step)),
                    "showticklabels": i == 0,
                },
            }
        )
    counts = core.dataset["subnetworks"].values.tolist()
    titles = [
        "all sparsities" if group == "all" else f"{float(group):.0%} ablated" if _is_share(group) else group
        for group in core.groups
    ]
    side_by_side(
        figure,
        titles,
        subtitles=[f"{count} subnetworks" for count in counts],
        x=["head"] * len(titles),
        y="layer",
        widths=[cell * (n_heads + 1)] * len(titles),
        height=max(cell * n_layers, 180),
        gap=24,
        right=BAR_WIDTH,
    )
    bar = colour_bar("share that keeps it", tickformat=".0%")
    return figure.update_layout(
        plot_bgcolor=EMPTY,  # shows what was not pruned
        coloraxis={"colorscale": COLOURS, "cmin": 0, "cmax": 1, "colorbar": bar},
    )


def _is_share(group: str) -> bool:
    try:
        return 0 < float(group) < 1
    except ValueError:
        return False


Evaluations = xr.Dataset | Mapping[str, xr.Dataset]


def spread(in_domain: Evaluations, generalization: Evaluations) -> go.Figure:
    """A point per subnetwork: its mean rank in-domain across, beyond it up; the full model is a star.

    Args:
        in_domain, generalization: What `ecstruct.subnetworks.evaluate` returned on the two sets of prompts,
            or several of each by the names of their groups, as sparsities.

    Raises:
        InputError: groups or seeds that are not in both, or no groups.
    """
    groups, others = (
        {"subnetworks": e} if isinstance(e, xr.Dataset) else dict(e) for e in (in_domain, generalization)
    )
    if not groups:
        raise InputError("there are no subnetworks to show; give at least one group")
    if groups.keys() != others.keys():
        raise InputError(f"the groups in-domain are {list(groups)}, those of the other set {list(others)}")
    figure = go.Figure()
    for i, (name, across) in enumerate(groups.items()):
        up, seeds = others[name], across["seed"].values.tolist()
        if seeds != up["seed"].values.tolist():
            raise InputError(f"the two evaluations of {name!r} are not of the same seeds")
        figure.add_trace(
            go.Scatter(
                x=across["mean_rank"].values.tolist(),
                y=up["mean_rank"].values.tolist(),
                text=[f"seed {seed}" for seed in seeds],
                name=escape(name, quote=False),
                mode="markers",
                cliponaxis=False,
                marker={
                    "size": 9,
                    "opacity": 0.7,  # subnetworks may lie on one another
                    "color": LINE_COLOURS[i % len(LINE_COLOURS)],
                    "line": {"color": INK, "width": 0.5},
                },
                hovertemplate="<b>%{text}</b><br>in-domain %{x:.3~g}, generalization %{y:.3~g}",
            )
        )
    first = next(iter(groups))
    figure.add_trace(
        go.Scatter(
            x=[float(groups[first]["full_mean_rank"])],
            y=[float(others[first]["full_mean_rank"])],
            name="full model",
            mode="markers",
            cliponaxis=False,
            marker={"symbol": "star", "size": 14, "color": INK},
            hovertemplate="in-domain %{x:.3~g}, generalization %{y:.3~g}",
        )
    )
    names = [*map(str, groups), "full model"]
    side_by_side(
        figure,
        [""],
        x=["in-domain: mean rank (0 is best)"],
        y="generalization: mean rank (0 is best)",
        widths=[340],
        height=300,
        right=legend_width(names),
    )
    axis = {"showline": True, "linecolor": INK, "showgrid": True, "gridcolor": EMPTY}
    across, up = (np.concatenate([getattr(trace, name) for trace in figure.data]) for name in "xy")
    return figure.update_layout(
        xaxis={**axis, "range": _from_zero(across)},
        yaxis={**axis, "range": _from_zero(up)},
        showlegend=True,
    )


def _from_zero(values: np.ndarray) -> list[float]:
    """A range that begins a little below 0, so that no point lies on an axis and its numbers."""
    high = float(np.nanmax(values, initial=0.0)) or 1.0
    return [-0.05 * high, 1.05 * high]
