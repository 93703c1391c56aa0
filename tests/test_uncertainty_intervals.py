"""Intervals of means over prompts against enumeration, scipy, and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.synthetic_scores import ENTITIES, make_scores, prompts_of, scores_of
from scipy import stats

from ecstruct import bootstrap
from ecstruct.errors import InputError
from ecstruct.scores.result import ExtractiveScores


@pytest.fixture
def scores() -> ExtractiveScores:
    return make_scores()


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
