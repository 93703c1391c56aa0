"""Subnetworks: how often each component is kept, and what they can do in-domain and beyond."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Literal, Protocol

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.plots.grids import blues, named_axis, value_grids
from ecstruct.plots.layout import BAR_WIDTH, axes_of, legend_width, side_by_side
from ecstruct.plots.lines import Line, line_panels
from ecstruct.plots.panels import dots
from ecstruct.plots.style import CELLS, INK, LINE_COLOURS

_CELL = 26  # pixels of a cell, where there is room
_MOST = 640  # of a panel


class Core(Protocol):
    """What the figure reads of `ecstruct.subnetworks.Core`, which documents it."""

    @property
    def dataset(self) -> xr.Dataset: ...
    @property
    def heads(self) -> xr.DataArray: ...
    @property
    def groups(self) -> list[str]: ...
    @property
    def kinds(self) -> list[str]: ...
    def frequency(self, group: str) -> xr.Dataset: ...


def frequencies(core: Core) -> go.Figure:
    """Draw the share of the subnetworks that keep each head, layer by head, and each MLP, the last column.

    A panel per sparsity, and one of all. Layer 0 is at the bottom; what all subnetworks keep has a dot.
    """
    n_layers, n_heads = core.heads.sizes["layer"], core.heads.sizes["head"]
    cell = max(8, min(_CELL, _MOST // max(n_layers, n_heads + 1)))
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, n_heads + n_layers) if step * cell >= 20)
    shown = [*range(0, n_heads, step), n_heads]
    if n_heads - shown[-2] < step and step > 1 and len(shown) > 2:
        del shown[-2]  # its number would meet the word
    x_axis = named_axis([*map(str, range(n_heads)), "MLP"], shown)
    y_axis = named_axis(list(map(str, range(n_layers))), range(0, n_layers, step))
    titles = [
        "all sparsities" if group == "all" else f"{float(group):.0%} ablated" if _is_share(group) else group
        for group in core.groups
    ]
    figure = side_by_side(
        titles,
        subtitles=[f"{count} subnetworks" for count in core.dataset["subnetworks"].values],
        x="head",
        y="layer",
        widths=[cell * (n_heads + 1)] * len(titles),
        height=max(cell * n_layers, 180),
        gap=24,
        right=BAR_WIDTH,
        key="● kept by all",
        template=CELLS,  # its grey shows what was not pruned
    )
    names = [
        [*(f"head {layer}.{head}" for head in range(n_heads)), f"MLP {layer}"] for layer in range(n_layers)
    ]
    pruned = np.repeat(["heads" in core.kinds, "mlp" in core.kinds], [n_heads, 1])
    for i, group in enumerate(core.groups):
        share = core.frequency(group)
        values = np.column_stack([share["heads"].values, share["mlp"].values])
        values = np.where(pruned, values, np.nan)
        figure.add_heatmap(
            z=values.tolist(),
            x=list(range(n_heads + 1)),
            y=list(range(n_layers)),
            text=names,
            hovertemplate="<b>%{text}</b><br>kept by %{z:.0%}<extra></extra>",
            coloraxis="coloraxis",
            **axes_of(i),
        )
        figure.add_trace(dots(values == 1, range(n_layers), 6).update(axes_of(i)))
        figure.update_layout({f"xaxis{i + 1}": x_axis, f"yaxis{i + 1}": y_axis})
    figure.update_yaxes(showticklabels=False).update_yaxes(showticklabels=True, col=1)
    return figure.update_layout(coloraxis=blues(1, "share that keeps it", tickformat=".0%"))


def _is_share(group: str) -> bool:
    """Say whether the name of a group is a sparsity."""
    try:
        return 0 < float(group) < 1
    except ValueError:
        return False


Evaluations = xr.Dataset | Mapping[str, xr.Dataset]


_MEASURES = {"mean_rank": "mean rank (0 is best)", "accuracy": "accuracy"}


def spread(
    in_domain: Evaluations,
    generalization: Evaluations,
    *,
    measure: Literal["mean_rank", "accuracy"] = "mean_rank",
) -> go.Figure:
    """Draw a point per subnetwork, its mean rank in-domain across and beyond it up; the full model is a
    star.

    Args:
        in_domain, generalization: What `ecstruct.subnetworks.evaluate` returned on the two sets of prompts,
            or several of each by the names of their groups, as sparsities.
        measure: What is drawn, mean ranks or accuracies.

    Raises:
        InputError: A group or a seed is not in both, or there are no groups.
    """
    groups, others = (
        {"subnetworks": e} if isinstance(e, xr.Dataset) else dict(e) for e in (in_domain, generalization)
    )
    if not groups:
        raise InputError("there are no subnetworks to show; give at least one group")
    if groups.keys() != others.keys():
        raise InputError(f"the groups in-domain are {list(groups)}, those of the other set {list(others)}")
    figure = side_by_side(
        [""],
        x=f"in-domain: {_MEASURES[measure]}",
        y=f"generalization: {_MEASURES[measure]}",
        widths=[340],
        height=300,
        right=legend_width([*groups, "full model"]),
    )
    hover = "in-domain %{x:.3~g}, generalization %{y:.3~g}"
    for i, (name, across) in enumerate(groups.items()):
        up, seeds = others[name], across["seed"].values.tolist()
        if seeds != up["seed"].values.tolist():
            raise InputError(f"the two evaluations of {name!r} are not of the same seeds")
        figure.add_scatter(
            x=across[measure].values.tolist(),
            y=up[measure].values.tolist(),
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
            hovertemplate=f"<b>%{{text}}</b><br>{hover}",
        )
    first = next(iter(groups))
    figure.add_scatter(
        x=[float(groups[first][f"full_{measure}"])],
        y=[float(others[first][f"full_{measure}"])],
        name="full model",
        mode="markers",
        cliponaxis=False,
        # Open, so that a subnetwork that does as well as the full model is seen in it.
        marker={"symbol": "star-open", "size": 16, "color": INK, "line": {"width": 1.5}},
        hovertemplate=hover,
    )
    across, up = (np.concatenate([getattr(trace, name) for trace in figure.data]) for name in "xy")
    shown = _from_zero if measure == "mean_rank" else _about
    figure.update_xaxes(showgrid=True, range=shown(across))
    figure.update_yaxes(range=shown(up))
    return figure.update_layout(showlegend=True)


def accuracy_lines(sets: Mapping[str, Mapping[float, xr.Dataset]]) -> go.Figure:
    """Draw accuracy against sparsity, a line per set of prompts: the mean over subnetworks, in a band from
    the lowest to the highest. The full model stands at a sparsity of 0.

    Args:
        sets: By the name of the prompts, what `ecstruct.subnetworks.evaluate` returned by sparsity.

    Raises:
        InputError: There are no evaluations, or one set has others sparsities than another.
    """
    sparsities = sorted(next(iter(sets.values()), {}))
    if not sparsities:
        raise InputError("there are no evaluations to show; give at least one, by its sparsity")
    lines = {}
    for name, by_sparsity in sets.items():
        if sorted(by_sparsity) != sparsities:
            raise InputError(f"{name!r} has the sparsities {sorted(by_sparsity)}, not {sparsities}")
        full = by_sparsity[sparsities[0]]["full_accuracy"].values.reshape(1)
        each = [full, *(by_sparsity[sparsity]["accuracy"].values for sparsity in sparsities)]
        mean, low, high = (np.array([of(values) for values in each]) for of in (np.mean, np.min, np.max))
        lines[name] = Line(np.arange(len(each)), mean, (low, high))
    figure = line_panels(
        {"": lines},
        x="share of the components that is ablated",
        y="accuracy",
        hover="%{y:.3~g}",
        between="subnetworks",
        include=(0.0, 1.0),
    )
    ticks = ["0%", *(f"{sparsity:.0%}" for sparsity in sparsities)]
    return figure.update_xaxes(tickmode="array", tickvals=list(range(len(ticks))), ticktext=ticks)


def template_grid(by_sparsity: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draw the accuracy of the full model and of subnetworks on every template, a panel per sparsity.

    Args:
        by_sparsity: By title, what `ecstruct.subnetworks.by_template` returns.
    """
    panels = {
        title: frame.set_index("template").drop(columns="prompts") for title, frame in by_sparsity.items()
    }
    return value_grids(panels, x="network", y="template", value="accuracy")


def size_course(sizes: pd.DataFrame) -> go.Figure:
    """Draw the effective size of every checkpoint across, and up the accuracy of its full model on each set
    of prompts. `sizes` is what `ecstruct.subnetworks.Emergence.sizes` returns.

    Raises:
        InputError: There are no sizes.
    """
    if sizes.empty:
        raise InputError("there are no sizes to show; give emergence(prune=...), which finds subnetworks")
    names = [name for name in sizes if str(name).endswith(" accuracy")]
    figure = side_by_side(
        [""],
        x="effective size (%)",
        y="accuracy of the full model",
        widths=[400],
        height=300,
        right=legend_width(names),
    )
    for name, colour in zip(names, LINE_COLOURS, strict=False):
        figure.add_scatter(
            x=sizes["size"].tolist(),
            y=sizes[name].tolist(),
            text=[escape(str(checkpoint), quote=False) for checkpoint in sizes["checkpoint"]],
            name=escape(name.removesuffix(" accuracy"), quote=False),
            mode="lines+markers",
            cliponaxis=False,
            line={"color": colour, "dash": "dot", "width": 1},
            marker={"color": colour, "size": 9},
            hovertemplate="<b>%{text}</b><br>%{x:.0f}%: %{y:.3~g}",
        )
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure.update_layout(showlegend=True)


def _from_zero(values: np.ndarray) -> list[float]:
    """Return a range that begins a little below 0, so that no point lies on an axis or its numbers."""
    high = float(np.nanmax(values, initial=0.0)) or 1.0
    return [-0.05 * high, 1.05 * high]


def _about(values: np.ndarray) -> list[float]:
    """Return a range that is a little wider than the values."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    spare = 0.08 * (high - low) or 0.05
    return [low - spare, high + spare]
