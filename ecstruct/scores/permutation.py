"""Permutation tests: is a component's score above its score under a control, by more than chance?

The control is another set of scores of the same components: for a random weight change of the same
norm, or on prompts unrelated to the finetuning. Under the null hypothesis, the scores and the control's
are exchangeable, so exchanging them gives differences like the observed one, d. The p-value is how often
the differences d* of permutations are at least as large:

    d = mean over prompts of the score - mean over prompts of the control's
    p = (1 + number of permutations with d* >= d) / (1 + number of permutations)

Two sets on the same prompts are compared in pairs: a permutation exchanges the two numbers of some
prompts, which flips the signs of their differences. Otherwise it reassigns all prompts to the two sets.

With many components, some are above the control by chance. `p_adjusted` (Westfall and Young) is how
often the *largest* d* of all components is at least d, each in units of its own spread: the root
mean square of its differences, or its standard deviation over both sets together. Permutations do not
change the spread, so it orders the d* of a component as Student's t would. All components are
permuted together, so any dependence between them is allowed: the probability that any
component that is not above its control has p_adjusted <= 0.05 is at most 5%.
"""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int64
from scipy.stats import rankdata

from ecstruct.errors import InputError
from ecstruct.io.values import bounded
from ecstruct.scores.result import ExtractiveScores, component_totals

_ROUNDING = 1e-12
"""Differences closer than this, in units of their spread, count as equal."""

_AT_ONCE = 2**22
"""The number of differences held in memory at a time: 32 MiB."""


@bounded
def above_control(
    scores: ExtractiveScores,
    control: ExtractiveScores,
    score: str,
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Test for each component whether one of its scores is above the control's; one-sided.

    The test compares a component's sums over tokens, one per prompt. If both sets have the same texts in
    the same order, they are compared in pairs, otherwise as two independent samples. If there are no
    more than `permutations` different permutations, each is used once: p is then exact, and because
    the identity is one of them, nothing is added to the counts. For n pairs there are 2^n, so that p
    cannot be below 1/4 for two prompts.

    The test generalises over prompts: a small p says that the difference would hold on other prompts like
    these, against this control. How much controls vary takes several of them to tell.

    Args:
        scores: The scores to test.
        control: Scores of the same components.
        score: The name of the score, such as "informative".
        permutations: The number of permutations to draw.
        seed: The same seed draws the same permutations.

    Returns:
        One row per component, in the order of `ExtractiveScores.components`: `kind`, `layer`,
        `head` (missing for an MLP), the means `value` and `control` and their `difference`, in the
        unit of the reward, `p`, and `p_adjusted` for the number of components. Components that lack
        scores in one of the sets (NaN on every prompt) are not tested. The frame's `.attrs` say
        whether the test was `paired` and `exact`, and how many `permutations` it used.

    Raises:
        InputError: components or rewards differ, the score is unknown, there are fewer than two prompts,
            scores are not finite, or `permutations` is below 1.
    """
    if permutations < 1:
        raise InputError(f"permutations={permutations} give no p-value; draw 1 or more, as in 10000")
    _require_comparable(scores, control)
    ours, theirs = component_totals(scores, score), component_totals(control, score)
    tested = ~(np.isnan(ours).all(axis=0) | np.isnan(theirs).all(axis=0))
    for name, one, totals in (("scores", scores, ours), ("control", control, theirs)):
        _require_numbers(totals[:, tested], name, one.dataset["text"].values)

    paired = np.array_equal(scores.dataset["text"].values, control.dataset["text"].values)
    if paired:
        numbers, weights = ours - theirs, np.full(len(ours), 1 / len(ours))
    else:
        numbers = np.concatenate([ours, theirs])
        numbers -= numbers[0].copy()  # before the mean, so that equal numbers become exact zeros
        numbers -= numbers.mean(axis=0)
        weights = np.repeat([1 / len(ours), -1 / len(theirs)], [len(ours), len(theirs)])
    permuted, exact = _permuted_weights(
        weights, len(ours), paired, permutations, np.random.default_rng(seed)
    )
    at_least, largest_at_least = _counts(numbers[:, tested], weights, permuted)
    added = 0 if exact else 1

    frame = scores.components(score).assign(
        control=theirs.mean(axis=0),
        difference=ours.mean(axis=0) - theirs.mean(axis=0),
        p=np.nan,
        p_adjusted=np.nan,
    )
    frame.loc[tested, "p"] = (at_least + added) / (len(permuted) + added)
    frame.loc[tested, "p_adjusted"] = (largest_at_least + added) / (len(permuted) + added)
    frame.attrs = {"paired": paired, "exact": exact, "permutations": len(permuted)}
    return frame


def _counts(
    numbers: Float64[np.ndarray, "number component"],
    weights: Float64[np.ndarray, " number"],
    permuted: Float64[np.ndarray, "permutation number"],
) -> tuple[Int64[np.ndarray, " component"], Int64[np.ndarray, " component"]]:
    """Count, for every component, the permutations in which its d*, and in which the largest d* of all
    components, is at least its d. A component's d is `weights` @ `numbers`."""
    spread = np.sqrt((numbers**2).mean(axis=0))
    numbers = numbers / np.where(spread > 0, spread, 1.0)
    seen = weights @ numbers - _ROUNDING
    at_least, largest = np.zeros(len(seen), dtype=int), []
    for some in np.array_split(permuted, 1 + len(permuted) * len(seen) // _AT_ONCE):
        null = some @ numbers
        at_least += (null >= seen).sum(axis=0)
        largest.append(null.max(axis=1))
    return at_least, len(permuted) - np.searchsorted(np.sort(np.concatenate(largest)), seen)


def _permuted_weights(
    weights: Float64[np.ndarray, " number"],
    n_ours: int,
    paired: bool,
    permutations: int,
    rng: np.random.Generator,
) -> tuple[Float64[np.ndarray, "permutation number"], bool]:
    """Return a row of permuted weights per permutation, and whether these are all possible permutations.

    Every d is a weighted sum of a component's numbers: the weight is 1/n for each of n paired differences,
    whose signs are flipped, and 1/n or -1/m for the n scores and m scores of the control, which are
    exchanged. Permuting the weights, not the scores of all components, makes each permutation a row of one
    matrix product: 0.1 s for 20 pairs and 1000 components, where scipy.stats.permutation_test takes 4 s.
    That function does not promise to permute all components together, either.
    """
    n = len(weights)
    if paired:
        if 2**n <= permutations:
            return weights * list(product([1, -1], repeat=n)), True
        return weights * rng.choice([1, -1], (permutations, n)), False
    if comb(n, n_ours) <= permutations:
        every = np.full((comb(n, n_ours), n), weights[-1])
        np.put_along_axis(every, np.array(list(combinations(range(n), n_ours))), weights[0], axis=1)
        return every, True
    return rng.permuted(np.tile(weights, (permutations, 1)), axis=1), False


def _require_numbers(totals: Float64[np.ndarray, "prompt component"], name: str, texts: np.ndarray) -> None:
    if len(totals) < 2:
        raise InputError(
            f"there is {len(totals)} prompt in the {name}; a test over prompts needs 2 or more"
        )
    if not totals.size:
        raise InputError("no component has a score in both; score the same components for the control")
    if (odd := np.flatnonzero(~np.isfinite(totals).all(axis=1))).size:
        text = str(texts[odd[0]])
        raise InputError(f"not all numbers of the {name} are finite on the prompt {text!r}; leave it out")


def _require_comparable(scores: ExtractiveScores, control: ExtractiveScores) -> None:
    for name in ("layer", "head"):
        ours, theirs = (one.dataset[name].values.tolist() for one in (scores, control))
        if ours != theirs:
            raise InputError(
                f"the scores have the {name}s {ours} and the control {theirs}; the control must be of the "
                "same components"
            )
    rewards = [(one.attrs.get("options") or {}).get("reward") for one in (scores, control)]
    if None not in rewards and rewards[0] != rewards[1]:
        raise InputError(
            f"the scores are of the reward {rewards[0]!r} and the control of {rewards[1]!r}; score both "
            "with one"
        )


def rank_correlation(
    x: Float[np.ndarray, " point"], y: Float[np.ndarray, " point"], permutations: int, seed: int
) -> tuple[float, float]:
    """Return Spearman's rho of x and y, and its two-sided p: (1 + number of permutations of y whose rho is
    at least as far from 0) / (1 + number of permutations). Both are NaN if x or y is constant."""
    a, b = (ranks - ranks.mean() for ranks in (rankdata(x), rankdata(y)))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    if not scale:
        return float("nan"), float("nan")
    rho = float(a @ b) / scale
    permuted = np.random.default_rng(seed).permuted(np.tile(b, (permutations, 1)), axis=1) @ a / scale
    as_far = int((np.abs(permuted) >= abs(rho) - _ROUNDING).sum())
    return rho, (1 + as_far) / (1 + permutations)
