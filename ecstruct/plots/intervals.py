"""How figures show the intervals of means: a line when hovering, and a dot where zero is outside.

Each cell is judged by itself: of many cells without any effect, some have a dot by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecstruct.plots.style import number
from ecstruct.scores.slots import SlotScores


@dataclass(frozen=True)
class Intervals:
    """Those of the cells of one panel, (layer, column); NaN where there is none."""

    level: str
    low: np.ndarray
    high: np.ndarray

    @property
    def exclude_zero(self) -> np.ndarray:
        """Whether zero is outside, (layer, column)."""
        return (self.low > 0) | (self.high < 0)

    def line(self, row: int, column: int) -> str:
        """A line of a hover's HTML, or nothing."""
        low, high = self.low[row, column], self.high[row, column]
        return "" if np.isnan(low) else f"<br>{self.level} interval: {number(low)} to {number(high)}"


def intervals_of(
    values: np.ndarray, slots: SlotScores, name: str, **cells: str | int | np.ndarray
) -> Intervals:
    """The intervals about `values` (layer, column).

    `name` is one of those that `SlotScores.low` has; `cells` select, by dimension, which of them.
    """
    if slots.ci is None:
        none = np.full(values.shape, np.nan)
        return Intervals("", none, none)
    low, high = (ends[name].sel(cells).transpose("layer", ...).values for ends in (slots.low, slots.high))
    return Intervals(_percent(slots.ci), low, high)


def dots_mean(*sets: SlotScores) -> str:
    """What the dots of a figure of these say; nothing when none of them has intervals."""
    levels = sorted({slots.ci for slots in sets if slots.ci is not None})
    if not levels:
        return ""
    some = " (not all of these have intervals)" if any(slots.ci is None for slots in sets) else ""
    return f"{' / '.join(map(_percent, levels))} interval excludes zero{some}"


def _percent(level: float) -> str:
    return f"{100 * level:.4g}%"
