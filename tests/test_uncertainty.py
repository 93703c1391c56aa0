"""Intervals and p-values against enumeration, scipy, and what they promise."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from synthetic_scores import ENTITIES, make_scores, prompts_of

from ecstruct.errors import InputError
from ecstruct.scores import bootstrap
from ecstruct.scores.permutation import above_control
from ecstruct.scores.result import ExtractiveScores


@pytest.fixture
def scores() -> ExtractiveScores:
    return make_scores()


def scores_of(values: np.ndarray, named: str = "asked") -> ExtractiveScores:
    """Prompts whose MLPs have the scores `values` [prompt, layer], and heads that have minus these."""
    n_prompts, n_layers = values.shape
    scores = ["informative", "upstream", "downstream"]
    return ExtractiveScores(
        xr.Dataset(
            {
                "mlp": (("score", "prompt", "layer"), np.stack([values] * 3)),
                "heads": (("score", "prompt", "layer", "head"), np.stack([-values[..., None]] * 3)),
            },
            {
                "score": scores,
                "layer": np.arange(n_layers),
                "head": [0],
                "text": ("prompt", [f"{named} {i}" for i in range(n_prompts)]),
            },
        )
    )


# --- intervals


def test_intervals_of_two_and_three_prompts_by_hand() -> None:
    # Of two prompts, a quarter of the draws have the mean 0, a quarter 1, and half of them 1/2.
    two = scores_of(np.array([[0.0], [1.0]]))
    assert two.components("upstream", ci=0.95)[["low", "high"]].values.tolist() == [[0, 1], [-1, 0]]
    assert two.components("upstream", ci=0.4)[["low", "high"]].values.tolist() == [[0.5, 0.5], [-0.5, -0.5]]
    # Of three, 1/27 of the draws are (0, 0, 0) and 3/27 (0, 0, 1); 3/27 (1, 10, 10) and 1/27 (10, 10, 10).
    three = scores_of(np.array([[0.0], [1.0], [10.0]])).components("upstream", ci=0.9, resamples=5000)
    np.testing.assert_allclose(three[["low", "high"]], [[1 / 3, 7], [-7, -1 / 3]], rtol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "heads"])
def test_a_slot_that_a_prompt_lacks(scores: ExtractiveScores, kind: str) -> None:
    """X stands in two of three prompts. A draw that takes the one u times and the other v times has the
    mean of u and v; one in 27 takes neither, and has none."""
    where = [scores.dataset[kind].values[:, 0, ..., 2], scores.dataset[kind].values[:, 1, ..., 3]]
    one, other = np.sort(np.array(where, dtype="float64"), axis=0)
    wide = scores.aggregate(ci=0.9, resamples=5000)
    np.testing.assert_allclose(wide.low[kind].sel(slot=2), one, rtol=1e-12)
    np.testing.assert_allclose(wide.high[kind].sel(slot=2), other, rtol=1e-12)
    # 7 of the other 26 have the smaller value, the next 3 are 2 : 1 of it; so are the 30%.
    narrow = scores.aggregate(ci=0.4, resamples=20_000)
    np.testing.assert_allclose(narrow.low[kind].sel(slot=2), (2 * one + other) / 3, rtol=1e-9)
    np.testing.assert_allclose(narrow.high[kind].sel(slot=2), (one + 2 * other) / 3, rtol=1e-9)


def test_a_slot_of_one_prompt_or_none_has_no_interval() -> None:
    one = make_scores(prompts_of([["a", "b"], ["c"], ["d"]])).aggregate(ci=0.95)
    none = make_scores(prompts_of([["a"], ["b"]])).aggregate(ci=0.95)
    for result, has_value in ((one, True), (none, False)):
        assert np.isfinite(result.mlp.sel(slot=2)).all() == has_value
        for ends in (result.low, result.high):
            for name in ("mlp", "heads", "attention"):
                assert np.isnan(ends[name].sel(slot=2)).all()
                assert np.isfinite(ends[name].sel(slot=[0, 1, 3, 4, 5, 6])).all()


def test_intervals_against_scipy() -> None:
    scores = make_scores(prompts_of([["a", "b"]] * 30))
    result = scores.aggregate(ci=0.9, resamples=20_000)
    total = scores.components("informative", ci=0.9, resamples=20_000)
    heads = scores.heads.values.astype("float64")
    ours = [(result.low[name].values, result.high[name].values) for name in ("mlp", "heads", "attention")]
    ours.append((total["low"].to_numpy()[2:], total["high"].to_numpy()[2:]))
    theirs = [
        np.moveaxis(scores.mlp.values, 1, -1),
        np.moveaxis(heads, 1, -1),
        np.moveaxis(heads.sum(axis=3), 1, -1),
        np.moveaxis(heads[0].sum(axis=-1), 0, -1).reshape(6, 30),
    ]
    for (low, high), values in zip(ours, theirs, strict=True):
        expected = stats.bootstrap(
            (values,),
            np.mean,
            axis=-1,
            confidence_level=0.9,
            n_resamples=20_000,
            method="percentile",
            batch=500,
        )
        # Both ends have a Monte Carlo error of 0.015 of the mean's own.
        error = values.std(axis=-1) / np.sqrt(30)
        assert (abs(low - expected.confidence_interval.low) < 0.1 * error).all()
        assert (abs(high - expected.confidence_interval.high) < 0.1 * error).all()


def test_components_share_their_draws(scores: ExtractiveScores) -> None:
    opposite = scores.dataset.copy(deep=True)
    opposite["heads"][..., 1, :] = -opposite["heads"][..., 0, :]
    result = ExtractiveScores(opposite.isel(head=[0, 1])).aggregate(ci=0.95)
    assert float((result.high["heads"] - result.low["heads"]).min()) > 0
    assert float(abs(result.low["attention"]).max()) == float(abs(result.high["attention"]).max()) == 0
    np.testing.assert_allclose(
        result.low["heads"].isel(head=0), -result.high["heads"].isel(head=1), rtol=1e-12
    )


@pytest.mark.parametrize("n_prompts", [5, 20])
def test_coverage(n_prompts: int) -> None:
    """Percentile intervals are too narrow by the factor of a standard deviation that divides by n."""
    n = 4000
    values = np.random.default_rng(0).normal(size=(n_prompts, n))
    frame = scores_of(values).components("upstream", ci=0.95)[:n]
    coverage = float(((frame["low"] <= 0) & (frame["high"] >= 0)).mean())
    expected = 1 - 2 * stats.t.sf(1.96 * np.sqrt(1 - 1 / n_prompts), n_prompts - 1)
    # Measured with 40000 values each: 0.839 of 0.846 for 5 prompts, 0.928 of 0.929 for 20.
    assert abs(coverage - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("options", [{}, {"fold": True}, {"like": "reference"}])
def test_means_stay_and_lie_between(scores: ExtractiveScores, options: dict) -> None:
    plain, result = scores.aggregate(**options), scores.aggregate(**options, ci=0.95)
    assert plain.ci is None and result.ci == 0.95
    added = {f"{name}_{end}" for name in ("mlp", "heads", "attention") for end in ("low", "high")}
    assert set(result.dataset) == set(plain.dataset) | added
    for name in plain.dataset:
        np.testing.assert_array_equal(result.dataset[name], plain.dataset[name])
    for name in ("mlp", "heads"):
        mean = result.dataset[name]
        assert result.low[name].dims == result.high[name].dims == mean.dims
        assert result.low[name].drop_vars("slot").coords.equals(mean.drop_vars("slot").coords)
        assert ((result.low[name] <= mean) & (mean <= result.high[name])).all()
    assert result.low["attention"].dims == ("score", "layer", "slot")
    details = {"ci": 0.95, "resamples": 1000, "seed": 0}
    assert result.attrs["aggregate"] == {**plain.attrs["aggregate"], **details}


def test_a_seed_gives_the_same_intervals(scores: ExtractiveScores, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scores.aggregate(ci=0.5)
    assert one.dataset.identical(scores.aggregate(ci=0.5).dataset)
    assert not one.low.equals(scores.aggregate(ci=0.5, seed=1).low)
    frame = scores.components("upstream", ci=0.5)
    assert frame.equals(scores.components("upstream", ci=0.5))
    assert not frame.equals(scores.components("upstream", ci=0.5, seed=1))
    # Nor does it matter how many components are resampled at a time.
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 5000)
    for end in ("low", "high"):
        np.testing.assert_allclose(
            scores.components("upstream", ci=0.5)[end], frame[end], rtol=1e-12, atol=1e-15
        )


def test_intervals_in_frames(scores: ExtractiveScores) -> None:
    result = scores.aggregate(ci=0.95)
    frame, plain = result.to_dataframe(), scores.aggregate().to_dataframe()
    assert frame.drop(columns=["low", "high"]).equals(plain)
    row = frame.query("score == 'upstream' and layer == 1 and head == 2 and slot == 3")
    cell = {"score": "upstream", "layer": 1, "head": 2, "slot": 3}
    assert row["low"].item() == result.low["heads"].sel(cell)
    assert row["high"].item() == result.high["heads"].sel(cell)
    totals = scores.components("upstream", ci=0.95)
    assert totals.drop(columns=["low", "high"]).equals(scores.components("upstream"))
    assert ((totals["low"] <= totals["value"]) & (totals["value"] <= totals["high"])).all()
    summed = ExtractiveScores(scores.dataset.astype("float64").sum("token"))
    np.testing.assert_allclose(summed.components("upstream", ci=0.95)["low"], totals["low"], rtol=1e-12)


def test_a_score_that_is_no_number_has_no_interval(scores: ExtractiveScores) -> None:
    for bad in (np.nan, np.inf):
        dataset = scores.dataset.copy(deep=True)
        dataset["mlp"][0, 1, 1, 0] = bad
        result = ExtractiveScores(dataset).aggregate(ci=0.95)
        good = np.isfinite(result.low["mlp"].values) & np.isfinite(result.high["mlp"].values)
        assert good.size - good.sum() == 1 and not good[0, 1, 0]


def test_intervals_that_cannot_be_had(scores: ExtractiveScores) -> None:
    for ci in (0, 1, -0.5, 95, float("nan")):
        with pytest.raises(InputError, match=rf"ci={ci} is no share.*as in ci=0\.95"):
            scores.aggregate(ci=ci)
        with pytest.raises(InputError, match=f"ci={ci} is no share"):
            scores.components("upstream", ci=ci)
    with pytest.raises(InputError, match="resamples=0 gives no interval"):
        scores.aggregate(ci=0.95, resamples=0)
    single = make_scores(prompts_of(ENTITIES[:1]))
    with pytest.raises(InputError, match=r"1 prompt gives no interval.*leave ci= out"):
        single.aggregate(ci=0.95)
    with pytest.raises(InputError, match="1 prompt gives no interval"):
        single.components("upstream", ci=0.95)
    with pytest.raises(InputError, match=r"no intervals; \.aggregate\(ci=0\.95\)"):
        _ = scores.aggregate().low
    with pytest.raises(InputError, match="no intervals"):
        _ = scores.aggregate().high


# --- permutations


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


def test_rows_are_the_components_in_order(scores: ExtractiveScores) -> None:
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


def test_components_that_were_not_scored_are_not_tested(scores: ExtractiveScores) -> None:
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


def test_tests_that_cannot_be_made(scores: ExtractiveScores) -> None:
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
