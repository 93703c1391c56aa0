"""Several trainings side by side: means over seeds, step by step, on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.beside import axes_of, legend_width, side_by_side
from ecstruct.plots.lines import Curve, add_curve, by_seed, line_colours, step_axis, value_axis
from ecstruct.plots.style import GREY


def curve_panels(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    x: str,
    y: str,
    boundaries: Mapping[str, Sequence[float]] | None = None,
) -> go.Figure:
    """Panels of curves that share the y axis; a line is the mean over seeds, its band their range.

    Names that end in "implications" are drawn dashed; names that differ only in "facts" and
    "implications" share a colour. A name looks the same in every panel.

    Args:
        panels: By title, and in each by name, values (step, seed) at the steps 0, 1, 2...
        x: The title of the x axes.
        y: The title of the y axis, with its unit.
        boundaries: By panel, steps at which a phase of training ends, drawn as dotted lines.

    Raises:
        InputError: nothing to show, not every seed at every step, boundaries of panels that are not
            there.
    """
    if not panels or not all(panels.values()):
        raise InputError("there are no curves to show; give each panel at least one")
    boundaries = boundaries or {}
    if unknown := [title for title in boundaries if title not in panels]:
        raise InputError(f"boundaries= names {unknown[0]!r}, but the panels are {list(panels)}")
    curves = {
        title: {name: by_seed(name, values) for name, values in panel.items()}
        for title, panel in panels.items()
    }
    names = list(dict.fromkeys(name for panel in curves.values() for name in panel))
    colours = line_colours(names)
    unnamed = set(names)
    low, high = _limits([values for panel in curves.values() for values in panel.values()])
    figure = go.Figure()
    widths: list[float] = []
    for i, (title, panel) in enumerate(curves.items()):
        last = max(len(values) for values in panel.values()) - 1
        widths.append(float(np.clip(last * 16, 260, 480)))
        for name, values in panel.items():
            add_curve(
                figure,
                name,
                values,
                colour=colours[name],
                hover=f"{escape(x, quote=False)} %{{x}}: %{{y:.3~g}}",
                markers=last * 8 < widths[-1],
                showlegend=name in unnamed,
                **axes_of(i),
            )
            unnamed.discard(name)
        figure.update_layout(
            {
                f"xaxis{i + 1}": step_axis("", last),
                f"yaxis{i + 1}": {**value_axis("", low, high), "showticklabels": i == 0},
            }
        )
        for step in boundaries.get(title, ()):
            figure.add_shape(
                type="line",
                x0=step,
                x1=step,
                y0=0,
                y1=1,
                xref=f"x{i + 1}",
                yref="y domain" if i == 0 else f"y{i + 1} domain",
                line={"color": GREY, "width": 1, "dash": "dot"},
                layer="below",
            )
    side_by_side(
        figure,
        list(curves),
        x=[x] * len(curves),
        y=y,
        widths=widths,
        height=264,
        gap=30,
        right=legend_width(names),
    )
    return figure.update_layout(showlegend=True)


def _limits(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([curve.ravel() for curve in curves])
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise InputError("there are no curves to show; none has a finite value")
    low, high = float(finite.min()), float(finite.max())
    spare = 0.05 * (high - low) or 0.5
    return low - spare, high + spare
