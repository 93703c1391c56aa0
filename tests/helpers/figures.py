"""The contents of figures by their position. Plotly's own types are too loose to check this."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go


def panels(figure: Any) -> dict[tuple[float, float], Any]:
    """Return heatmaps by the position of their panels: (left, top) as fractions of the figure."""
    found = {}
    for trace in figure.data:
        x, y = (figure.layout[axis[0] + "axis" + axis[1:]] for axis in (trace.xaxis, trace.yaxis))
        found[round(x.domain[0], 3), round(y.domain[1], 3)] = trace
    return found


def grid(figure: Any) -> list[list[Any]]:
    """Return heatmaps as rows from the top, each from left to right."""
    placed = panels(figure)
    tops = sorted({top for _, top in placed}, reverse=True)
    lefts = sorted({left for left, _ in placed})
    return [[placed[left, top] for left in lefts] for top in tops]


def grid_of_cells(figure: Any) -> list[list[Any]]:
    """Return the same rows for a figure that also has dots."""
    return grid(go.Figure([trace for trace in figure.data if trace.type == "heatmap"], figure.layout))


def axis_of(figure: Any, trace: Any, which: str) -> Any:
    name = getattr(trace, f"{which}axis")
    return figure.layout[name[0] + "axis" + name[1:]]


def lines_of(figure: Any) -> list[Any]:
    """Return the lines of means; filled traces are bands."""
    return [trace for trace in figure.data if trace.fill is None]


def bands_of(figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.fill is not None]


def extremes(band: Any) -> dict[float, tuple[float, float]]:
    """Return the lowest and highest value of a band at each step."""
    at: dict[float, list[float]] = {}
    for x, y in zip(band.x, band.y, strict=True):
        if x is not None:
            at.setdefault(x, []).append(y)
    return {x: (min(ys), max(ys)) for x, ys in at.items()}


def titles_of(figure: Any) -> list[str]:
    return [note.text for note in figure.layout.annotations]
