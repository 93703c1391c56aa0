"""How far the fast scores can be trusted: each held against the intervention that it stands for.

For every component, the mean over prompts of a score (summed over tokens) beside that of the causal score:

* informative: linear (gradients at W) and along the path from W to W';
* upstream: by the rules of relevance (the default), and by gradients, as surrogate (g' with all weights
  new, as the paper computes) and exact (only later weights new);
* downstream: linear.

Per score and kind of component: Pearson's r and Spearman's rho over components, r over those of single
prompts too, the slope of the causal score on the fast one (1: sizes are right; 0.5: the fast one is twice
too large), and the share of the strongest components that both have.

Every intervention costs a run of the model. `sample` asks for some of them only: on the components that
are strongest by each fast score, and on others drawn at random. Those drawn count for all that were not, so
that correlations and slopes estimate those over all components, the better the more are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.plots import scatter
from ecstruct.scores.baseline import BaselineKind
from ecstruct.scores.causal import intervened
from ecstruct.scores.components import PLURALS, component_names
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.pair import ModelAfter, ModelBefore
from ecstruct.scores.result import ExtractiveScores, component_totals
from ecstruct.scores.reward import AnswerTokens, RewardLike

ESTIMATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "informative": ("linear", "path"),
        "upstream": ("relevance", "surrogate", "exact"),
        "downstream": ("linear",),
    }
)
"""The fast forms of every score; "linear" and "relevance" are what `ecstruct.score` computes by default."""

_FROM = {"linear": "linear", "relevance": "linear"}
_SIZES_HOLD, _ORDER_HOLDS = 0.9, 0.6
_NOTHING = 1e-4
"""Of the largest causal score: what is smaller, as rounding errors are, counts as zero."""


@dataclass(frozen=True)
class Fidelity:
    """Scores of the same prompts, computed in five ways.

    Attributes:
        linear: `ecstruct.score` by default.
        surrogate, exact: with `propagation="gradient"`, and such `upstream`.
        path: with `path_steps`.
        causal: `ecstruct.causal_scores`.
        path_error: by number of path steps, the mean over prompts of |`completeness`|, in the unit of the
            reward.
        top: how many components count as the strongest, no more than half of a kind.
        weights: how many components each one stands for, in the order of `ExtractiveScores.components`;
            0 for those on which there was no intervention. 1 for all of them if it is `None`.
    """

    linear: ExtractiveScores
    surrogate: ExtractiveScores
    exact: ExtractiveScores
    path: ExtractiveScores
    causal: ExtractiveScores
    path_error: Mapping[int, float]
    top: int
    weights: Float[np.ndarray, " component"] | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """A row per score, estimate and component that was intervened on: its `value`, and the `causal`
        one."""
        frames = []
        for name, estimates in ESTIMATES.items():
            caused = self.causal.components(name).rename(columns={"value": "causal"})
            for estimate in estimates:
                value = self._scores(estimate).components(name)["value"]
                frames.append(caused.assign(score=name, estimate=estimate, value=value))
        frame = pd.concat(frames, ignore_index=True).dropna(subset="causal")
        return frame.reindex(columns=["score", "estimate", "kind", "layer", "head", "value", "causal"])

    def table(self) -> pd.DataFrame:
        """Agreement by score, estimate and kind of component: "mlp", "head", and "all" of both."""
        rows = []
        totals = {name: component_totals(self.causal, name) for name in ESTIMATES}
        floor = _NOTHING * max(np.nanmax(abs(caused.mean(0))) for caused in totals.values())
        for name, estimates in ESTIMATES.items():
            caused = totals[name]
            kinds = self.causal.components(name)["kind"].to_numpy()
            weights = np.ones(len(kinds)) if self.weights is None else self.weights
            for estimate in estimates:
                fast = component_totals(self._scores(estimate), name)
                for kind in ("mlp", "head", "all"):
                    chosen = (weights > 0) & ((kinds == kind) | (kind == "all"))
                    agreement = _agreement(
                        fast[:, chosen], caused[:, chosen], weights[chosen], self.top, floor
                    )
                    rows.append({"score": name, "estimate": estimate, "kind": kind, **agreement})
        return pd.DataFrame(rows)

    @property
    def figure(self) -> go.Figure:
        """A point per component: the fast score across, the causal one up, a panel per estimate."""
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
        """What of the fast scores can be used here, in a paragraph that holds whatever was found."""
        by_kind = self.table().set_index(["kind", "score", "estimate"])
        table = by_kind.loc["all"]
        told = []
        for name, estimates in ESTIMATES.items():
            r = {estimate: float(table.loc[(name, estimate), "r"]) for estimate in estimates}
            best = _cheapest_of_the_best(r)
            values = ", ".join(f"{estimate} r = {value:.2f}" for estimate, value in r.items())
            slope = float(table.loc[(name, best), "slope"])
            told.append(f"{name.capitalize()} scores ({values}) {_use(r[best], slope, best, r)}.")
            # Over all, r is high already where one kind is larger than the other.
            for kind, plural in PLURALS.items():
                rho = float(by_kind.loc[(kind, name, best), "rho"])
                if r[best] >= _ORDER_HOLDS > rho:
                    told.append(f"Among {plural} alone their order does not hold (ρ = {rho:.2f}).")
        steps = ", ".join(f"{error:.3g} with {k}" for k, error in self.path_error.items())
        over = "over all components" if self.weights is None else self._sampled
        return (
            f"Against interventions, {over}: "
            + " ".join(told)
            + f" Informative scores and the rest miss the change of the reward by {steps} path steps."
        )

    @property
    def _sampled(self) -> str:
        assert self.weights is not None
        n, of = np.count_nonzero(self.weights), len(self.weights)
        return f"on {n} of {of} components, which stand for all"

    def results(self) -> dict[str, Any]:
        """The table, the verdict and the path's error, in JSON types."""
        return {
            "agreement": [
                {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in row.items()}
                for row in self.table().to_dict("records")
            ],
            "path_error": {str(k): error for k, error in self.path_error.items()},
            "verdict": self.verdict(),
        }

    def scores(self) -> dict[str, ExtractiveScores]:
        """All of the scores by how they were computed."""
        ways = ("linear", "surrogate", "exact", "path", "causal")
        return {way: getattr(self, way) for way in ways}

    def _scores(self, estimate: str) -> ExtractiveScores:
        return self.scores()[_FROM.get(estimate, estimate)]


def fidelity(
    model_before: ModelBefore,
    model_after: ModelAfter,
    prompts: PromptsLike,
    *,
    reward: RewardLike = "logit_diff",
    answer_tokens: AnswerTokens = "first",
    baseline: BaselineKind = "counterfactual",
    path_steps: Sequence[int] = (1, 2, 4, 8),
    top: int = 5,
    sample: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Fidelity:
    """Hold linear, exact and path-integrated scores against causal ones; see `ecstruct.checks.fidelity`.

    Args:
        model_before, model_after, prompts, reward, answer_tokens, baseline: as for `ecstruct.score`.
        path_steps: numbers of steps whose error is reported; the scores are those of the largest.
        top: how many components count as the strongest.
        sample: intervene on so many components only: half of them the strongest by every fast score, the
            others drawn at random by `seed`. All by default.
        batch_size: as for `ecstruct.score`.
        memory: as for `ecstruct.causal_scores`.
        progress: show progress bars.

    Raises:
        InputError: no path steps, or less than 1; `top` below 1, or `sample` below 2; and as
            `ecstruct.causal_scores`.
    """
    if not path_steps or min(path_steps) < 1:
        raise InputError(f"path_steps={path_steps!r} has no path: give numbers of steps, as (1, 2, 4, 8).")
    if top < 1:
        raise InputError(f"top={top} is no number of components: give 1 or more.")
    if sample is not None and sample < 2:
        raise InputError(f"sample={sample} has no correlation: give 2 components or more.")
    engine = ScoreEngine(
        model_before,
        model_after,
        reward=reward,
        answer_tokens=answer_tokens,
        baseline=baseline,
        batch_size=batch_size,
        progress=progress,
    )
    prompts = list(as_prompts(prompts))  # they are read several times
    linear = engine.score(prompts)
    by_steps = {
        k: linear if k == 1 else engine.like(path_steps=k).score(prompts) for k in sorted(set(path_steps))
    }
    surrogate, exact = (
        engine.like(upstream=upstream, propagation="gradient").score(prompts)
        for upstream in ("surrogate", "exact")
    )
    fast = {"linear": linear, "surrogate": surrogate, "exact": exact, "path": by_steps[max(by_steps)]}
    weights = None if sample is None else _drawn(fast, sample, seed)
    components = None if weights is None else linear.components("informative")[weights > 0]
    causal = intervened(
        engine.pair,
        prompts,
        components=components,
        reward=engine.reward,
        baseline=baseline,
        memory=memory,
        progress=progress,
    )
    error = {k: float(abs(s.completeness).mean()) for k, s in by_steps.items()}
    return Fidelity(**fast, causal=causal, path_error=error, top=top, weights=weights)


def _drawn(
    fast: Mapping[str, ExtractiveScores], sample: int, seed: int
) -> Float[np.ndarray, " component"] | None:
    """How many components each one of a sample stands for; `None` if it has all of them."""
    strength = [
        abs(component_totals(fast[_FROM.get(estimate, estimate)], name).mean(0))
        for name, estimates in ESTIMATES.items()
        for estimate in estimates
    ]
    n = len(strength[0])
    if sample >= n:
        return None
    in_turn = np.argsort(-np.stack(strength), axis=1, kind="stable").T.ravel()
    strongest = [*dict.fromkeys(in_turn.tolist())][: sample // 2]
    others = np.setdiff1d(np.arange(n), strongest)
    drawn = np.random.default_rng(seed).choice(others, sample - len(strongest), replace=False)
    weights = np.zeros(n)
    weights[strongest] = 1
    weights[drawn] = len(others) / len(drawn)
    return weights


def _agreement(
    fast: np.ndarray, caused: np.ndarray, weights: np.ndarray, top: int, floor: float
) -> dict[str, float]:
    """How two arrays [prompt, component] agree; what is not defined is NaN."""
    x, y = (np.where(abs(means) < floor, 0.0, means) for means in (fast.mean(0), caused.mean(0)))
    k = max(1, min(top, len(x) // 2))
    strongest = [set(np.argsort(-values, kind="stable")[:k]) for values in (x, y)]
    return {
        "n": len(x),
        "r": _correlation(x, y, weights),
        "rho": _correlation(_ranked(x, weights), _ranked(y, weights), weights),
        "r by prompt": _correlation(fast.ravel(), caused.ravel(), np.tile(weights, len(fast))),
        "slope": float((weights * x) @ y / ((weights * x) @ x)) if x.any() else float("nan"),
        "top": k,
        "of them in both": len(strongest[0] & strongest[1]) / k,
    }


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Pearson's r, of pairs that count as often as their weights say."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    (of_x, of_both), (_, of_y) = np.cov(x, y, aweights=weights)
    return float(of_both / np.sqrt(of_x * of_y))


def _ranked(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How much weight is below each value, equals half."""
    below = (values[:, None] > values) + 0.5 * (values[:, None] == values)
    return below @ weights


def _cheapest_of_the_best(r: Mapping[str, float]) -> str:
    """The first estimate, which costs least, unless a later one agrees noticeably better."""
    known = {estimate: value if np.isfinite(value) else -1.0 for estimate, value in r.items()}
    return next(estimate for estimate, value in known.items() if value >= max(known.values()) - 0.02)


def _use(r: float, slope: float, best: str, among: Mapping[str, float]) -> str:
    form = f" in the {best} form" if len(among) > 1 else ""
    if not np.isfinite(r):
        return "cannot be judged, as they do not vary"
    if r < _ORDER_HOLDS:
        return "are not to be trusted here: use causal scores"
    if r < _SIZES_HOLD:
        return f"tell the strongest components{form}, but not how strong they are"
    return f"can be used{form}; what they stand for is {slope:.2f} times as large"
