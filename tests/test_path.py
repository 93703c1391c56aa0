"""Informative scores along the path from W to W': they sum to the whole change of the reward."""

import numpy as np
import pytest
from helpers.comparisons import assert_same, of, scored
from helpers.oracle import reward_of
from helpers.tiny import (
    PROMPTS,
    SHAPES,
    double_throughout,
    hooked,
    hooked_pair,
    mix,
    plain_pair,
    single_pair,
)

from ecstruct.models.delta import WeightDelta
from ecstruct.scores import score
from ecstruct.scores.informative import path_nodes


def test_nodes_integrate_polynomials_exactly():
    for k in (1, 2, 5):
        nodes = path_nodes(k)
        assert len(nodes) == k
        for degree in range(2 * k):
            assert sum(w * a**degree for a, w in nodes) == pytest.approx(1 / (degree + 1), rel=1e-12)


@pytest.mark.parametrize(
    ("family", "convention"), [*((family, "definition") for family in SHAPES), ("gpt2", "reference")]
)
def test_they_sum_to_the_change_of_the_reward(family, convention):
    """The change is that of plain models; the error falls fast with the number of nodes, but for the clip,
    whose kinks no polynomial follows."""
    plain = plain_pair(family)
    with double_throughout():
        rewards = [[float(reward_of(model, p).detach()) for p in PROMPTS] for model in plain]
        change = np.array(rewards[1]) - np.array(rewards[0])
        many, left_of_it = (12, 0.03) if family == "olmo-clip" else (6, 1e-4)
        errors = []
        for k in (1, 2, many):
            scores = scored(family, convention=convention, path_steps=k)
            sums = of(scores, "informative").sum((1, 2)) + of(scores, "informative", "heads").sum((1, 2, 3))
            left = sums + scores.rest.values.sum(1) - change
            np.testing.assert_allclose(scores.completeness.values, left, rtol=0, atol=1e-12)
            errors.append(np.abs(left).max())
    assert errors[0] > 0.01 and errors[1] < errors[0] / 3
    assert errors[2] < left_of_it * errors[0]


@pytest.mark.parametrize("family", ["olmo-clip", "gemma2"])
def test_they_are_the_weighted_scores_of_points_on_the_path(family):
    """Linear scores of models that are really at these points, towards W'."""
    before, after = plain_pair(family)
    delta = WeightDelta.between(*hooked_pair(family))
    with double_throughout():
        scores = scored(family, path_steps=2)
        there = []
        for a, share in path_nodes(2):
            here = hooked(mix(before, after, a))
            there.append((share, score(here, delta, PROMPTS, progress=False)))
        for part in ("mlp", "heads"):
            expected = sum(share * of(at, "informative", part) for share, at in there)
            assert_same(of(scores, "informative", part), expected)
        for other in ("upstream", "downstream"):
            np.testing.assert_array_equal(of(scores, other), of(scored(family), other))


def test_batches_change_nothing():
    pair = single_pair("llama")
    expected = score(*pair, PROMPTS, path_steps=3, batch_size=1, progress=False)
    found = score(*pair, PROMPTS, path_steps=3, progress=False)
    for part in ("mlp", "heads"):
        assert_same(of(found, "informative", part), of(expected, "informative", part), 1e-5)
    assert found.attrs["options"]["path_steps"] == 3
