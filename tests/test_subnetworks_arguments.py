"""What functions of `ecstruct.subnetworks` take, and what they say of what they cannot."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.synthetic_scores import make_scores
from helpers.tiny import N_HEADS, N_LAYERS, PROMPTS, hooked, hooked_pair, plain_pair

from ecstruct import InputError, causal_scores, recall, save_model, score, subnetworks
from ecstruct.models.bridge import named_weights
from ecstruct.models.fingerprint import fingerprint
from ecstruct.subnetworks.dependence_on_core import Dependence
from ecstruct.subnetworks.masks import Masks

FAST = {"seeds": 2, "steps": 2, "progress": False}


def some_core(n_layers: int = 2, n_heads: int = 3) -> subnetworks.Core:
    heads = np.random.default_rng(0).random((4, n_layers, n_heads)) < 0.6
    heads[:, 0, 0] = True
    return subnetworks.core(Masks.of(heads, np.ones((4, n_layers), bool)))


def test_scores_of_other_kinds_are_refused():
    scores = make_scores()
    scores.dataset.coords["score"] = ["patching", "b", "c"]
    with pytest.raises(InputError, match=r"patching.*informative"):
        subnetworks.with_scores(some_core(), scores)


def test_what_does_not_vary_is_said_to():
    core = subnetworks.core(Masks.of(np.ones((2, 2, 3), bool), np.ones((2, 2), bool)))
    told = subnetworks.with_scores(core, make_scores(), permutations=10).conclusion()
    assert "does not vary" in told and "nan" not in told


def test_zeros_need_no_prompts():
    model, _ = hooked_pair("llama")
    for prompts in ([], PROMPTS):
        values = subnetworks.reference_values(model, prompts, ablation="zero")
        means = subnetworks.reference_values(model, PROMPTS)
        for zeros, like in ((values.heads, means.heads), (values.mlp, means.mlp)):
            assert zeros.shape == like.shape and zeros.dtype == like.dtype and not zeros.any()


def test_checkpoints_may_be_paths(tmp_path):
    model, _ = hooked_pair("llama")
    save_model(model, tmp_path / "model")
    core = some_core(N_LAYERS, N_HEADS)
    found, as_text = (
        subnetworks.emergence({0: source}, core, PROMPTS)
        for source in (tmp_path / "model", str(tmp_path / "model"))
    )
    pd.testing.assert_frame_equal(found.frame, as_text.frame)


def test_one_kind_may_be_given_without_a_list():
    model, after = hooked_pair("llama")
    one, listed = (subnetworks.prune(model, PROMPTS, kinds=kinds, **FAST) for kinds in ("heads", ["heads"]))
    assert one.dataset.identical(listed.dataset) and one.kinds == ["heads"]
    heads = np.ones((2, N_LAYERS, N_HEADS), bool)
    heads[:, :, 1:] = False
    masks = one.like(heads, np.ones((2, N_LAYERS), bool))
    one, listed = (
        subnetworks.ablate_core(model, masks, PROMPTS, kinds=kinds, draws=1, progress=False)
        for kinds in ("heads", ["heads"])
    )
    pd.testing.assert_frame_equal(one.frame, listed.frame)
    one, listed = (
        causal_scores(model, after, PROMPTS, kinds=kinds, progress=False)
        for kinds in ("upstream", ["upstream"])
    )
    assert one.dataset.identical(listed.dataset)


def test_dependence_says_of_how_many_components_it_speaks():
    of_each = {"the core": 4, "random ones": 3, "random ones of its layers": 1}
    frame = pd.DataFrame(
        [
            {"layer": 1, "head": 0, "ablated": name, "components": n, "draw": 0, "change": 0.5}
            for name, n in of_each.items()
        ]
    )
    told = Dependence(frame).conclusion()
    assert "components ablated (4)" in told and "random ones (3)" in told and "its layers (1)" in told
    assert "random heads" not in told


def test_scores_recall_and_masks_of_a_bf16_model_have_one_fingerprint():
    before, after = (hooked(plain, torch.bfloat16) for plain in plain_pair("llama"))
    expected = fingerprint(named_weights(after))
    scores = score(before, after, PROMPTS, progress=False)
    assert scores.attrs["after"]["fingerprint"] == expected
    assert scores.attrs["before"]["fingerprint"] == fingerprint(named_weights(before))
    masks = subnetworks.prune(after, PROMPTS, **FAST)
    assert masks.attrs["model"]["fingerprint"] == expected
    events = recall.extraction(after, PROMPTS, progress=False)
    assert events.attrs["model"]["fingerprint"] == expected
