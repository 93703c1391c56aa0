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

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ecstruct.checks.agreement import ESTIMATES, FORM_OF, Fidelity
from ecstruct.cost import Bar
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.io.store import Kept, Steps
from ecstruct.scores.baseline import BaselineKind
from ecstruct.scores.causal import check_memory, intervened
from ecstruct.scores.components import component_names
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.pair import ModelAfter, ModelBefore
from ecstruct.scores.result import ExtractiveScores, component_totals
from ecstruct.scores.reward import AnswerTokens, RewardLike


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
    engine = ScoreEngine(
        model_before,
        model_after,
        reward=reward,
        answer_tokens=answer_tokens,
        baseline=baseline,
        batch_size=batch_size,
        progress=False,
    )
    options = {"path_steps": path_steps, "top": top, "sample": sample, "seed": seed, "memory": memory}
    return fidelity_of(engine, prompts, **options, progress=progress)


def fidelity_of(
    engine: ScoreEngine,
    prompts: PromptsLike,
    *,
    path_steps: Sequence[int] = (1, 2, 4, 8),
    top: int = 5,
    sample: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> Fidelity:
    """`fidelity` of an engine's models. What is finished is kept in `folder`, if there is one, and not
    computed again."""
    if not path_steps or min(path_steps) < 1:
        raise InputError(f"path_steps={path_steps!r} has no path: give numbers of steps, as (1, 2, 4, 8).")
    if top < 1:
        raise InputError(f"top={top} is no number of components: give 1 or more.")
    if sample is not None and sample < 2:
        raise InputError(f"sample={sample} has no correlation: give 2 components or more.")
    prompts = as_prompts(prompts)  # they are read several times
    check_memory(engine.pair, engine.pair.tokenize(prompts, engine.reward)[0], memory)
    identity = {**engine.identity(prompts), "path steps": str(path_steps), "sample": f"{sample} by {seed}"}
    kept, n_layers = Kept(folder, identity), engine.pair.view.n_layers
    of_path = [k for k in sorted({*path_steps}) if k > 1]
    passes = {"linear": 6, **{f"path {k}": 6 + 4 * k for k in of_path}, "surrogate": 5}
    passes |= {"exact": 6 + 2 * n_layers}
    n_components = n_layers * (1 + engine.pair.view.n_heads)
    total = sum(passes.values()) + 2 * min(sample or n_components, n_components)
    with Bar(total, "fidelity", unit="run", disable=not progress) as bar:
        steps = Steps(bar, kept)

        def step(name: str, cost: int, measure: Callable[[], ExtractiveScores]) -> ExtractiveScores:
            bar.phase(name)
            return ExtractiveScores(steps.take(name, lambda: measure().dataset, cost))

        forms = {
            "linear": engine,
            **{f"path {k}": engine.like(path_steps=k) for k in of_path},
            **{way: engine.like(upstream=way, propagation="gradient") for way in ("surrogate", "exact")},
        }
        fast = {
            name: step(name, passes[name], partial(form.score, prompts)) for name, form in forms.items()
        }
        by_steps = {k: fast["linear" if k == 1 else f"path {k}"] for k in sorted({*path_steps})}
        parts = {way: fast[way] for way in ("linear", "surrogate", "exact")}
        parts |= {"path": by_steps[max(by_steps)]}
        weights = None if sample is None else _drawn(parts, sample, seed)
        rows = fast["linear"].components("informative")
        chosen = slice(None) if weights is None else weights > 0
        by_layer: dict[int, list[str]] = {}
        for name, layer in zip(np.array(component_names(rows))[chosen], rows["layer"][chosen], strict=True):
            by_layer.setdefault(layer, []).append(name)
        pieces = []
        for layer, names in sorted(by_layer.items()):
            measure = partial(
                intervened,
                engine.pair,
                prompts,
                components=names,
                reward=engine.reward,
                baseline=engine.baseline,
                memory=memory,
                progress=False,
            )
            pieces.append(step(f"interventions in layer {layer}", 2 * len(names), measure))
    error = {k: float(abs(s.completeness).mean()) for k, s in by_steps.items()}
    return Fidelity(
        **parts, causal=_joined(pieces, whole=weights is None), path_error=error, top=top, weights=weights
    )


def _joined(pieces: Sequence[ExtractiveScores], whole: bool) -> ExtractiveScores:
    """Causal scores of some components each, as those of all of these; `whole` if there are no others."""
    joined = pieces[0].dataset.copy(deep=True)
    for piece in pieces[1:]:
        for part in ("mlp", "heads"):
            joined[part] = joined[part].fillna(piece.dataset[part])
    n = None if whole else sum(piece.attrs["options"]["components"] for piece in pieces)
    joined.attrs["options"] = {**joined.attrs["options"], "components": n}
    return ExtractiveScores(joined)


def _drawn(
    fast: Mapping[str, ExtractiveScores], sample: int, seed: int
) -> Float[np.ndarray, " component"] | None:
    """How many components each one of a sample stands for; `None` if it has all of them."""
    strength = [
        abs(component_totals(fast[FORM_OF.get(estimate, estimate)], name).mean(0))
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
