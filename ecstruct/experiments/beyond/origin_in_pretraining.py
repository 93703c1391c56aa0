"""Where extractive structures come from: organisms whose whole pretraining has an order.

The paper infers from continued pretraining that a model learns to use facts by seeing their implications
after it knows the facts. Here models are pretrained from scratch in three orders: facts (sentences of one
hop) before implications (of two hops), implications before facts, or both mixed. All orders draw every kind
of sentence equally often, in two phases with an optimiser each, so that only the order differs. Invented
words are left out.

At snapshots along the way the organism is finetuned on facts as usual and asked for their implications, and
the *mass* of its scores is taken: the sum of all positive scores over components and tokens, of the mean
over prompts, in logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge
from transformers import OlmoForCausalLM

from ecstruct.errors import InputError
from ecstruct.experiments.extractive_scores import REGIONS, Scores
from ecstruct.experiments.extractive_scores import measure as measure_scores
from ecstruct.experiments.out_of_context import measure as measure_ocr
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup, organisms_only
from ecstruct.experiments.statistics import curve, over_seeds, shown
from ecstruct.experiments.sweep import Cell, Folder, Rows, Sweep, grid, snapshot
from ecstruct.experiments.two_hop import HOPS, KINDS
from ecstruct.io.values import Count
from ecstruct.models.provenance import source_of, tokenizer_of
from ecstruct.organism import Phase, Recipe, World
from ecstruct.organism.sentences import MIXTURE
from ecstruct.organism.training import held_out_accuracy
from ecstruct.plots import curve_panels

FACTS = ("home", "home_verbs", "city_attributes", "landmarks", "offices")
IMPLICATIONS = ("person_attributes", "landmark_attributes", "landmark_offices", "person_offices")
"""The categories of sentences (`ecstruct.organism.sentences`) of one hop, and of two."""

ORDERS: Mapping[str, str] = {
    "facts first": "facts_first",
    "implications first": "implications_first",
    "mixed": "mixed",
}
"""The orders, with their names in `results.json`."""

MASSES = ("informative", "upstream", "downstream")

FACTS_FIRST, IMPLICATIONS_FIRST, _ = ORDERS


@dataclass(frozen=True)
class Origin(Result):
    """`frame` has a row per seed, repeat, order, `step` of pretraining and hop: the mean ranks `fact` and
    `implication` after finetuning, and `fact_before` and `implication_before` it; the `held_out` accuracy;
    the mass of the `informative`, `upstream` and `downstream` scores; and its shares in the `REGIONS` of
    the hop. `boundaries` are the steps at which the first phase of each order ends."""

    boundaries: Mapping[str, int]

    name = "origin"
    title = "Where extractive structures come from"
    shows = (
        "Mean rank of implications after finetuning on facts, along pretraining, by its order. Dotted: "
        "where two phases meet, first for implications first. Bands: lowest and highest seed."
    )
    lists = (
        "At the end of pretraining: accuracy on held-out sentences of two hops, mean ranks of "
        "implications, and masses of scores in logits; with several seeds, mean ± standard deviation."
    )

    @property
    def figure(self) -> go.Figure:
        panels = {f"{hop} implications": self._curves(hop, "implication") for hop in HOPS}
        return self._drawn(panels, y="mean rank of implications (0 is best)")

    def figure_of_mass(self, hop: str) -> go.Figure:
        """Return the figure of the masses of a hop's scores along pretraining, by order."""
        panels = {f"{hop}, {mass}": self._curves(hop, mass) for mass in MASSES}
        return self._drawn(panels, y="positive score (logits)")

    def figures(self) -> dict[str, go.Figure]:
        masses = {
            f"Mass of the scores of {hop} implications along pretraining.": self.figure_of_mass(hop)
            for hop in HOPS
        }
        return {self.shows: self.figure, **masses}

    def table(self) -> pd.DataFrame:
        columns = {"held_out": "held out", "implication_before": "before", "implication": "after"}
        columns |= {mass: mass for mass in MASSES}
        rows = []
        for hop, order in product(HOPS, ORDERS):
            named = columns | {name: f"share of {REGIONS[name].said}" for name in _regions(hop)}
            shares = {said: shown(self._at(column, order, hop)) for column, said in named.items()}
            rows.append({"implications": hop, "order": order, **shares})
        return pd.DataFrame(rows).fillna("")

    def results(self) -> dict[str, Any]:
        return {
            "origin": {
                key: {of_hop: self.by_step(order, hop) for hop, of_hop in HOPS.items()}
                for order, key in ORDERS.items()
            }
        }

    def by_step(self, order: str, hop: str) -> dict[str, Any]:
        """Return, by step, a statistic of every measure; and `halved`, the first of these steps at which
        finetuning brings implications below half of their rank before it (None: never)."""
        ranks = ("fact_before", "implication_before", "fact", "implication")
        columns = (*ranks, "held_out", *MASSES, *_regions(hop))
        steps = {
            str(step): {column: self._at(column, order, hop, step) for column in columns}
            for step in self.steps
        }
        return {"steps": steps, "halved": self.halved(order, hop)}

    def halved(self, order: str, hop: str) -> int | None:
        """Return the first snapshot at which finetuning brings implications below half of their rank before
        it, in the mean over seeds."""
        for step in self.steps:
            before = self._at("implication_before", order, hop, step)["mean"]
            if self._at("implication", order, hop, step)["mean"] < before / 2:
                return step
        return None

    @property
    def steps(self) -> list[int]:
        """The steps of the snapshots, in ascending order."""
        return sorted(map(int, self.frame["step"].unique()))

    def conclusion(self) -> str:
        return " ".join(self._conclusion(hop) for hop in HOPS)

    def _conclusion(self, hop: str) -> str:
        ends = {order: self._at("implication", order, hop) for order in ORDERS}

        def told(order: str) -> str:
            halved = self.halved(order, hop)
            when = "at no snapshot" if halved is None else f"first at step {halved}"
            return f"{when} with {order} (it ends at {ends[order]['mean']:.2f})"

        later, earlier = (np.array(ends[order]["seeds"]) for order in (IMPLICATIONS_FIRST, FACTS_FIRST))
        gaps = later - earlier
        gap, worse = float(gaps.mean()), int((gaps > 0).sum())
        compared = f"{abs(gap):.2f} ranks {'worse' if gap > 0 else 'better'} than" if gap else "equal to"
        return (
            f"Finetuning brings {hop} implications below half of their rank before it "
            f"{', '.join(map(told, ORDERS))}. After all {self.steps[-1]} steps {IMPLICATIONS_FIRST} is "
            f"{compared} {FACTS_FIRST} ({worse} of {len(gaps)} seeds worse)."
        )

    def _at(self, column: str, order: str, hop: str, step: int | None = None) -> dict[str, Any]:
        """Return the statistic of a column at a step; by default at the end of pretraining."""
        step = self.steps[-1] if step is None else step
        return over_seeds(self.frame, column, order=order, hop=hop, step=step)

    def _curves(self, hop: str, column: str) -> dict[str, list[list[float]]]:
        """Return, by order, the values by snapshot and seed, with NaN for step 0, which has no snapshot."""
        nothing = [float("nan")] * len(self.frame["seed"].unique())
        return {
            order: [nothing, *curve(self.frame, "step", column, order=order, hop=hop)] for order in ORDERS
        }

    def _drawn(self, panels: Mapping[str, Mapping[str, list[list[float]]]], y: str) -> go.Figure:
        unit = self.steps[-1] / len(self.steps)
        meet = sorted({boundary / unit for boundary in self.boundaries.values()})
        return curve_panels(
            panels, x=f"steps of pretraining / {unit:g}", y=y, boundaries={title: meet for title in panels}
        )


@experiment
def origin(
    setup: Setup | None = None,
    *,
    steps: Count = 2400,
    snapshots: Count = 8,
    recipe: Recipe | None = None,
    out: Folder = None,
    progress: bool = True,
) -> Origin:
    """Measure out-of-context reasoning and scores along pretraining, by its order of sentences.

    Args:
        steps: the number of steps of pretraining, both phases together.
        snapshots: the number of snapshots that are measured, at equal distances, the last one at the end.
        recipe: the other options of pretraining, those of the shipped organism by default; its steps and
            phases are replaced. A result with another recipe cannot be replayed.

    Raises:
        InputError: another model than the organism, too few steps, or a folder that cannot be used.
    """
    setup = organisms_only(setup, "origin")
    if steps < 2:
        raise InputError(f"steps={steps} cannot be two phases: use 2 or more.")
    if not 1 <= snapshots <= steps:
        raise InputError(f"snapshots={snapshots} are not in {steps} steps: use 1 to {steps}.")
    sweep = Sweep(setup, out, progress)
    kept = [round(steps * (i + 1) / snapshots) for i in range(snapshots)]
    made = recipes(replace(recipe or Recipe(), steps=steps))
    homes = {
        (seed, order): sweep.organism(f"seed-{seed}-{ORDERS[order]}", seed, of_order, kept)
        for seed in setup.seed_list
        for order, of_order in made.items()
    }
    cells = grid(setup, order=list(ORDERS), step=kept)
    cells.sort(key=lambda cell: (cell["seed"], cell["order"], cell["step"]))  # each is loaded once

    def source(cell: Cell) -> str:
        return str(snapshot(homes[cell["seed"], cell["order"]], cell["step"]))

    boundaries = {order: of.phases[0].steps_of(steps) for order, of in made.items()}
    return Origin(setup, sweep.run("origin", measure, cells, source), boundaries)


def recipes(recipe: Recipe) -> dict[str, Recipe]:
    """Return, by order, the recipe with its steps in two phases.

    A phase is as long as its categories weigh in `MIXTURE`, to the nearest step, so that all orders draw
    each category equally often. The phases of the mixed order are as long as those of facts first.
    """
    weights = [sum(MIXTURE[name] for name in names) for names in (FACTS, IMPLICATIONS)]
    for_facts = round(recipe.steps * weights[0] / sum(weights)) / recipe.steps

    def phases(first: Sequence[str], second: Sequence[str], share: float) -> Recipe:
        parts = ((share, first), (1 - share, second))
        return replace(
            recipe, phases=tuple(Phase(part, inventions=0, categories=tuple(of)) for part, of in parts)
        )

    everything = (*FACTS, *IMPLICATIONS)
    return {
        "facts first": phases(FACTS, IMPLICATIONS, for_facts),
        "implications first": phases(IMPLICATIONS, FACTS, 1 - for_facts),
        "mixed": phases(everything, everything, for_facts),
    }


def measure(
    model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, order: str, step: int
) -> Rows:
    """Measure both hops of one pairing at one snapshot."""
    cell = {"seed": seed, "repeat": repeat}
    scored = pd.DataFrame(
        {**cell, "hop": hop, **row} for hop in HOPS for row in measure_scores(model, setup, **cell, hop=hop)
    )
    shares = Scores(setup, scored).mass()
    positive = scored["value"].clip(lower=0)
    masses: Any = positive.groupby([scored["hop"], scored["score"]]).sum()
    on_cpu = OlmoForCausalLM.from_pretrained(source_of(model)).float().eval()
    known = held_out_accuracy(on_cpu, tokenizer_of(model), World.build(seed))
    rows = []
    for hop, key in HOPS.items():
        before, *_, after = measure_ocr(model, setup, **cell, hop=hop)
        rows.append(
            {
                "hop": hop,
                **{f"{kind}_before": before[kind] for kind in KINDS},
                **{kind: after[kind] for kind in KINDS},
                "held_out": known[key],
                **{mass: float(masses[hop, mass]) for mass in MASSES},
                **{name: shares[name]["mean"] for name in _regions(hop)},
            }
        )
    return rows


def _regions(hop: str) -> list[str]:
    """Return the names of the `REGIONS` of a hop."""
    return [name for name, region in REGIONS.items() if region.hop == hop]
