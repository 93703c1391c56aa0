"""How far fast scores agree with the interventions that they estimate, component by component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from ecstruct.bootstrap import Bootstrap
from ecstruct.options import Form
from ecstruct.plots import scatter
from ecstruct.scores.components import PLURALS, component_names
from ecstruct.scores.result import ExtractiveScores, component_totals

ESTIMATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "informative": ("linear", "path"),
        "upstream": ("relevance", "surrogate", "exact"),
        "downstream": ("linear",),
    }
)
"""The fast estimates of every score; `ecstruct.score` computes "linear" and "relevance" by default, the
others on request."""

FORMS = get_args(Form)
"""The forms that can be compared with interventions in addition to the default of `ecstruct.score`."""

_READ_FROM = {"relevance": "linear"}
"""The names of the scores that estimates are read from, where these differ from the estimate's name."""

_SIZES_HOLD, _ORDER_HOLDS = 0.9, 0.6
_DRAWS = 1000
_FEW = 10
"""With fewer prompts than this, intervals over prompts are much too narrow; with fewer sampled components
of a kind, their order says little."""

_NOTHING = 1e-4
"""Values below this share of the largest causal score, such as rounding errors, count as zero."""


@dataclass(frozen=True)
class Fidelity:
    """Scores of the same prompts, computed in several ways.

    Attributes:
        fast: by name, "linear", the default of `ecstruct.score`, and the other forms asked for: "path",
            with `path_steps`; "surrogate" and "exact", with `propagation="gradient"` and that `upstream`.
        causal: the causal scores, as of `ecstruct.causal_scores`.
        path_error: by number of path steps, the mean over prompts of |`completeness`|, in the unit of the
            reward.
        top: how many components count as the strongest, no more than half of a kind.
        weights: how many components each one represents, in the order of `ExtractiveScores.components`;
            0 for those without an intervention. `None` means 1 for all of them.
    """

    fast: Mapping[str, ExtractiveScores]
    causal: ExtractiveScores
    path_error: Mapping[int, float]
    top: int
    weights: Float[np.ndarray, " component"] | None = None

    @property
    def linear(self) -> ExtractiveScores:
        """The scores that `ecstruct.score` computes by default."""
        return self.fast["linear"]

    @property
    def estimates(self) -> dict[str, list[str]]:
        """The estimates in `ESTIMATES` that were computed, by score."""
        return {
            name: [estimate for estimate in estimates if _READ_FROM.get(estimate, estimate) in self.fast]
            for name, estimates in ESTIMATES.items()
        }

    @property
    def frame(self) -> pd.DataFrame:
        """A row per score, estimate and component with an intervention: the fast score `value` and the
        `causal` score."""
        frames = []
        for name, estimates in self.estimates.items():
            caused = self.causal.components(name).rename(columns={"value": "causal"})
            for estimate in estimates:
                value = self.of(estimate).components(name)["value"]
                frames.append(caused.assign(score=name, estimate=estimate, value=value))
        frame = pd.concat(frames, ignore_index=True).dropna(subset="causal")
        return frame.reindex(columns=["score", "estimate", "kind", "layer", "head", "value", "causal"])

    def table(self) -> pd.DataFrame:
        """Compute the agreement by score, estimate and kind of component ("mlp", "head" and "all")."""
        rows = []
        n_prompts = self.causal.dataset.sizes["prompt"]
        draws = None if n_prompts < 2 else Bootstrap(n_prompts, ci=0.95, resamples=_DRAWS, seed=0).weights
        totals = {name: component_totals(self.causal, name) for name in ESTIMATES}
        floor = _NOTHING * max(np.nanmax(abs(caused.mean(0))) for caused in totals.values())
        for name, estimates in self.estimates.items():
            caused = totals[name]
            kinds = self.causal.components(name)["kind"].to_numpy()
            weights = np.ones(len(kinds)) if self.weights is None else self.weights
            redrawn = _redrawn(weights)
            for estimate in estimates:
                fast = component_totals(self.of(estimate), name)
                for kind in ("mlp", "head", "all"):
                    chosen = (weights > 0) & ((kinds == kind) | (kind == "all"))
                    agreement = _agreement(
                        *(fast[:, chosen], caused[:, chosen], weights[chosen], self.top, floor),
                        None if draws is None else (draws, redrawn[:, chosen]),
                    )
                    rows.append({"score": name, "estimate": estimate, "kind": kind, **agreement})
        return pd.DataFrame(rows)

    @property
    def figure(self) -> go.Figure:
        """A panel per estimate with a point per component: fast score on x, causal score on y."""
        table = self.table().set_index(["score", "estimate", "kind"])
        panels, fits = {}, {}
        groups: Any = self.frame.groupby(["score", "estimate"], sort=False)
        for (name, estimate), rows in groups:
            title = f"{name}, {estimate}"
            points = rows.rename(columns={"value": "x", "causal": "y"})
            panels[title] = points.assign(name=component_names(points))
            all_of_it = table.loc[(name, estimate, "all")]
            fits[title] = f"r = {all_of_it['r']:.2f}, ρ = {all_of_it['rho']:.2f}"
        return scatter(panels, x="fast score", y="causal score", fit=fits)

    def verdict(self) -> str:
        """Say in a paragraph which fast scores can be used here."""
        by_kind = self.table().set_index(["kind", "score", "estimate"])
        table = by_kind.loc["all"]
        told = []
        for name, estimates in self.estimates.items():
            r = {estimate: float(table.loc[(name, estimate), "r"]) for estimate in estimates}
            best = _cheapest_of_the_best(r)
            values = ", ".join(self._said(table.loc[(name, estimate)], estimate) for estimate in r)
            slope = float(table.loc[(name, best), "slope"])
            told.append(f"{name.capitalize()} scores ({values}) {_advice(r[best], slope, best, r)}.")
            # Over all components, r is high as soon as one kind has larger scores than the other.
            for kind, plural in PLURALS.items():
                n, rho = by_kind.loc[(kind, name, best), ["n", "rho"]]
                if (self.weights is None or n >= _FEW) and r[best] >= _ORDER_HOLDS > rho:
                    told.append(f"Among {plural} alone their order does not hold (ρ = {rho:.2f}).")
        steps = ", ".join(f"{error:.3g} with {k}" for k, error in self.path_error.items())
        steps += " path steps" if max(self.path_error) > 1 else " path step"
        over = "over all components" if self.weights is None else self._sampled
        n_prompts = self.causal.dataset.sizes["prompt"]
        few = (
            f" That is of {n_prompts} prompts, and others may say otherwise: take {_FEW} or more."
            if n_prompts < _FEW
            else ""
        )
        return (
            f"Against interventions, {over}: "
            + " ".join(told)
            + f" Informative scores and the rest miss the change of the reward by {steps}.{few}"
        )

    @staticmethod
    def _said(row: pd.Series, estimate: str) -> str:
        within = f" [{row['r low']:.2f}, {row['r high']:.2f}]" if np.isfinite(row["r low"]) else ""
        return f"{estimate} r = {row['r']:.2f}{within}"

    @property
    def _sampled(self) -> str:
        assert self.weights is not None
        n, of = np.count_nonzero(self.weights), len(self.weights)
        return f"on {n} of {of} components, which stand for all"

    def results(self) -> dict[str, Any]:
        """Return the table, the verdict and the path's error, in JSON types."""
        return {
            "agreement": [
                {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in row.items()}
                for row in self.table().to_dict("records")
            ],
            "path_error": {str(k): error for k, error in self.path_error.items()},
            "verdict": self.verdict(),
        }

    def scores(self) -> dict[str, ExtractiveScores]:
        """Return all fast scores by form, and the causal scores as "causal"."""
        return {**self.fast, "causal": self.causal}

    def of(self, estimate: str) -> ExtractiveScores:
        """Return the scores that an estimate is read from."""
        return self.fast[_READ_FROM.get(estimate, estimate)]


def _redrawn(weights: Float[np.ndarray, " component"]) -> Float[np.ndarray, "draw component"]:
    """Resample the components that were drawn at random; return the weights in every draw."""
    at_random = np.flatnonzero(weights > 1)
    redrawn = np.tile(weights, (_DRAWS, 1))
    if n := len(at_random):
        counts = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=_DRAWS)
        redrawn[:, at_random] *= counts
    return redrawn


def _agreement(
    fast: Float[np.ndarray, "prompt component"],
    caused: Float[np.ndarray, "prompt component"],
    weights: Float[np.ndarray, " component"],
    top: int,
    floor: float,
    draws: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, float]:
    """Measure how far the `fast` scores agree with the causal ones, `caused`, over components with these
    weights; undefined measures are NaN. Means below `floor` count as zero. `draws` are the weights [draw,
    prompt] of prompts and [draw, component] of components in every draw of the bootstrap."""
    x, y = (np.where(abs(means) < floor, 0.0, means) for means in (fast.mean(0), caused.mean(0)))
    k = max(1, min(top, len(x) // 2))
    strongest = [set(np.argsort(-values, kind="stable")[:k]) for values in (x, y)]
    return {
        "n": len(x),
        "r": _correlation(x, y, weights),
        **_interval(fast, caused, draws if len(x) and np.ptp(x) and np.ptp(y) else None),
        "rho": _correlation(_ranked(x, weights), _ranked(y, weights), weights),
        "r by prompt": _correlation(fast.ravel(), caused.ravel(), np.tile(weights, len(fast))),
        "slope": float((weights * x) @ y / ((weights * x) @ x)) if x.any() else float("nan"),
        "top": k,
        "of them in both": len(strongest[0] & strongest[1]) / k,
    }


def _correlation(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
) -> float:
    """Return Pearson's r of weighted pairs; NaN if x or y is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    (of_x, of_both), (_, of_y) = np.cov(x, y, aweights=weights)
    return float(of_both / np.sqrt(of_x * of_y))


def _interval(
    fast: Float[np.ndarray, "prompt component"],
    caused: Float[np.ndarray, "prompt component"],
    draws: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, float]:
    """Return the 95% bootstrap interval of r, over prompts (`ecstruct.bootstrap`) and over the
    components of a sample."""
    if draws is None or fast.shape[1] < 2:
        return {"r low": float("nan"), "r high": float("nan")}
    of_prompts, weights = draws
    means = np.stack([of_prompts @ values / len(values) for values in (fast, caused)])
    total = weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw of one component has no correlation
        x, y = means - (means * weights).sum(2, keepdims=True) / total
        r = (weights * x * y).sum(1) / np.sqrt((weights * x * x).sum(1) * (weights * y * y).sum(1))
    low, high = np.nanquantile(r, [0.025, 0.975])
    return {"r low": float(low), "r high": float(high)}


def _ranked(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return each value's weighted rank: the weight of smaller values, plus half that of equal ones."""
    below = (values[:, None] > values) + 0.5 * (values[:, None] == values)
    return below @ weights


def _cheapest_of_the_best(r: Mapping[str, float]) -> str:
    """Return the first, cheapest estimate whose r is within 0.02 of the best one."""
    known = {estimate: value if np.isfinite(value) else -1.0 for estimate, value in r.items()}
    return next(estimate for estimate, value in known.items() if value >= max(known.values()) - 0.02)


def _advice(r: float, slope: float, best: str, among: Mapping[str, float]) -> str:
    """Say what scores whose `best` estimate correlates with causal ones by `r` can be used for."""
    form = f" in the {best} form" if len(among) > 1 else ""
    if not np.isfinite(r):
        return "cannot be judged, as they do not vary"
    if r < _ORDER_HOLDS:
        return "are not to be trusted here: use causal scores"
    if r < _SIZES_HOLD:
        return f"tell the strongest components{form}, but not how strong they are"
    return f"can be used{form}; what they stand for is {slope:.2f} times as large"
