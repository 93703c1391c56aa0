"""Exact upstream scores: gradients of models in which only later weights are new."""

import numpy as np
import pytest
import torch
from helpers.comparisons import (
    EXACT,
    HEADS,
    LAYERS,
    assert_same,
    of,
    padded,
    runs,
    scored,
    split,
)
from helpers.interventions import baseline_value, late_gradients
from helpers.oracle import blocks, head_columns
from helpers.tiny import (
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

from ecstruct.models.delta import WeightDelta
from ecstruct.scores import late, score


@pytest.mark.parametrize(
    ("family", "convention"),
    [*((family, "definition") for family in SHAPES + OTHERS), ("gpt2", "reference")],
)
def test_gradients_are_those_of_models_with_mixed_weights(family, convention):
    with double_throughout():
        scores = scored(family, upstream="exact", propagation="gradient", convention=convention)
    late_of = late_gradients(family)
    u_mlps, u_heads = [[] for _ in range(N_LENGTHS)], [[] for _ in range(N_LENGTHS)]
    for layer in LAYERS:
        o = blocks(plain_pair(family)[0])[layer].o
        all_z = [old[layer, "o"].input.detach()[0] for old, _ in runs(family)]
        all_y = [old[layer, "mlp"].output.detach()[0] for old, _ in runs(family)]
        for i, (old, _) in enumerate(runs(family)[:N_LENGTHS]):
            y = all_y[i] - baseline_value("counterfactual", i, all_y)
            z = split(all_z[i][None]) - split(baseline_value("counterfactual", i, all_z)[None])
            d_mlp = late_of[i][layer, "mlp"] - old[layer, "mlp"].output.grad[0]
            d_o = late_of[i][layer, "attn"] - old[layer, "o"].output.grad[0]
            u_mlps[i].append((d_mlp * y).sum(-1))
            d_z = torch.stack([d_o @ head_columns(o, o.weight.detach(), head) for head in HEADS])
            u_heads[i].append((d_z * z).sum(-1))
    assert_same(of(scores, "upstream")[:N_LENGTHS], padded([torch.stack(u) for u in u_mlps]))
    assert_same(of(scores, "upstream", "heads")[:N_LENGTHS], padded([torch.stack(u) for u in u_heads]))


@pytest.mark.parametrize("family", SHAPES)
def test_nothing_else_changes_with_them(family):
    exact, surrogate = (
        scored(family, upstream=upstream, propagation="gradient") for upstream in ("exact", "surrogate")
    )
    assert exact.attrs["options"]["upstream"] == "exact"
    for kind in ("informative", "downstream"):
        for part in ("mlp", "heads"):
            np.testing.assert_array_equal(of(exact, kind, part), of(surrogate, kind, part))
    for part in ("attribution_mlp", "attribution_heads", "rest"):
        found, expected = (s.dataset[part] for s in (exact, surrogate))
        if "state" in found.dims:
            found, expected = found.sel(state="before"), expected.sel(state="before")
        np.testing.assert_array_equal(found.values, expected.values)
    assert np.abs(of(exact, "upstream") - of(surrogate, "upstream")).max() > 1e-3


@pytest.mark.parametrize("family", SHAPES)
def test_the_last_mlp_has_none_when_nothing_after_it_changes(family):
    """Its post-norm belongs to what comes after it; the surrogate knows nothing of that."""
    before, after = hooked_pair(family)
    delta = WeightDelta.between(before, after).restrict(kinds=("embed", "attn", "mlp"))
    exact, surrogate = (
        of(score(before, delta, PROMPTS, upstream=upstream, progress=False), "upstream")
        for upstream in ("exact", "surrogate")
    )
    assert np.abs(exact[:, -1]).max() <= 1e-14 < 1e-4 < np.abs(surrogate[:, -1]).max()
    assert np.abs(exact[:, 0]).max() > 1e-4


def test_models_are_bit_identical_afterwards():
    pair = single_pair("olmo-clip")
    options = {"upstream": "exact", "path_steps": 2, "progress": False}
    score(*pair, PROMPTS, **options)  # TransformerLens sets up hooks of its own
    states = [state_of(model) for model in pair]
    score(*pair, PROMPTS, **options)
    for model, state in zip(pair, states, strict=True):
        assert_unchanged(model, state)


@pytest.mark.parametrize("family", ["gemma2", "neox"])
def test_how_boundaries_are_stacked_changes_nothing(family, monkeypatch):
    """One boundary at a time, two, or (as expected) all in one growing batch."""
    with double_throughout():
        expected = scored(family, upstream="exact")
        for memory in (1.0, 5e5):
            monkeypatch.setattr(late, "free_bytes", lambda device, memory=memory: 2 * memory)
            found = scored(family, upstream="exact", batch_size=2)
            for part in ("mlp", "heads"):
                assert_same(of(found, "upstream", part), of(expected, "upstream", part), EXACT)
