"""Is it built in? The freezing contrast without the regulariser that may have caused it.

In half of the batches of its pretraining, the organism's first layers attend locally
(`Recipe.local_windows`). Freezing then finds first-hop facts in the early layers and second-hop facts in
the late ones, as in the paper's models, which had no such help. So organisms are pretrained with no, fewer
and more local layers; on each, the freezing table is measured, and where a fact is stored:

    r(b) = mean rank of implications with the first b layers put back to their old weights

rises from the finetuned model, r(0), to the one before finetuning, r(n_layers). The smallest b with
`r(b) > (r(0) + r(n_layers)) / 2` is the boundary of storage: the first b layers hold more than half.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pydantic import Field
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.experiments.layer_freezing import ROWS
from ecstruct.experiments.layer_freezing import measure as measure_freezing
from ecstruct.experiments.paper import COLUMNS, paper_numbers
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup, organisms_only
from ecstruct.experiments.statistics import curve, matching, over_seeds, shown, statistic
from ecstruct.experiments.sweep import Folder, Rows, Sweep, grid
from ecstruct.experiments.training import mean_ranks
from ecstruct.experiments.two_hop import HOPS, by_kind, learn_facts, two_hop
from ecstruct.io.values import Count
from ecstruct.organism import Recipe, checkpoint, local_windows
from ecstruct.plots import curve_panels

LOCAL_LAYERS = (0, 2, 3, 4, 5)
"""The numbers of layers that attend locally in half of the batches; the shipped organism has 4."""

LocalLayers = Annotated[Sequence[Count], Field(min_length=1)]

FIRST, OTHERS = "first", "others"
"""Which layers are put back: those before the boundary, or those from the boundary on."""


class BuiltIn(Result):
    """`frame` has rows per seed, repeat, number of `local` layers and hop, each with the mean ranks `fact`
    and `implication` and the organism's `held_out` accuracy on that hop.

    `layers` says what was put back or frozen: a row of the freezing table; or "first" or "others", the
    layers before `boundary` or from it on.
    """

    name = "built_in"
    title = "Is the freezing contrast built in?"
    shows = (
        "Mean rank of implications with the first layers put back after finetuning, by their number, for "
        "organisms pretrained with 0 to 5 local layers. Bands: lowest and highest seed."
    )
    lists = (
        "Mean ranks of implications by what was frozen and how many layers were local in pretraining; "
        "with several seeds, mean ± standard deviation."
    )

    @property
    def figure(self) -> go.Figure:
        return self._curves(FIRST, x="number of early layers put back")

    @property
    def figure_of_others(self) -> go.Figure:
        """The same with the late layers put back instead."""
        return self._curves(OTHERS, x="first of the late layers put back")

    def figures(self) -> dict[str, go.Figure]:
        twin = "The same with the other layers put back: from the one named to the last."
        return {self.shows: self.figure, twin: self.figure_of_others}

    def table(self) -> pd.DataFrame:
        rows = []
        for hop in HOPS:
            for local, summary in self.by_local(hop).items():
                cells: dict[str, Any] = {"implications": hop, "local layers": local}
                cells["held out"] = shown(summary["held_out"])
                cells |= {row: shown(summary[row]) for row in ROWS}
                cells["early - late (post)"] = shown(summary["contrast"])
                rows.append({**cells, "boundary": _boundary_text(summary["boundary"]["of_mean"])})
            paper: dict[str, Any] = {"implications": hop, "local layers": "paper", "held out": ""}
            paper |= {row: f"{_in_paper(hop, row):.2f}" for row in ROWS}
            rows.append({**paper, "early - late (post)": f"{_paper_contrast(hop):.2f}", "boundary": ""})
        return pd.DataFrame(rows)

    def results(self) -> dict[str, Any]:
        return {
            "built_in": {
                key: {str(local): summary for local, summary in self.by_local(hop).items()}
                for hop, key in HOPS.items()
            }
        }

    def by_local(self, hop: str) -> dict[int, dict[str, Any]]:
        """Return, by number of local layers: statistics of the implications' ranks for each row of the
        freezing table, of the contrast "Early (post)" - "Late (post)" and of the held-out accuracy; and the
        boundary of storage, for the mean over seeds and for each seed (None: nothing was learnt)."""
        return {local: _summary(rows) for local, rows in self._by_local(hop).items()}

    def conclusion(self) -> str:
        return " ".join(self._conclusion(hop) for hop in HOPS)

    def _conclusion(self, hop: str) -> str:
        by_local, paper = self.by_local(hop), _paper_contrast(hop)

        def agreeing(local: int) -> int:
            return sum(contrast * paper > 0 for contrast in by_local[local]["contrast"]["seeds"])

        told = "; ".join(
            f"with {_local_layers(local)} it is {summary['contrast']['mean']:+.2f} ({agreeing(local)} of "
            f"{len(summary['contrast']['seeds'])} seeds have the paper's sign), the boundary of storage "
            f"{_boundary_text(summary['boundary']['of_mean'])}, implications "
            f"{summary['None']['mean']:.2f} after finetuning and held-out sentences "
            f"{summary['held_out']['mean']:.0%} right"
            for local, summary in by_local.items()
        )
        text = (
            f"{hop.capitalize()}: putting back early rather than late layers costs implications "
            f"{paper:+.2f} ranks in the paper; {told}."
        )
        if 0 in by_local:
            n = len(by_local[0]["contrast"]["seeds"])
            survives = {0: "does not survive", n: "survives"}
            verdict = survives.get(agreeing(0), "survives in some seeds only")
            if by_local[0]["None"]["mean"] >= by_local[0]["All"]["mean"] / 2:
                verdict = "says nothing, as finetuning does not even halve the rank of implications"
            text += f" Without the regulariser, the sign of the contrast {verdict}."
        found = [summary["boundary"]["of_mean"] for summary in by_local.values()]
        if None not in found:
            moves = (
                f"is the same, {found[0]}, for all"
                if len(set(found)) == 1
                else f"lies between {min(found)} and {max(found)}, depending on the"
            )
            text += f" The boundary {moves} numbers of local layers."
        return text

    def _curves(self, which: str, x: str) -> go.Figure:
        panels = {
            f"{hop} implications": {
                _local_layers(local): curve(rows, "boundary", "implication", layers=which)
                for local, rows in self._by_local(hop).items()
            }
            for hop in HOPS
        }
        return curve_panels(panels, x=x, y="mean rank of implications (0 is best)")

    def _by_local(self, hop: str) -> dict[int, pd.DataFrame]:
        """Return the rows of a hop by number of local layers."""
        return {int(local): rows for local, rows in matching(self.frame, hop=hop).groupby("local")}


@experiment
def built_in(
    setup: Setup | None = None,
    *,
    local_layers: LocalLayers = LOCAL_LAYERS,
    recipe: Recipe | None = None,
    out: Folder = None,
    progress: bool = True,
) -> BuiltIn:
    """Measure the freezing table and the place of storage by the number of local layers in pretraining.

    Args:
        local_layers: how many layers attend locally in half of the batches of pretraining, from 0 to 6.
        recipe: the other options of pretraining; those of the shipped organism by default. The options of
            the result record another recipe, and such a result cannot be replayed.

    Raises:
        InputError: another model than the organism, or a folder that cannot be used.
    """
    setup, recipe = organisms_only(setup, "built_in"), recipe or Recipe()
    recipes = {local: replace(recipe, local_windows=local_windows(local)) for local in local_layers}
    for local, of_local in recipes.items():
        if len(of_local.local_windows) != local:
            raise InputError(f"local_layers has {local}, but there are 6 layers: use numbers from 0 to 6.")
    sweep = Sweep(setup, out, progress)

    def organism(seed: int, local: int) -> str:
        if recipes[local] == Recipe():  # the seed's own organism
            return sweep.source(seed)
        return str(sweep.organism(f"seed-{seed}-local-{local}", seed, recipes[local]))

    sources = {(seed, local): organism(seed, local) for seed in setup.seed_list for local in recipes}
    cells = grid(setup, local=list(recipes), hop=list(HOPS))
    cells.sort(key=lambda cell: (cell["seed"], cell["local"]))  # so that each organism is loaded once
    # Cells do not record the recipe: only this name separates those of another from the shipped one's.
    name = "built_in" if recipe == Recipe() else "built_in-of-another-recipe"
    frame = sweep.run(name, measure, cells, source=lambda cell: sources[cell["seed"], cell["local"]])
    accuracy = {cell: _held_out_accuracy(source) for cell, source in sources.items()}
    held_out = [
        accuracy[seed, local][HOPS[hop]]
        for seed, local, hop in zip(frame["seed"], frame["local"], frame["hop"], strict=True)
    ]
    return BuiltIn(setup, frame.assign(held_out=held_out))


def measure(
    model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, local: int, hop: str
) -> Rows:
    """Measure the freezing table of one hop, and both curves from one more finetuning."""
    data = two_hop(model, setup, hop, seed, repeat)
    at: dict[str, Any] = {"seed": seed, "repeat": repeat}
    delta = learn_facts(model, setup, data, hop, **at).delta
    rows = list(measure_freezing(model, setup, **at, hop=hop))
    n_layers = model.cfg.n_layers
    for boundary in range(n_layers + 1):
        for which, layers in ((FIRST, range(boundary)), (OTHERS, range(boundary, n_layers))):
            put_back = (delta - delta.restrict(layers)).apply_to(model)
            ranks = mean_ranks(put_back, by_kind(data))
            rows.append({"layers": which, "boundary": boundary, **ranks})
    return rows


def _summary(rows: pd.DataFrame) -> dict[str, Any]:
    """Return what `BuiltIn.by_local` says of the rows of one hop and number of local layers."""
    ranks = {row: over_seeds(rows, "implication", layers=row) for row in ROWS}
    early, late = (np.array(ranks[row]["seeds"]) for row in ("Early (post)", "Late (post)"))
    storage = curve(rows, "boundary", "implication", layers=FIRST)
    boundary = {
        "of_mean": storage_boundary([float(np.mean(seeds)) for seeds in storage]),
        "seeds": [storage_boundary(of_seed) for of_seed in zip(*storage, strict=True)],
    }
    contrast = statistic(list(early - late))
    return {"held_out": over_seeds(rows, "held_out"), **ranks, "contrast": contrast, "boundary": boundary}


def storage_boundary(ranks: Sequence[float]) -> int | None:
    """Return the smallest number of first layers that undo more than half of the learning when put back.

    `ranks` are by number of layers put back, from the finetuned model to the one before finetuning. The
    result is None if finetuning did not improve the rank.

    >>> storage_boundary([0.0, 1.0, 6.0, 9.0]), storage_boundary([9.0, 9.0])
    (2, None)
    """
    after, before = ranks[0], ranks[-1]
    if before <= after:
        return None
    return next(b for b, rank in enumerate(ranks) if rank > (after + before) / 2)


def _held_out_accuracy(source: str) -> dict[str, float]:
    folder = checkpoint() if source == "organism" else Path(source)
    return json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))["held_out_accuracy"]


def _in_paper(hop: str, row: str) -> float:
    return paper_numbers()["freezing"]["paper"][row][COLUMNS.index(f"{hop} implication")]


def _paper_contrast(hop: str) -> float:
    return _in_paper(hop, "Early (post)") - _in_paper(hop, "Late (post)")


def _local_layers(n: int) -> str:
    return f"{n} local layer{'' if n == 1 else 's'}"


def _boundary_text(boundary: int | None) -> str:
    return "none" if boundary is None else str(boundary)
