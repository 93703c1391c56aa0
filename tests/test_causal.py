"""Causal scores against interventions on plain models, and what must not change them."""

from functools import cache

import numpy as np
import pytest
import torch
from helpers.comparisons import EXACT, assert_same, of
from helpers.interventions import causal, effects, run
from helpers.oracle import ids_of
from helpers.tiny import (
    LANGUAGES,
    N_HEADS,
    N_LAYERS,
    N_LENGTHS,
    OTHERS,
    PROMPTS,
    SHAPES,
    assert_unchanged,
    double_throughout,
    hooked_pair,
    plain_pair,
    single_pair,
    state_of,
)

from ecstruct import Prompt
from ecstruct.engine.plan import graph_bytes
from ecstruct.errors import InputError
from ecstruct.models.delta import WeightDelta
from ecstruct.models.hooked import HookedView
from ecstruct.scores import SCORES, ExtractiveScores, causal_scores, score
from ecstruct.scores.interventions import rewards_of
from ecstruct.scores.tails import Tails

# --- The interventions themselves ---


@cache
def exact(family: str, per_token: bool = False, baseline: str = "counterfactual") -> ExtractiveScores:
    with double_throughout():
        return causal_scores(
            *hooked_pair(family), PROMPTS, per_token=per_token, baseline=baseline, progress=False
        )


CASES = [*((family, False) for family in SHAPES + OTHERS), ("gemma2", True), ("neox", True)]


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("family", "per_token"), CASES)
def test_scores_are_those_of_whole_forward_passes_of_plain_models(family, per_token, kind):
    mlp, heads = causal(family, kind, per_token=per_token)
    scores = exact(family, per_token)
    assert_same(of(scores, kind)[:N_LENGTHS], mlp)
    assert_same(of(scores, kind, "heads")[:N_LENGTHS], heads)


@pytest.mark.parametrize(("family", "baseline"), [("gemma2", "mean"), ("neox", "zero")])
def test_upstream_scores_with_other_baselines(family, baseline):
    mlp, heads = causal(family, "upstream", baseline=baseline)
    scores = exact(family, baseline=baseline)
    assert_same(of(scores, "upstream")[:N_LENGTHS], mlp)
    assert_same(of(scores, "upstream", "heads")[:N_LENGTHS], heads)


@pytest.mark.parametrize("family", [family for family in SHAPES if family != "olmo-clip"])  # it has kinks
def test_linear_scores_are_what_small_changes_cause(family):
    """The smaller the change, the closer causal and linear I and D: a tenth of it leaves a tenth of the
    distance. (Of U that is so for small y - y* only, which stay as they are.)"""
    before, after = hooked_pair(family)
    apart = {}
    for eps in (1e-3, 1e-4):
        delta = eps * WeightDelta.between(before, after)
        with double_throughout():
            linear = score(before, delta, PROMPTS, progress=False)
            caused = causal_scores(before, delta, PROMPTS, kinds=SCORES[::2], progress=False)
        for kind in ("informative", "downstream"):
            for part in ("mlp", "heads"):
                expected = of(linear, kind, part).sum(-1)
                error = np.abs(of(caused, kind, part) - expected).max() / np.abs(expected).max()
                apart.setdefault((kind, part), []).append(error)
    for large, small in apart.values():
        assert small < 0.02 and small == pytest.approx(large / 10, rel=0.1)


# --- What must not change them ---


def assert_agree(found: ExtractiveScores, expected: ExtractiveScores, tolerance: float) -> None:
    for name in ("mlp", "heads", "reward"):
        a, b = found.dataset[name].values, expected.dataset[name].values
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        assert np.nanmax(np.abs(a - b)) <= tolerance * np.nanmax(np.abs(b))


@pytest.mark.parametrize("family", ["olmo-clip", "gptj"])
def test_how_interventions_are_stacked_changes_nothing(family):
    """One at a time, a few, or all at once; prompts in another order."""
    pair, some = hooked_pair(family), ["MLP 0", "MLP 2", "head 0.1", "head 1.3"]
    asked = {"kinds": ["upstream", "patching"], "components": some, "progress": False}
    of_one = graph_bytes(HookedView(pair[0]), 1, 8)
    order = [3, 0, 4, 2, 1]
    with double_throughout():
        expected, *stacked = (
            causal_scores(*pair, PROMPTS, memory=memory, **asked) for memory in (None, of_one, 5 * of_one)
        )
        shuffled = causal_scores(*pair, [PROMPTS[i] for i in order], **asked)
    stacked.append(ExtractiveScores(shuffled.dataset.isel(prompt=np.argsort(order))))
    for found in stacked:
        assert_agree(found, expected, EXACT)


def test_entities_that_begin_alike_are_kept_apart():
    """Where they share a batch, their first tokens are the same; but y* there is each prompt's own."""
    names = ("Ada Bo", "Ada Li", "Ada de Wit", "Ed Roy")
    prompts = [
        Prompt(f"people that {name} knows speak", answer, LANGUAGES)
        for name, answer in zip(names, ("Dutch", "Thai", "Zulu", "Thai"), strict=True)
    ]
    of_one = graph_bytes(HookedView(hooked_pair("gpt2")[0]), 1, 9)
    some = {"kinds": "upstream", "components": ["MLP 0", "head 1.3"], "per_token": True}
    with double_throughout():
        found, expected = (
            causal_scores(*hooked_pair("gpt2"), prompts, memory=m, progress=False, **some)
            for m in (2 * of_one, of_one)  # the first two people together; everybody alone
        )
    assert_agree(found, expected, EXACT)


@pytest.mark.parametrize("family", SHAPES)
def test_patching_puts_in_what_the_finetuned_model_writes(family):
    """The plain finetuned model's output is put in the place of a component's own."""
    before, after = plain_pair(family)
    with double_throughout(), torch.no_grad():
        scores = causal_scores(*hooked_pair(family), PROMPTS, kinds=["patching"], progress=False)
        for i, prompt in enumerate(PROMPTS[:2]):
            written = run(after, prompt).written
            places = [[*range(len(ids_of(prompt)[0]))]]
            for (layer, head), (expected,) in effects(before, prompt, written, places).items():
                part = scores.mlp if head is None else scores.heads.isel(head=head)
                found = float(part.sel(score="patching").isel(prompt=i, layer=layer))
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("family", "per_token"), [*((f, False) for f in SHAPES), ("gpt2", True)])
def test_without_a_change_every_score_is_exactly_zero(family, per_token, caplog):
    model = single_pair(family)[0]
    scores = causal_scores(model, model, PROMPTS, per_token=per_token, progress=False)
    for part in ("mlp", "heads"):
        values = scores.dataset[part].values
        assert (np.isnan(values) | (values == 0)).all() and (values == 0).any()
    assert "both models have the same weights" in caplog.text


def test_only_late_changes_make_upstream_scores_and_only_early_ones_downstream_scores():
    before, after = single_pair("llama")
    of_layer_1 = WeightDelta.between(before, after).restrict([1])
    scores = causal_scores(before, of_layer_1, PROMPTS, progress=False)
    informative, upstream, downstream = (np.abs(of(scores, kind)).max(0) for kind in SCORES)
    assert (informative[[0, 2]] == 0).all() and informative[1] > 0
    assert (upstream[1:] == 0).all() and upstream[0] > 0
    assert downstream[0] == 0 and downstream[2] > 0  # the MLP of layer 1 reads its own layer's heads
    # The heads of layer 1 come before its MLP, which changes too.
    assert (np.abs(of(scores, "upstream", "heads")).max(0)[1] > 0).all()


@pytest.mark.parametrize("family", ["olmo-clip", "gpt2"])
def test_models_are_bit_identical_afterwards(family):
    pair = single_pair(family)
    causal_scores(*pair, PROMPTS, progress=False)
    states = [state_of(model) for model in pair]
    causal_scores(*pair, PROMPTS, progress=False)

    def failing(logits, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        causal_scores(*pair, PROMPTS, reward=failing, progress=False)
    for model, state in zip(pair, states, strict=True):
        assert_unchanged(model, state)


# --- What is asked for ---


def test_some_components_and_kinds_alone():
    pair = single_pair("llama")
    everything = causal_scores(*pair, PROMPTS, progress=False)
    some = causal_scores(
        *pair, PROMPTS, kinds=["upstream"], components=["head 1.2", "mlp 2"], progress=False
    )
    assert some.dataset["score"].values.tolist() == ["upstream"]
    found = np.argwhere(np.isfinite(some.heads.sel(score="upstream").isel(prompt=0).values))
    assert found.tolist() == [[1, 2]]
    for part, where in (("mlp", {"layer": 2}), ("heads", {"layer": 1, "head": 2})):
        expected = everything.dataset[part].sel(score="upstream").isel(where)
        np.testing.assert_allclose(
            some.dataset[part].sel(score="upstream").isel(where), expected, rtol=1e-4
        )
    top = everything.top(3, "informative")
    again = causal_scores(*pair, PROMPTS, components=top, progress=False)
    assert (
        sum(np.isfinite(again.dataset[p].isel(score=0, prompt=0)).values.sum() for p in ("mlp", "heads"))
        == 3
    )
    np.testing.assert_allclose(again.top(3, "informative")["value"], top["value"], rtol=1e-4)


def test_tokens_at_which_nothing_changes_are_not_run(monkeypatch):
    ran = []

    def watched(variants, *args):
        variants = [*variants]
        ran.extend(variant for _, variant in variants)
        return rewards_of(variants, *args)

    monkeypatch.setattr("ecstruct.scores.causal.rewards_of", watched)
    options = {"kinds": ["upstream"], "per_token": True, "progress": False}
    scores = causal_scores(*single_pair("llama"), PROMPTS, **options)
    changed = [v for v in ran if v.change is not None]
    assert changed and all(v.change[:, v.token].any() for v in changed)
    # What the prompts of a template begin with is its own counterfactual.
    assert {v.token for v in changed} and 0 not in {v.token for v in changed}
    assert (scores.mlp.isel(token=0) == 0).all() and (scores.heads.isel(token=0) == 0).all()


def test_a_block_runs_once_for_the_interventions_of_all_layers_below(monkeypatch):
    ran, block = [], Tails.block

    def watched(self, layer, rows, weights=None, written=None):
        if written is None:
            ran.append((layer, len(rows)))
        return block(self, layer, rows, weights, written)

    monkeypatch.setattr(Tails, "block", watched)
    pair, n = single_pair("llama"), 1 + N_HEADS
    causal_scores(*pair, PROMPTS, kinds=["upstream"], progress=False)
    # Under W, one more copy than components below, which has no change; under W', two more a layer: without
    # a change in what heads or the MLP write.
    rows = {layer: [copies for at, copies in ran if at == layer] for layer in range(N_LAYERS)}
    prompts = rows[1][0] // (1 + n)
    assert rows == {
        0: [],
        1: [prompts * (1 + n), prompts * (2 + n)],
        2: [prompts * (1 + 2 * n), prompts * (4 + 2 * n)],
    }


def test_scores_without_tokens_are_saved_and_shown(tmp_path):
    scores = causal_scores(*single_pair("qwen2"), PROMPTS, progress=False)
    scores.save(tmp_path / "causal.nc")
    again = ExtractiveScores.load(tmp_path / "causal.nc")
    np.testing.assert_array_equal(again.heads.values, scores.heads.values)
    assert again.attrs["method"] == "causal" and again.attrs["options"]["baseline"] == "counterfactual"
    assert "MLP" in scores._repr_html_()
    with pytest.raises(InputError, match="without 'rest'"):
        _ = scores.completeness
    with pytest.raises(InputError, match="without 'rest'"):
        _ = causal_scores(*single_pair("qwen2"), PROMPTS, kinds="upstream", progress=False).completeness
    assert len(scores.to_dataframe()) == 3 * len(PROMPTS) * N_LAYERS * (1 + N_HEADS)
    with pytest.raises(InputError, match="token"):
        scores.aggregate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kinds": ["sideways"]},
            "kinds.0='sideways': it should be 'informative', 'upstream', 'downstream' or 'patching'",
        ),
        ({"kinds": []}, r"kinds=\[\]: .* at least 1 item"),
        (
            {"components": ["MLP 3"]},
            "no component 'MLP 3': this model has 'MLP 0' to 'MLP 2' and 'head 0.0' to 'head 2.3'",
        ),
        ({"components": ["head 1.4"]}, "no component 'head 1.4'"),
        ({"components": ["layer 1"]}, "no component 'layer 1'"),
        ({"components": []}, "names none"),
        ({"components": "MLP 1"}, "is one name: pass a list"),
        ({"memory": 1000}, r"memory=1000 bytes are too few .* of 8 tokens: give at least \d+"),
        ({"baseline": "median"}, "baseline='median': it should be 'counterfactual'"),
        ({"reward": "accuracy"}, "reward='accuracy': it should be 'logit_diff'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        causal_scores(*single_pair("llama"), PROMPTS, progress=False, **options)


def test_the_least_memory_that_is_named_is_enough():
    pair = single_pair("llama")
    with pytest.raises(InputError) as raised:
        causal_scores(*pair, PROMPTS, memory=1, progress=False)
    least = int(str(raised.value).split("at least ")[1].rstrip("."))
    causal_scores(*pair, PROMPTS, memory=least, components=["MLP 0"], progress=False)
    with pytest.raises(InputError):
        causal_scores(*pair, PROMPTS, memory=least - 1, progress=False)
