"""How far the fast scores can be trusted: a comparison of each with the intervention that it estimates.

For every component, the mean over prompts of the fast score (summed over tokens) is compared with that of
the causal score. Fast scores are the default of `ecstruct.score`, and those `forms` that are asked for:

* `"path"`: informative scores along the path from W to W', with every number of `path_steps`;
* `"surrogate"`: upstream scores by gradients, with g' under all new weights, as in the paper;
* `"exact"`: the same with only late weights new.

Per score and kind of component, the result has Pearson's r and Spearman's rho over components, r over pairs
of prompt and component, the slope of the causal score on the fast one (1: sizes are right; 0.5: fast scores
are twice too large), and the share of the strongest components that both have.

Every intervention costs a run of the model, so only a `sample` of the components gets one: the strongest by
each fast score, and others drawn at random. Drawn components are weighted to represent those not drawn, so
that correlations and slopes estimate those over all components. The interval of r is a bootstrap over
prompts, and over the components that were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from ecstruct.checks.agreement import ESTIMATES, Fidelity
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.io.store import FinishedPieces, stepping
from ecstruct.options import (
    AnswerTokens,
    BaselineKind,
    BaselineOptions,
    CausalOptions,
    FidelityOptions,
    Form,
    ScoreOptions,
)
from ecstruct.scores.assemble import SCORES
from ecstruct.scores.causal import check_memory, intervened
from ecstruct.scores.components import component_names
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.pair import ModelAfter, ModelBefore
from ecstruct.scores.result import ExtractiveScores, component_totals
from ecstruct.scores.reward import RewardLike

_AT_ONCE = 24


def fidelity(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    *,
    reward: RewardLike = "logit_diff",
    answer_tokens: AnswerTokens = "first",
    baseline: BaselineKind = "counterfactual",
    forms: Sequence[Form] = (),
    path_steps: Sequence[int] = (1, 2, 4, 8),
    top: int = 5,
    sample: int | None = 12,
    seed: int = 0,
    batch_size: int | None = None,
    memory: int | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> Fidelity:
    """Compare fast scores with causal ones; see `ecstruct.checks.against_causal`.

    Args:
        before, after, prompts, reward, answer_tokens, baseline: as for `ecstruct.score`.
        forms: other forms of the scores, `"path"`, `"surrogate"` and `"exact"`, to compare with
            interventions too.
        path_steps: for `"path"`, the numbers of steps whose error is reported; the largest gives the
            scores.
        top: how many components count as the strongest.
        sample: how many components to intervene on: half of them the strongest by each fast score, the
            others drawn at random with `seed`. `None` for all.
        batch_size: as for `ecstruct.score`.
        memory: as for `ecstruct.causal_scores`.
        folder: where finished parts are kept; what is found there is not computed again. Delete it once
            the result is safe.
        progress: show progress bars.

    Raises:
        InputError: an option is unusable, or the folder holds parts of another run or is combined with a
            function as the reward; also as `ecstruct.causal_scores`.
    """
    options = FidelityOptions.given(locals())
    measured = vars(BaselineOptions.given(locals()))
    scored = ScoreOptions(**measured, batch_size=options.batch_size)
    engine = ScoreEngine(before, after, scored, progress=False)
    if folder is not None:
        engine.reward.check_is_known_by_name()
    prompts = as_prompts(prompts)  # they are read several times
    check_memory(engine.pair, engine.pair.tokenize(prompts, engine.reward)[0], options.memory)
    identity = engine.identity(prompts) | options.identity() | {"forms": str(sorted(forms))}
    kept, n_layers = FinishedPieces(folder, identity), engine.pair.view.n_layers
    engines, passes = {"linear": engine}, {"linear": 6}
    of_path = [k for k in sorted({*options.path_steps}) if k > 1] if "path" in forms else []
    for k in of_path:
        engines[f"path {k}"], passes[f"path {k}"] = engine.like(path_steps=k), 6 + 4 * k
    for way, cost in {"surrogate": 5, "exact": 6 + 2 * n_layers}.items():
        if way in forms:
            engines[way], passes[way] = engine.like(upstream=way, propagation="gradient"), cost
    n_components = n_layers * (1 + engine.pair.view.n_heads)
    total = sum(passes.values()) + 2 * min(sample or n_components, n_components)
    with stepping(progress, total, "fidelity", kept) as steps:

        def step(name: str, cost: int, measure: Callable[[], ExtractiveScores]) -> ExtractiveScores:
            steps.bar.phase(name)
            return ExtractiveScores(steps.take(name, lambda: measure().dataset, cost))

        ascent = None

        def linear() -> ExtractiveScores:
            nonlocal ascent
            scores, ascent = engine.score_and_ascent(prompts)
            return scores

        measures = {name: partial(of.score, prompts) for name, of in engines.items()} | {"linear": linear}
        fast = {name: step(name, passes[name], measure) for name, measure in measures.items()}
        by_steps = {1: fast["linear"], **{k: fast.pop(f"path {k}") for k in of_path}}
        if "path" in forms:
            fast["path"] = by_steps[max(options.path_steps)]
        weights = None if sample is None else _drawn(fast, sample, options.seed)
        pieces = []
        for i, names in enumerate(_in_pieces(fast["linear"].components("informative"), weights)):
            measure = partial(
                intervened,
                *(engine.pair, prompts, CausalOptions.given(vars(options))),
                components=names,
                ascent=ascent,
                progress=False,
            )
            pieces.append(step(f"interventions {i + 1}", 2 * len(names), measure))
    error = {k: float(abs(s.completeness).mean()) for k, s in by_steps.items()}
    return Fidelity(fast, _joined(pieces, whole=weights is None), error, options.top, weights)


def _in_pieces(components: pd.DataFrame, weights: np.ndarray | None) -> list[list[str]]:
    """Split the names of sampled components, by layer, into pieces of `_AT_ONCE` or somewhat more: every
    piece costs two runs of the model in addition to its interventions."""
    chosen = components if weights is None else components.loc[weights > 0]
    by_layer = chosen.assign(name=component_names(chosen)).groupby("layer")["name"]
    pieces: list[list[str]] = [[]]
    for _, names in by_layer:
        if len(pieces[-1]) >= _AT_ONCE:
            pieces.append([])
        pieces[-1] += names.tolist()
    return pieces


def _joined(pieces: Sequence[ExtractiveScores], whole: bool) -> ExtractiveScores:
    """Merge causal scores of different components; `whole` says that together these are all components."""
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
    """Draw a sample; return how many components each one represents, `None` if the sample has them all."""
    strength = [
        abs(component_totals(scores, name).mean(0))
        for way, scores in fast.items()
        for name in SCORES
        if way == "linear" or way in ESTIMATES[name]
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
