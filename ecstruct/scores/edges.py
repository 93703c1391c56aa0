"""Edges from upstream to informative to downstream components: the result of path patching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ecstruct.bootstrap import Bootstrap
from ecstruct.io.saved import SavedDataset
from ecstruct.io.values import bounded
from ecstruct.plots.role_graph import role_graph
from ecstruct.plots.style import reward_title

Link = tuple[str, str]
"""The roles of the two components of an edge."""

LINKS: tuple[Link, Link] = (("upstream", "informative"), ("informative", "downstream"))
_ROLES = ("upstream", "informative", "downstream")
_SHOWN = 5


def variable(link: Link) -> str:
    """Return the name of the variable with the edges of a link."""
    return "_to_".join(link)


@dataclass(frozen=True, eq=False)
class Edges(SavedDataset):
    """How much of the score of a component goes through which other one; `ecstruct.edges` returns it.

    It wraps one `xarray.Dataset`, accessible as `.dataset`: `upstream_to_informative` (upstream,
    informative, prompt) and `informative_to_downstream` (informative, downstream, prompt) have the edges E
    of `ecstruct.scores.path_patching`, in the unit of the reward, NaN where the second component does not
    come after the first. `upstream_score`, `informative_score` and `downstream_score` (role, prompt) are
    the causal scores of the components, `reward` (prompt, state) those of both models. Positive raises the
    reward. A component may have several roles.
    """

    format = "ecstruct edges 1"
    contents = "edges"

    def nodes(self) -> pd.DataFrame:
        """Return a row per role and component, the strongest first: `role`, `component`, its causal
        `score`, the mean over prompts, and `explained`: the share of a downstream score that the edges
        into the component sum to, NaN for the other roles."""
        into = self.dataset[variable(LINKS[1])].mean("prompt").sum("informative")
        rows = []
        for role in _ROLES:
            scores = self.dataset[f"{role}_score"].mean("prompt")
            for name, score in zip(scores[role].values, scores.values.tolist(), strict=True):
                summed = float(into.sel(downstream=name)) if role == "downstream" and score else np.nan
                row = {"role": role, "component": str(name), "score": score}
                rows.append(row | {"explained": summed / score if score else np.nan})
        return pd.DataFrame(rows)

    @bounded
    def table(self, *, ci: float = 0.95, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Return a row per edge, the strongest first: its components `from` and `to` with their roles
        (`from_role`, `to_role`), the `effect` E, the mean over prompts, with the ends `low` and `high` of
        its interval over prompts (NaN for a single one; see `ecstruct.bootstrap`), and the `share` of E in
        the score of `to`."""
        n, rows = self.dataset.sizes["prompt"], []
        bootstrap = Bootstrap(n, ci=ci, resamples=resamples, seed=seed) if n > 1 else None
        for source, target in LINKS:
            edges = self.dataset[variable((source, target))]
            scores = self.dataset[f"{target}_score"].mean("prompt")
            for one in edges[source].values:
                for other in edges[target].values:
                    values = edges.sel({source: one, target: other}).values
                    if np.isnan(values).all():
                        continue
                    low, high = bootstrap.interval(values) if bootstrap else (np.nan, np.nan)
                    effect, whole = float(values.mean()), float(scores.sel({target: other}))
                    row = {"from": str(one), "from_role": source, "to": str(other), "to_role": target}
                    row |= {"effect": effect, "low": float(low), "high": float(high)}
                    rows.append(row | {"share": effect / whole if whole else np.nan})
        columns = ["from", "from_role", "to", "to_role", "effect", "low", "high", "share"]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.sort_values("effect", key=abs, ascending=False, ignore_index=True)

    @property
    def figure(self) -> go.Figure:
        """Draw the components by role and layer, and the edges between them."""
        return role_graph(
            self.nodes(), self.table(), n_layers=self.attrs["n_layers"], unit=reward_title(self.attrs)
        )

    def conclusion(self) -> str:
        """Name the strongest edges, and say how much of the downstream scores they explain."""
        table, nodes = self.table().head(_SHOWN), self.nodes().set_index("role")
        if table.empty:
            return "No chosen component comes after another one, so that there are no edges."
        listed = [
            f"{row['from']} ({row['from_role']}) to {row['to']} ({row['to_role']}) {row['effect']:.2f}"
            for row in table.to_dict("records")
        ]
        said = f"The strongest edges: {', '.join(listed)}."
        of = nodes[nodes.index == "downstream"]
        if whole := float(np.sum(of["score"])):
            share = float(np.sum(of["explained"] * of["score"])) / whole
            said += (
                f" Edges from the informative components sum to {share:.2f} of the downstream scores of "
                "these components."
            )
        return said
