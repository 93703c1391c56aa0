"""P-values of differences from control prompts against enumeration, scipy, and what they promise."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from helpers.synthetic_scores import ENTITIES, make_scores, prompts_of, scores_of
from scipy import stats

from ecstruct.errors import InputError
from ecstruct.scores.permutation import above_control
from ecstruct.scores.result import ExtractiveScores


def students_t(ours: np.ndarray, theirs: np.ndarray, paired: bool) -> np.ndarray:
    test = stats.ttest_rel(ours, theirs) if paired else stats.ttest_ind(ours, theirs)
    return np.asarray(test.statistic)


def enumerated(ours: np.ndarray, theirs: np.ndarray, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """p and Westfall and Young's p of Student's t over every permutation, one at a time."""
    seen, null = students_t(ours, theirs, paired), []
    both = np.concatenate([ours, theirs])
    if paired:
        for swapped in product([False, True], repeat=len(ours)):
            turn = np.array(swapped)[:, None]
            null.append(students_t(np.where(turn, theirs, ours), np.where(turn, ours, theirs), paired))
    else:
        for chosen in combinations(range(len(both)), len(ours)):
            null.append(students_t(both[list(chosen)], np.delete(both, chosen, axis=0), paired))
    largest = np.max(null, axis=1, keepdims=True)
    return (np.array(null) >= seen - 1e-9).mean(0), (largest >= seen - 1e-9).mean(0)


@pytest.mark.parametrize(("paired", "sizes"), [(True, (7, 7)), (False, (4, 5)), (False, (5, 3))])
def test_p_values_against_full_enumeration(paired: bool, sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    # Components of very different spread, all of them correlated.
    scale = np.array([1e-3, 1.0, 1.0, 50.0])
    ours, theirs = ((rng.normal(size=(n, 4)) + rng.normal(size=(n, 1))) * scale for n in sizes)
    ours += scale * [2, 1, 0, 0.5]
    control = scores_of(theirs, "asked" if paired else "unrelated")
    frame = above_control(scores_of(ours), control, "upstream")[:4]
    heads = above_control(scores_of(ours), control, "upstream")[4:]
    p, _ = enumerated(ours, theirs, paired)
    # The heads are minus the MLPs: they are part of the maximum.
    _, adjusted = enumerated(np.hstack([ours, -ours]), np.hstack([theirs, -theirs]), paired)
    np.testing.assert_allclose(frame["p"], p, rtol=1e-12)
    np.testing.assert_allclose([*frame["p_adjusted"], *heads["p_adjusted"]], adjusted, rtol=1e-12)
    assert frame.attrs == {
        "paired": paired,
        "exact": True,
        "permutations": {(7, 7): 128, (4, 5): 126, (5, 3): 56}[sizes],
    }
    np.testing.assert_allclose(frame["difference"], ours.mean(0) - theirs.mean(0), rtol=1e-12)


@pytest.mark.parametrize("paired", [True, False])
def test_p_values_against_scipy(paired: bool) -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=(2, 16, 5))
    ours += [0, 0.2, 0.4, 0.6, -0.5]
    control = scores_of(theirs, "asked" if paired else "unrelated")
    frame = above_control(scores_of(ours), control, "downstream")[:5]
    assert frame.attrs == {"paired": paired, "exact": False, "permutations": 10_000}

    def mean_difference(*groups: np.ndarray, axis: int) -> np.ndarray:
        means = [group.mean(axis=axis) for group in groups]
        return means[0] - (0 if paired else means[1])

    expected = stats.permutation_test(
        (ours - theirs,) if paired else (ours, theirs),
        mean_difference,
        permutation_type="samples" if paired else "independent",
        n_resamples=65_536 if paired else 20_000,  # all of the paired ones
        batch=5000,
        vectorized=True,
        alternative="greater",
        axis=0,
    ).pvalue
    error = np.sqrt(expected * (1 - expected) * (1 / 10_000 + (0 if paired else 1 / 20_000)))
    assert (abs(frame["p"] - expected) < 4.5 * error + 1e-4).all()


@pytest.mark.parametrize("paired", [True, False])
def test_p_values_without_an_effect_are_uniform(paired: bool) -> None:
    rng = np.random.default_rng(0)
    # Skewed, and in pairs with a large part in common.
    ours, theirs = rng.exponential(size=(2, 20, 400)) + paired * 5 * rng.normal(size=(20, 400))
    control = scores_of(theirs, "asked" if paired else "unrelated")
    frame = above_control(scores_of(ours), control, "upstream", permutations=999)[:400]
    assert stats.kstest(frame["p"], "uniform").pvalue > 0.01
    assert frame["p"].min() >= 1 / 1000
    assert (frame["p_adjusted"] >= frame["p"]).all()


def test_adjusted_p_values_keep_the_errors_of_a_whole_family() -> None:
    """In one of twenty sets of components without effect, and no more, any p_adjusted is 0.05 or less."""
    rng = np.random.default_rng(0)
    smallest = []
    for _ in range(200):
        ours, theirs = (rng.normal(size=(8, 12)) + rng.normal(size=(8, 1)) for _ in range(2))
        smallest.append(above_control(scores_of(ours), scores_of(theirs), "upstream")["p_adjusted"].min())
    rate = np.mean(np.array(smallest) <= 0.05)
    assert abs(rate - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("paired", [True, False])
def test_a_planted_effect_is_found(paired: bool) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(20, 30)), rng.normal(size=(20, 30))
    ours[:, 4] += 3
    ours[:, 5] -= 3
    # Neither is it lost beside a component that varies a thousand times as much.
    ours[:, 6] *= 1000
    frame = above_control(
        scores_of(ours), scores_of(theirs, "asked" if paired else "unrelated"), "informative"
    )
    # MLP 4, and the head of layer 5, which is the opposite of its MLP.
    assert np.flatnonzero(frame["p_adjusted"] < 0.01).tolist() == [4, 30 + 5]
    assert frame["p"][[5, 34]].min() > 0.99


def test_rows_are_the_components_in_order() -> None:
    scores = make_scores()
    control = make_scores(seed=1)
    frame = above_control(scores, control, "upstream")
    assert list(frame) == ["kind", "layer", "head", "value", "control", "difference", "p", "p_adjusted"]
    assert frame[["kind", "layer", "head", "value"]].equals(scores.components("upstream"))
    np.testing.assert_array_equal(frame["control"], control.components("upstream")["value"])
    many, fewer = make_scores(prompts_of(ENTITIES * 10)), make_scores(prompts_of(ENTITIES * 6), seed=1)
    one = above_control(many, fewer, "upstream", permutations=50)
    assert one.equals(above_control(many, fewer, "upstream", permutations=50))
    assert not one.equals(above_control(many, fewer, "upstream", permutations=50, seed=1))
    assert one.attrs == {"paired": False, "exact": False, "permutations": 50}


@pytest.mark.parametrize("named", ["asked", "unrelated"])
def test_no_difference_at_all(named: str) -> None:
    values = np.full((6, 3), 0.1)
    values[:, 1] = np.arange(6)
    frame = above_control(scores_of(values), scores_of(values, named), "upstream")
    assert (frame["difference"] == 0).all()
    assert (frame["p"][[0, 2, 3, 5]] == 1).all()
    assert (frame["p_adjusted"][[0, 2, 3, 5]] == 1).all()
    assert (frame["p"][[1, 4]] >= 0.5).all()


def test_components_that_were_not_scored_are_not_tested() -> None:
    scores = make_scores()
    control = make_scores(seed=1)
    some = [one.dataset.copy(deep=True) for one in (scores, control)]
    for dataset in some:
        dataset["heads"][:, :, 0] = np.nan  # as of `causal_scores(components=...)`
    some[1]["mlp"][:, :, 1] = np.nan
    frame = above_control(*map(ExtractiveScores, some), "upstream")
    whole = above_control(scores, control, "upstream")
    missing = np.array([False, True, True, True, True, False, False, False])
    assert (frame[["difference", "p", "p_adjusted"]].isna().to_numpy() == missing[:, None]).all()
    assert frame["p"][~missing].equals(whole["p"][~missing])
    assert (frame["p_adjusted"] <= whole["p_adjusted"])[~missing].all()
    none = scores.dataset.where(False)
    with pytest.raises(InputError, match="no component has a score in both"):
        above_control(ExtractiveScores(none), control, "upstream")


def test_tests_that_cannot_be_made() -> None:
    scores = make_scores()
    with pytest.raises(InputError, match=r"heads \[0, 1, 2\] and the control \[0, 1\].*same components"):
        above_control(scores, make_scores(n_heads=2), "upstream")
    with pytest.raises(InputError, match=r"layers \[0, 1\] and the control \[0, 1, 2\]"):
        above_control(scores, make_scores(n_layers=3), "upstream")
    with pytest.raises(InputError, match="score='midstream' is not among"):
        above_control(scores, scores, "midstream")
    single = make_scores(prompts_of(ENTITIES[:1]))
    with pytest.raises(InputError, match=r"1 prompt in the scores; .* needs 2"):
        above_control(single, scores, "upstream")
    with pytest.raises(InputError, match="1 prompt in the control"):
        above_control(scores, single, "upstream")
    with pytest.raises(InputError, match="permutations=0"):
        above_control(scores, scores, "upstream", permutations=0)
    broken = scores.dataset.copy(deep=True)
    broken["heads"][1, 2] = np.nan
    with pytest.raises(
        InputError, match="not all numbers of the control are finite on the prompt 'TheĠcityĠCher"
    ):
        above_control(scores, ExtractiveScores(broken), "upstream")
