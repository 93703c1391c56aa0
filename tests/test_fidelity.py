"""Agreement of fast scores with interventions: made-up numbers, small changes, and the organism."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.comparisons import of
from helpers.synthetic_scores import make_scores
from helpers.tiny import PROMPTS, single_pair
from scipy import stats

import ecstruct
from ecstruct.bootstrap import Bootstrap
from ecstruct.checks import against_causal
from ecstruct.checks.against_causal import fidelity
from ecstruct.checks.agreement import ESTIMATES, FORMS, Fidelity
from ecstruct.errors import InputError
from ecstruct.models.delta import WeightDelta
from ecstruct.scores import ExtractiveScores
from ecstruct.scores.ascent import Ascent
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.result import component_totals


def noisy(scores: ExtractiveScores, noise: float, times: float = 1.0, seed: int = 0) -> ExtractiveScores:
    dataset, rng = scores.dataset.copy(), np.random.default_rng(seed)
    for part in ("mlp", "heads"):
        values = dataset[part].values
        spread = noise * np.nanstd(values)
        dataset[part] = dataset[part].copy(data=times * values + spread * rng.normal(size=values.shape))
    return ExtractiveScores(dataset)


@pytest.fixture
def made() -> Fidelity:
    """Linear scores are twice too large, exact ones noise, those of the path true."""
    true = make_scores()
    twice, noise = noisy(true, 0, times=2), noisy(true, 50)
    fast = {"linear": twice, "surrogate": noise, "exact": noise, "path": true}
    return Fidelity(fast, true, {1: 0.5, 4: 0.25}, top=2)


def test_agreement_is_what_scipy_says(made):
    table = made.table().set_index(["score", "estimate", "kind"])
    assert len(table) == 3 * sum(map(len, ESTIMATES.values()))
    for kind in ("mlp", "head", "all"):
        for name, estimate in (("informative", "linear"), ("upstream", "relevance")):
            row = table.loc[(name, estimate, kind)]
            assert row["r"] == pytest.approx(1) and row["rho"] == pytest.approx(1)
            assert row["slope"] == pytest.approx(0.5) and row["of them in both"] == 1
        assert table.loc[("informative", "path", kind), "slope"] == pytest.approx(1)
        exact = made.of("exact").components("upstream")
        caused = made.causal.components("upstream")
        chosen = np.ones(len(exact), bool) if kind == "all" else exact["kind"] == kind
        x, y = exact["value"][chosen].to_numpy(float), caused["value"][chosen].to_numpy(float)
        row = table.loc[("upstream", "exact", kind)]
        assert row["n"] == len(x)
        assert row["r"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
        k = min(2, len(x) // 2)
        both = set(np.argsort(-x)[:k]) & set(np.argsort(-y)[:k])
        assert row["of them in both"] == len(both) / k


def test_the_verdict_follows_the_numbers(made):
    verdict = made.verdict()
    assert (
        "Downstream scores (linear r = 1.00 [1.00, 1.00]) can be used; what they stand for is 0.50 times"
        in verdict
    )
    assert "in the relevance form" in verdict and "path r = 1.00" in verdict
    assert "by 0.5 with 1, 0.25 with 4 path steps. That is of 3 prompts, and others may say" in verdict
    noise = noisy(made.causal, 300, seed=1)
    worse = Fidelity({"linear": noise}, made.causal, {1: 0.1}, top=2)
    assert list(worse.estimates.values()) == [["linear"], ["relevance"], ["linear"]]
    assert "Downstream" in worse.verdict() and "are not to be trusted here" in worse.verdict()


def test_the_verdict_tells_where_r_is_high_only_because_mlps_are_larger():
    small = make_scores().dataset
    true = small.assign(mlp=small["mlp"] + 50)
    reversed_layers = true["mlp"].isel(layer=slice(None, None, -1)).values
    fast = ExtractiveScores(true.assign(mlp=true["mlp"].copy(data=reversed_layers)))
    true = ExtractiveScores(true)
    verdict = Fidelity({"linear": fast}, true, {1: 0.5}, top=2).verdict()
    assert "Downstream scores (linear r = 1.00 [1.00, 1.00]) can be used" in verdict
    assert "Among MLPs alone their order does not hold (ρ = -" in verdict
    assert "Among heads" not in verdict


def test_the_interval_of_r_is_over_prompts(made):
    """As percentiles over resampled prompts, by a loop."""
    fast, caused = (component_totals(scores, "upstream") for scores in (made.of("exact"), made.causal))
    draws = Bootstrap(len(fast), ci=0.95, resamples=1000, seed=0).weights
    r = []
    for draw in draws:
        taken = np.repeat(np.arange(len(fast)), draw)
        r.append(stats.pearsonr(fast[taken].mean(0), caused[taken].mean(0)).statistic)
    row = made.table().set_index(["score", "estimate", "kind"]).loc[("upstream", "exact", "all")]
    assert [row["r low"], row["r high"]] == pytest.approx(np.quantile(r, [0.025, 0.975]))


def test_the_interval_of_a_sample_is_over_its_components_too(made):
    """As percentiles over resampled prompts and components drawn at random, by a loop."""
    fast, caused = (component_totals(scores, "upstream") for scores in (made.of("exact"), made.causal))
    n = fast.shape[1]
    weights = np.where(np.arange(n) < 4, 1.0, np.where(np.arange(n) % 2, 0.0, 2.0))
    at_random = np.flatnonzero(weights > 1)
    counts = np.random.default_rng(0).multinomial(
        len(at_random), [1 / len(at_random)] * len(at_random), size=1000
    )
    r = []
    for draw, count in zip(
        Bootstrap(len(fast), ci=0.95, resamples=1000, seed=0).weights, counts, strict=True
    ):
        prompts = np.repeat(np.arange(len(fast)), draw)
        components = np.concatenate([np.arange(4), np.repeat(at_random, 2 * count)])
        x, y = (values[prompts][:, components].mean(0) for values in (fast, caused))
        r.append(stats.pearsonr(x, y).statistic)
    table = replace(made, weights=weights).table().set_index(["score", "estimate", "kind"])
    row = table.loc[("upstream", "exact", "all")]
    assert [row["r low"], row["r high"]] == pytest.approx(np.quantile(r, [0.025, 0.975]))


def test_weights_count_as_repetitions(made):
    """What stands for three components is what scipy makes of three equal ones."""
    n = len(made.causal.components("upstream"))
    weights = np.random.default_rng(0).integers(0, 4, n)
    sampled = replace(made, weights=weights.astype(float)).table().set_index(["score", "estimate", "kind"])
    for name, estimates in ESTIMATES.items():
        for estimate in estimates:
            fast, caused = made.of(estimate).components(name), made.causal.components(name)
            x, y = (np.repeat(frame["value"].to_numpy(float), weights) for frame in (fast, caused))
            row = sampled.loc[(name, estimate, "all")]
            assert row["n"] == np.count_nonzero(weights)
            assert row["r"] == pytest.approx(stats.pearsonr(x, y).statistic)
            assert row["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
            assert row["slope"] == pytest.approx(x @ y / (x @ x))


def test_a_sample_has_the_strongest_and_stands_for_all():
    models = single_pair("llama")
    how = {"forms": FORMS, "path_steps": (1,), "progress": False}
    whole = fidelity(*models, PROMPTS, **how, sample=None)
    n = len(whole.causal.components("upstream"))
    samples = [fidelity(*models, PROMPTS, **how, sample=8, seed=seed) for seed in range(2)]
    drawn = set()
    for sampled in samples:
        assert np.count_nonzero(sampled.weights) == 8 and sampled.weights.sum() == pytest.approx(n)
        assert f"on 8 of {n} components, which stand for all" in sampled.verdict()
        drawn.add(tuple(np.flatnonzero(sampled.weights)))
        for name, estimates in ESTIMATES.items():
            caused = sampled.causal.components(name)["value"].to_numpy(float)
            np.testing.assert_array_equal(np.isfinite(caused), sampled.weights > 0)
            expected = whole.causal.components(name)["value"].to_numpy(float)
            np.testing.assert_allclose(caused, np.where(sampled.weights, expected, np.nan), rtol=1e-4)
            for estimate in estimates:
                strongest = abs(whole.of(estimate).components(name)["value"].to_numpy(float)).argmax()
                assert sampled.weights[strongest] == 1
        assert len(sampled.frame) == 8 * sum(map(len, ESTIMATES.values()))
    assert len(drawn) == 2
    everything = fidelity(*models, PROMPTS, **how, sample=n)
    assert everything.weights is None and everything.table().equals(whole.table())


def test_the_figure_has_a_point_per_component_and_panel(made):
    n = len(made.causal.components("upstream"))
    points = [trace for trace in made.figure.data if trace.mode == "markers"]
    assert len(points) == 6 and {len(trace.x) for trace in points} == {n}
    titles = [a.text for a in made.figure.layout.annotations]
    assert any("upstream, exact" in title for title in titles)


def test_what_is_finished_is_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(against_causal, "_AT_ONCE", 2)
    pair, how = single_pair("llama"), {"path_steps": (1,), "sample": None, "progress": False}
    how |= {"forms": FORMS, "folder": tmp_path / "unfinished"}
    whole = fidelity(*pair, PROMPTS, **(how | {"folder": None}))
    interrupted, n = against_causal.intervened, []

    def dies_in_the_last_layer(*args, **kwargs):
        n.append(kwargs["components"])
        if len(n) == 3:
            raise KeyboardInterrupt
        return interrupted(*args, **kwargs)

    monkeypatch.setattr(against_causal, "intervened", dies_in_the_last_layer)
    with pytest.raises(KeyboardInterrupt):
        fidelity(*pair, PROMPTS, **how)
    monkeypatch.setattr(ScoreEngine, "score_and_ascent", lambda *_: pytest.fail("scored again"))
    again = fidelity(*pair, PROMPTS, **how)
    assert len(n) == 4 and n[3] == n[2]
    for way, scores in whole.scores().items():
        for part in ("mlp", "heads", "reward"):
            np.testing.assert_array_equal(again.scores()[way].dataset[part], scores.dataset[part])
    assert again.results() == whole.results()
    with pytest.raises(InputError, match="holds a part of another run"):
        fidelity(*pair, PROMPTS[:4], **how)


def test_prompts_are_walked_up_once_for_scores_and_interventions(monkeypatch):
    walked, up = [], Ascent.up

    def watched(self, *args):
        walked.append(self)
        up(self, *args)

    monkeypatch.setattr(Ascent, "up", watched)
    fidelity(*single_pair("llama"), PROMPTS, progress=False)
    assert len(walked) == 1
    verified = ecstruct.score(*single_pair("llama"), PROMPTS, verify=2, progress=False)
    assert len(walked) == 2
    # Prompts in batches that are too small for interventions are walked up again, with the same results.
    alone = ecstruct.score(*single_pair("llama"), PROMPTS, verify=2, batch_size=1, progress=False)
    assert len(walked) == 4
    for part in ("causal_mlp", "causal_heads"):
        np.testing.assert_allclose(alone.dataset[part], verified.dataset[part], rtol=1e-4, atol=1e-6)


def test_small_changes_make_linear_scores_right():
    """Of informative and downstream scores; upstream ones are linear in y - y*, which stays large."""
    before, after = single_pair("llama")
    small = 0.02 * WeightDelta.between(before, after)
    checked = fidelity(before, small, PROMPTS, forms=["path"], sample=None, progress=False)
    table = checked.table().set_index(["score", "estimate", "kind"])
    for name in ("informative", "downstream"):
        row = table.loc[(name, "linear", "all")]
        assert row["r"] > 0.99 and row["r by prompt"] > 0.99 and row["slope"] == pytest.approx(1, abs=0.1)
    assert checked.path_error[8] < 0.1 * checked.path_error[1]
    assert of(checked.of("path"), "informative").shape == of(checked.linear, "informative").shape


def test_on_the_organism_scores_hold_and_upstream_ones_by_gradients_do_not():
    organism = ecstruct.load("organism", device="cpu")
    data = ecstruct.facts.second_hop()
    tuned = ecstruct.finetune(organism, data.facts, lr=4e-4, progress=False)
    how = {"forms": ["surrogate", "exact"], "sample": None, "progress": False}
    checked = ecstruct.fidelity(organism, tuned.delta, data.implications, **how)
    r = checked.table().set_index(["score", "estimate", "kind"])["r"].xs("all", level="kind")
    assert r["informative", "linear"] > 0.9 and r["downstream", "linear"] > 0.9
    assert r["upstream", "surrogate"] < r["upstream", "exact"] < 0.7 < 0.8 < r["upstream", "relevance"]


def test_what_is_nothing_beside_the_largest_score_has_no_order(made):
    """As of scores that are rounding errors."""
    rounding = noisy(made.causal, 0, times=1e-9)
    assert "order does not hold" not in made.verdict()
    rows = {"score": "upstream"}
    causal = made.causal.dataset.copy(deep=True)
    for part in ("mlp", "heads"):
        causal[part].loc[rows] = -rounding.dataset[part].sel(rows)
    tiny_ones = replace(made, causal=ExtractiveScores(causal))
    table = tiny_ones.table().set_index(["score", "estimate", "kind"])
    assert np.isnan(table.loc[("upstream", "relevance", "all"), "rho"])
    assert "Upstream scores" in tiny_ones.verdict() and "cannot be judged" in tiny_ones.verdict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path_steps": ()}, r"path_steps=\(\): .* at least 1 item"),
        ({"path_steps": (0, 2)}, "path_steps.0=0: it should be greater than or equal to 1"),
        ({"forms": ["linear"]}, "forms.0='linear': it should be 'path', 'surrogate' or 'exact'"),
        ({"sample": 1}, "sample=1: it should be greater than or equal to 2"),
        ({"top": 0}, "top=0: it should be greater than or equal to 1"),
        ({"memory": 1}, "at least"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        fidelity(*single_pair("llama"), PROMPTS, progress=False, **options)
