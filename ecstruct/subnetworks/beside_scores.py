"""The core and the extractive scores: are the components that subnetworks keep those with large scores?

For each score and kind of component, rho is Spearman's correlation over components between the share of the
subnetworks that keep a component and the size of its score, |mean over prompts of the sum over tokens|. p
permutes the scores among the components. A subnetwork may keep components that help and that harm, so the
size counts; `signed=True` instead asks for components that raise the reward.

Group means say more about added components: `percentile` is the mean over a group of the share of
components of its kind whose score is not larger, 0.5 by chance (ties count half).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.io.values import bounded
from ecstruct.plots.points import scatter
from ecstruct.scores.assemble import SCORES
from ecstruct.scores.components import PLURALS, component_names
from ecstruct.scores.permutation import rank_correlation
from ecstruct.scores.result import ExtractiveScores
from ecstruct.subnetworks.best_and_worst import Generalising
from ecstruct.subnetworks.common_core import Core


@dataclass(frozen=True)
class WithScores:
    """Keep-frequencies and extractive scores of the same components.

    `frame` has a row per component: `kind` ("mlp" or "head"), `layer`, `head`, `frequency`, `group`
    ("core", "added" or "other") and its scores by name, in the unit of the reward; sizes unless `signed`.
    `correlations` has a row per score and kind: `rho`, `p` and the number `n` of components.
    """

    frame: pd.DataFrame
    correlations: pd.DataFrame
    signed: bool

    def groups(self) -> pd.DataFrame:
        """Return a row per kind and group of components: the number of `components`, and by score their
        mean `percentile` within their kind (0.5 by chance)."""
        names = [name for name in SCORES if name in self.frame]
        places = self.frame.copy()
        for name in names:
            of_kind = self.frame.groupby("kind")[name]
            places[name] = (of_kind.rank() - 0.5) / of_kind.transform("size")
        places["components"] = 1
        how = dict.fromkeys(names, "mean") | {"components": "sum"}
        return places.groupby(["kind", "group"], sort=False).agg(how).reset_index()

    def conclusion(self) -> str:
        """Say which scores correlate with how often a component is kept."""
        found = self.correlations.loc[self.correlations["p"] <= 0.05]
        of = "score" if self.signed else "size of the score"
        if found.empty:
            least = self.correlations["p"].min()
            if np.isnan(least):
                return f"How often components are kept, or the {of}, does not vary: nothing is compared."
            return (
                f"How often a component is kept does not go significantly with the {of} of any kind (the "
                f"least p is {least:.2g})."
            )
        listed = [
            f"{row['score']} of {PLURALS[row['kind']]} (ρ = {row['rho']:.2f}, p = {row['p']:.2g})"
            for row in found.to_dict(orient="records")
        ]
        return f"How often a component is kept goes with the {of}: {', '.join(listed)}."

    @property
    def figure(self) -> go.Figure:
        """A point per component, with a panel per score: the score on x, the share that keeps it on y."""
        names = [name for name in SCORES if name in self.frame]
        shown = self.frame.assign(
            name=[
                f"{name} ({group})" if group != "other" else name
                for name, group in zip(component_names(self.frame), self.frame["group"], strict=True)
            ]
        )
        rho = self.correlations.set_index(["score", "kind"])["rho"]
        kinds = [kind for kind in PLURALS if kind in set(self.frame["kind"])]
        fit = {
            name: ", ".join(f"ρ = {rho[name, kind]:.2f} ({PLURALS[kind]})" for kind in kinds)
            for name in names
        }
        panels = {name: shown.rename(columns={name: "x", "frequency": "y"}) for name in names}
        figure = scatter(panels, x="score" if self.signed else "|score|", y="share that keeps it", fit=fit)
        # The scatter plot's least-squares line does not represent a rank correlation.
        figure.for_each_trace(lambda line: line.update(visible=False), selector={"mode": "lines"})
        return figure.update_yaxes(range=[-0.05, 1.05])


@bounded
def with_scores(
    core: Core,
    scores: ExtractiveScores,
    *,
    added: Generalising | None = None,
    group: str | float = "all",
    signed: bool = False,
    permutations: int = 10_000,
    seed: int = 0,
) -> WithScores:
    """Compare how often components are kept with their extractive scores.

    Args:
        core: The core of subnetworks of the finetuned model.
        scores: The scores of the same model's components.
        added: Which components count as added; by default none.
        group: Which of the core's subnetworks to use: "all" or a sparsity.
        signed: Use the scores themselves instead of their sizes.
        permutations: How many permutations to draw.
        seed: The same seed draws the same permutations.

    Raises:
        InputError: scores of another model's components, components without a score, no such group, or no
            permutations.
    """
    if permutations < 1:
        raise InputError(f"permutations={permutations} give no p-value; draw 1 or more, as in 10000.")
    sizes: Mapping[Any, int] = core.heads.sizes
    ours = (sizes["layer"], sizes["head"])
    theirs = (scores.dataset.sizes["layer"], scores.dataset.sizes["head"])
    if ours != theirs:
        raise InputError(
            f"the subnetworks have {ours[0]} layers of {ours[1]} heads and the scores {theirs[0]} of "
            f"{theirs[1]}: give those of one model."
        )
    names = [name for name in SCORES if name in scores.dataset["score"].values]
    if not names:
        raise InputError(
            f"these scores are {[str(name) for name in scores.dataset['score'].values]}: give some of "
            f"{', '.join(SCORES)}, as of ecstruct.score."
        )
    frame = scores.components(names[0]).loc[:, ["kind", "layer", "head"]]
    for name in names:
        value = scores.components(name)["value"]
        frame[name] = value if signed else value.abs()
    kept = core.frequency(group)
    frame["frequency"] = np.concatenate([kept[kind].values.ravel() for kind in ("mlp", "heads")])
    in_core = set(core.components(group))
    is_added = set(component_names(added.frame.loc[added.frame["added"]])) if added else set()
    frame["group"] = [
        "core" if name in in_core else "added" if name in is_added else "other"
        for name in component_names(frame)
    ]
    pruned = {"mlp": "mlp", "heads": "head"}
    frame = frame.loc[frame["kind"].isin([pruned[kind] for kind in core.kinds])].reset_index(drop=True)
    if frame[names].isna().to_numpy().any():
        raise InputError("some components have no score: score all of them, without components=.")
    rows = []
    for name in names:
        for kind, these in frame.groupby("kind", sort=False):
            rho, p = rank_correlation(these[name], these["frequency"], permutations, seed)
            rows.append({"score": name, "kind": kind, "rho": rho, "p": p, "n": len(these)})
    return WithScores(frame, pd.DataFrame(rows), signed)
