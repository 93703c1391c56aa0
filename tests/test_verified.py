"""Components whose interventions were run: both numbers beside one another, wherever scores are shown."""

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_scores import make_scores
from helpers.tiny import PROMPTS, single_pair
from programs import SHARE, UPSTREAM, Program

import ecstruct
from ecstruct.errors import InputError
from ecstruct.models.export import save_model
from ecstruct.plots.style import number
from ecstruct.report.pages import score_report, top_table
from ecstruct.scores import ExtractiveScores

SCORES = ("informative", "upstream", "downstream")
SILENT = {"progress": False}


@pytest.fixture(scope="module")
def pair():
    return single_pair("llama")


@pytest.fixture(scope="module")
def verified(pair):
    return ecstruct.score(*pair, PROMPTS, verify=2, **SILENT)


def test_the_strongest_have_what_causal_scores_find(pair, verified):
    plain, causal = (
        ecstruct.score(*pair, PROMPTS, **SILENT),
        ecstruct.causal_scores(*pair, PROMPTS, **SILENT),
    )
    for score in SCORES:
        top, expected = verified.top(5, score), plain.top(5, score)
        pd.testing.assert_frame_equal(top[expected.columns], expected)
        found = causal.components(score).set_index(["layer", "head"])["value"]
        np.testing.assert_allclose(
            top["causal"][:2],
            [found.loc[tuple(row)] for row in top[["layer", "head"]][:2].itertuples(index=False)],
            rtol=1e-4,
        )
        assert top["causal"][2:].isna().all() and top["agrees"][2:].isna().all()
    assert verified.attrs["options"]["verify"] == 2


def test_scores_themselves_are_as_without(pair, verified):
    plain = ecstruct.score(*pair, PROMPTS, **SILENT)
    assert plain.interventions is None and "causal" not in plain.components("upstream")
    assert verified.dataset.drop_vars(["causal_mlp", "causal_heads"]).equals(plain.dataset)


def test_both_numbers_are_saved(verified, tmp_path):
    verified.save(tmp_path / "s.nc")
    assert ExtractiveScores.load(tmp_path / "s.nc").dataset.equals(verified.dataset)


@pytest.mark.parametrize(
    ("times", "agrees"),
    [(9.0, True), (0.11, True), (0.09, False), (-1.0, False)],
)
def test_an_intervention_agrees_if_it_does_a_tenth_of_the_same(times, agrees, tmp_path):
    scores = make_scores()
    causal = ExtractiveScores(
        scores.dataset.assign({k: times * scores.dataset[k] for k in ("mlp", "heads")})
    )
    both = scores.verified(causal)
    for score in SCORES:
        frame = both.components(score)
        np.testing.assert_allclose(frame["causal"], times * frame["value"], rtol=1e-5)
        assert (frame["agrees"] == agrees).all()
    first = top_table(both)["upstream"][0]
    assert ("; causal +" in first) == agrees and ("; refuted: causal " in first) != agrees
    score_report(tmp_path / "r.html", both, "")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    named = "Strongest by fast scores and interventions: "
    assert (named if agrees else "By fast scores and interventions, no component raises it.") in page
    assert first in page


@pytest.mark.parametrize("prompt", [None, 0])
def test_figures_say_both_numbers(prompt):
    scores = make_scores()
    one = scores.dataset.sel(score=["upstream"])
    opposite = {name: -one[name].where(one["layer"] == 1) for name in ("mlp", "heads")}
    both = scores.verified(ExtractiveScores(one.assign(opposite)))
    totals = both.components("upstream") if prompt is None else None
    figure = both.heatmap(prompt=prompt)
    texts = "".join(str(trace.text) for trace in figure.data)
    assert "<br>MLP 1, all tokens: " in texts and "; refuted: causal " in texts
    assert "MLP 0, all tokens" not in texts and "head 1.2, all tokens: " in texts
    if totals is not None:
        value = totals.query("kind == 'mlp' and layer == 1")["value"].item()
        assert f"MLP 1, all tokens: {number(value)}; refuted: causal {number(-value)}" in texts
    assert "head 1.0, all tokens: " in str(both.head_map(prompt=prompt).data[-1].text)


def test_interventions_are_of_the_same_prompts():
    scores = make_scores()
    with pytest.raises(InputError, match="they must be of the same components and prompts"):
        scores.verified(ExtractiveScores(scores.dataset.isel(prompt=[0, 1])))


def test_one_score_by_intervention_leaves_the_others_open(pair):
    plain = ecstruct.score(*pair, PROMPTS, **SILENT)
    causal = ecstruct.causal_scores(*pair, PROMPTS, kinds="upstream", per_token=True, **SILENT)
    both = plain.verified(causal)
    assert both.components("upstream")["causal"].notna().all()
    assert both.components("informative")["causal"].isna().all()


def test_a_wrong_component_is_refuted():
    """By gradients, a component of this compiled program is upstream that the program never asks."""
    program = Program("three_hops_first")
    scores = ecstruct.score(*program.pair(), program.prompts, **UPSTREAM["surrogate"], verify=3, **SILENT)
    top = scores.top(3, "upstream")
    wrong = top["agrees"].fillna(True).eq(False) & (top["value"] > SHARE * top["value"].max())
    assert wrong.any()


@pytest.mark.parametrize(
    ("verify", "why"),
    [(-1, "-1: it should be greater than or equal to 0"), (16, "16 is more than the 15")],
)
def test_a_number_that_is_none_of_components_is_named(pair, verify, why):
    with pytest.raises(InputError, match=f"verify={why}"):
        ecstruct.score(*pair, PROMPTS, verify=verify, **SILENT)


def test_models_on_disk_are_verified_when_it_is_asked_for(pair, verified, tmp_path):
    folders = tmp_path / "before", tmp_path / "after"
    for model, folder in zip(pair, folders, strict=True):
        save_model(model, folder)
    found = ecstruct.score(*map(str, folders), PROMPTS, verify=2, offload=True, **SILENT)
    for name in ("causal_mlp", "causal_heads"):
        np.testing.assert_allclose(found.dataset[name], verified.dataset[name], rtol=1e-4, atol=1e-7)
