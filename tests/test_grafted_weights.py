"""The change of a component against plain Hugging Face models whose slices are replaced."""

import re
from functools import cache

import numpy as np
import pytest
import torch
from helpers.grafted import (
    ALL,
    SOME,
    N,
    logits,
    of_plain,
    replaced,
)
from helpers.tiny import (
    FAMILIES,
    N_HEADS,
    N_LAYERS,
    OTHERS,
    hooked_pair,
    plain_pair,
)

from ecstruct import WeightDelta
from ecstruct.grafting.weight_sets import WeightSet, of_components
from ecstruct.models.hooked import HookedView


@cache
def view_and_delta(family: str) -> tuple[HookedView, WeightDelta]:
    before, after = hooked_pair(family)
    return HookedView(before), WeightDelta.between(before, after)


@cache
def plain_logits(family: str) -> dict[str, torch.Tensor]:
    return dict(zip(("W", "W'"), map(of_plain, plain_pair(family)), strict=True))


GRAFTED = (*(f for f in FAMILIES if f not in ("olmo", "llama", "qwen2", "gemma3")), *OTHERS)
"""Alike ones left out."""


@pytest.mark.parametrize("which", SOME)
@pytest.mark.parametrize("family", GRAFTED)
def test_a_graft_and_a_reversion_replace_slices_of_the_plain_model(family, which):
    view, delta = view_and_delta(family)
    before, after = plain_pair(family)
    part = of_components(view, delta, WeightSet.of(*SOME[which]))
    plain = plain_logits(family)
    whole = float((plain["W'"] - plain["W"]).abs().max())
    for change, target, source, start in ((part, before, after, "W"), (delta - part, after, before, "W'")):
        changed = change.apply_to(view.model)
        found = logits(lambda ids, run=changed: run(ids, return_type="logits", use_cache=False))
        expected = of_plain(replaced(target, source, *SOME[which]))
        assert (found - expected).abs().max() < 1e-10 * whole
        assert which == "none" or (expected - plain[start]).abs().max() > 1e-3 * whole


# --- Parts of a change ---

REST = re.compile(r"(pos_)?embed\.|ln_final\.|unembed\.|.*\.attn\.o\.bias|.*_post\.")


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_all_components_together_are_everything_but_the_rest(family):
    view, delta = view_and_delta(family)
    every = of_components(view, delta, WeightSet.of(*ALL)).tensors
    expected = {name: t for name, t in delta.tensors.items() if not REST.match(name)}
    assert every.keys() == expected.keys() and len(every) < len(delta.tensors)
    assert all(torch.equal(every[name], t) for name, t in expected.items())


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_a_part_and_what_is_left_are_the_whole(family):
    view, delta = view_and_delta(family)
    rng = np.random.default_rng(0)
    for _ in range(3):
        chosen = rng.random(N_LAYERS) < 0.5, rng.random((N_LAYERS, N_HEADS)) < 0.5
        part = of_components(view, delta, WeightSet.of(*chosen))
        left = delta - part
        for name, t in delta.tensors.items():
            its = part.tensors.get(name, torch.zeros_like(t))
            assert torch.equal(its + left.tensors[name], t)
            assert torch.equal(its, torch.where(its != 0, t, 0.0))
        assert of_components(view, left, WeightSet.of(*chosen)).tensors == {}


@pytest.mark.parametrize("family", ["olmo-clip", "gpt2", "neox", "olmo2", "qwen3", "gptj"])
def test_every_weight_comes_along_with_as_many_components_as_share_it(family):
    view, delta = view_and_delta(family)
    total = WeightDelta({})
    for i in range(N):
        mask = np.arange(N) == i
        total += of_components(
            view, delta, WeightSet.of(mask[:N_LAYERS], mask[N_LAYERS:].reshape(N_LAYERS, N_HEADS))
        )
    for name, t in delta.tensors.items():
        times = 0 if REST.match(name) else 1
        if family in ("olmo-clip", "olmo2", "qwen3") and re.search(r"attn\.[kv]", name):
            times = N_HEADS // 2
        if ".ln1." in name or (family == "qwen3" and re.search(r"attn\.[qk]_norm", name)):
            times = N_HEADS + (family == "gptj")  # and the MLP
        torch.testing.assert_close(
            total.tensors.get(name, torch.zeros_like(t)), times * t, rtol=1e-12, atol=0
        )
