"""The combined results of the finished cells of a sweep.

DIR/results.csv    all rows of all results, each preceded by its cell's coordinates in the grid
DIR/report.html    every experiment's numbers by model, learning rate and epochs, over seeds
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ecstruct.experiments.statistics import rows_by, shown, statistic
from ecstruct.grids.cell import CellFiles, read_grid
from ecstruct.grids.cell_states import status
from ecstruct.io.files import write_text
from ecstruct.plots import number_by_rate
from ecstruct.plots.style import LINE_COLOURS
from ecstruct.report.page import Item, Picture, Replay, Section, Table, write_report

SETTING = ("model", "learning_rate", "epochs")


def combine(folder: str | Path) -> None:
    """Write `results.csv` and `report.html` of the finished cells of a sweep."""
    folder = Path(folder)
    found = [result for cell in read_grid(folder).cells() if (result := CellFiles(folder, cell).result())]
    write_text(folder / "results.csv", rows(found).to_csv(index=False))
    _report(folder, numbers(found))


def rows(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Return all rows of results; a column with the name of a grid column gets the prefix `row_`."""
    return pd.DataFrame(
        {
            **result["cell"],
            **{f"row_{k}" if k in result["cell"] else k: v for k, v in row.items() if k != "seed"},
        }
        for result in found
        for row in result["rows"]
    )


def numbers(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Return a row per cell and number of its results: the mean over the cell's repeats."""
    return pd.DataFrame(
        {
            **result["cell"],
            "number": name.removeprefix(f"{result['cell']['experiment']} ".replace("_", " ")),
            "value": math.nan if value is None else value,
        }
        for result in found
        for name, value in _leaves(result["results"])
    )


def _leaves(results: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, float | None]]:
    """Yield the means in entries of `results.json`, with the path of keys that leads to each."""
    if isinstance(results, list):
        results = {str(i + 1): entry for i, entry in enumerate(results)}
    if not isinstance(results, Mapping):
        return
    if {"mean", "seeds"} <= set(results):
        yield " ".join(at).replace("_", " "), results["mean"]
        return
    for key, entry in results.items():
        yield from _leaves(entry, (*at, str(key)))


def _report(folder: Path, measured: pd.DataFrame) -> None:
    table = status(folder)
    done = table["state"].tolist().count("done")
    by_experiment = {} if measured.empty else rows_by(measured, "experiment")
    sections = [_section(*each) for each in by_experiment.items()]
    sections.append(Section("The cells", [Table(table)]))
    again = shlex.join(["ecstruct", "sweep", "--out", str(folder), "--resume"])
    sections.append(Section("Go on with it", [Replay(again, read_grid(folder).to_dict())]))
    write_report(
        folder / "report.html",
        title="Sweep",
        summary=f"{done} of {len(table)} cells are finished. All rows are in results.csv.",
        sections=sections,
    )


def _section(experiment: str, measured: pd.DataFrame) -> Section:
    by: Any = measured.groupby(["number", *SETTING], sort=False, dropna=False)["value"]
    wide = pd.DataFrame(
        {
            "number": number,
            "model": model,
            "learning rate": "known" if math.isnan(lr) else f"{lr:g}",
            "epochs": epochs,
            "mean ± std": shown(statistic(values.tolist()), ".3g"),
            "seeds": len(values),
        }
        for (number, model, lr, epochs), values in by
    )
    items: list[Item] = [Table(wide, "Means over seeds, with their standard deviations.")]
    series = _series(measured)
    if any(len(values) > 1 for values in series.values()):
        drawn = dict(list(series.items())[: len(LINE_COLOURS)])
        caption = "Means over seeds by learning rate; dots are seeds."
        if len(drawn) < len(series):
            caption += f" The first {len(drawn)} of {len(series)} series; the table has all."
        items.insert(0, Picture(number_by_rate(drawn), caption))
    return Section(experiment, items)


def _series(measured: pd.DataFrame) -> dict[str, dict[float, list[float]]]:
    """Return values by series and learning rate; a series' name contains only what varies."""
    known: Any = measured[measured["learning_rate"].notna() & measured["value"].notna()]
    vary = [column for column in ("model", "epochs") if known[column].nunique() > 1]
    series: dict[str, dict[float, list[float]]] = {}
    for row in known.to_dict("records"):
        told = [f"{row[c]} epochs" if c == "epochs" else str(row[c]) for c in vary]
        name = ", ".join([*told, row["number"]])
        series.setdefault(name, {}).setdefault(float(row["learning_rate"]), []).append(row["value"])
    return series
