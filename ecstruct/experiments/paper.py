"""The paper's numbers, and tables of mean ranks that show them beside ours.

Mean ranks count from 0 among 20 options. They are of OLMo-7B-0424 at step 477000 unless another model is
named, with Adam at 3e-6, 8 epochs in batches of 8. `rerun` has what the authors measured again later: the
distance shows the precision to expect. Source: Feng, Russell & Steinhardt (ICML 2025) and its published
code.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

from ecstruct.experiments.statistics import shown
from ecstruct.plots import grouped_bars

COLUMNS = ("first-hop fact", "first-hop implication", "second-hop fact", "second-hop implication")
"""The columns of the freezing table."""

GRAFTING_COLUMNS = ("Impl F'", "Impl F", "F'")


@cache
def paper_numbers() -> MappingProxyType[str, Any]:
    """Read the numbers of `ocr`, `freezing`, `ordering`, `grafting`, `localization`, `grafting_sweep`."""
    file = resources.files("ecstruct.experiments").joinpath("paper.json")
    return MappingProxyType(json.loads(file.read_text(encoding="utf-8")))


def rank_bars(
    table: Mapping[str, Sequence[Any]], columns: Sequence[str], paper: Mapping[str, Sequence[float]]
) -> go.Figure:
    """Draw a table of statistics over seeds as bars, a group per row, beside the paper's values."""

    def by_column(rows: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
        return {row: dict(zip(columns, values, strict=True)) for row, values in rows.items()}

    seeds = {row: [stat["seeds"] for stat in stats] for row, stats in table.items()}
    title = "mean rank of the answer (0 is best)"
    return grouped_bars(by_column(seeds), y=title, reference=by_column(paper))


def beside_paper(stats: Sequence[Any], paper: Sequence[float]) -> list[str]:
    """Format a row of statistics, with the paper's values in brackets."""
    return [f"{shown(stat)} ({theirs:.2f})" for stat, theirs in zip(stats, paper, strict=True)]
