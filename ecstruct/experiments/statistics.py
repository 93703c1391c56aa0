"""Means over seeds, in the form that `results.json` and the tables use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd


def rows_by(frame: pd.DataFrame, *columns: str) -> dict[Any, pd.DataFrame]:
    """Return the rows of each value of a column, or tuple of values of several, as they appear.

    >>> {rank: len(rows) for rank, rows in rows_by(pd.DataFrame({"rank": [3, 1, 3]}), "rank").items()}
    {3: 2, 1: 1}
    """
    groups: Any = frame.groupby(columns[0] if len(columns) == 1 else list(columns), sort=False)
    return dict(iter(groups))


def statistic(values: Sequence[float]) -> dict[str, Any]:
    """Return `{"mean": m, "std": s, "seeds": values}` of one value per seed.

    `std` divides by N - 1 (None for one seed). A seed whose value is NaN is None and does not count.

    >>> statistic([1.0, 3.0])
    {'mean': 2.0, 'std': 1.4142135623730951, 'seeds': [1.0, 3.0]}
    >>> statistic([math.nan])
    {'mean': None, 'std': None, 'seeds': [None]}
    """
    seeds = [float(value) if math.isfinite(value) else None for value in values]
    defined = [value for value in seeds if value is not None]
    return {
        "mean": float(np.mean(defined)) if defined else None,
        "std": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "seeds": seeds,
    }


def matching(frame: pd.DataFrame, **where: Any) -> Any:
    """Return the rows that have the values `where` in the columns of these names."""
    for column, value in where.items():
        frame = frame.loc[frame[column] == value]
    return frame


def over_seeds(frame: pd.DataFrame, column: str, **where: Any) -> dict[str, Any]:
    """Return the statistic over seeds of a column of the rows `where` other columns have these values; the
    value of a seed is the mean over its rows.

    >>> frame = pd.DataFrame({"seed": [0, 0, 1, 1], "hop": [1, 1, 1, 2], "rank": [1.0, 3.0, 4.0, 9.0]})
    >>> over_seeds(frame, "rank", hop=1)["seeds"]
    [2.0, 4.0]
    """
    return statistic(means(matching(frame, **where), column, "seed").tolist())


def along(frame: pd.DataFrame, axis: str, column: str, **where: Any) -> list[dict[str, Any]]:
    """Return the statistic of `over_seeds` for each value of the column `axis`, in ascending order."""
    groups = matching(frame, **where).groupby(axis, sort=True)
    return [over_seeds(rows, column) for _, rows in groups]


def curve(frame: pd.DataFrame, axis: str, column: str, **where: Any) -> list[list[float]]:
    """Return the values of the seeds for each value of the column `axis`, in ascending order."""
    return [stat["seeds"] for stat in along(frame, axis, column, **where)]


def means(frame: pd.DataFrame, of: str | list[str], *by: str, sort: bool = True) -> Any:
    """Return the means of a column or several, indexed by the values of the columns `by`."""
    return frame.groupby(list(by), sort=sort, dropna=False)[of].mean()


def shown(stat: Mapping[str, Any], form: str = ".2f") -> str:
    """Format a mean with its standard deviation, for tables.

    >>> shown(statistic([1.0, 3.0])), shown(statistic([0.25]), ".0%"), shown(statistic([math.nan]))
    ('2.00 ± 1.41', '25%', '–')
    """
    if stat["mean"] is None:
        return "–"
    spread = "" if stat["std"] is None else f" ± {stat['std']:{form}}"
    return f"{stat['mean']:{form}}{spread}"


def listed(values: Mapping[str, float]) -> str:
    """Format values by name, for conclusions.

    >>> listed({"city": 0.5, "language": 2.0})
    '0.50 (city), 2.00 (language)'
    """
    return ", ".join(f"{value:.2f} ({name})" for name, value in values.items())
