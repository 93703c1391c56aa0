"""Where to train, edit and merge: against what peft, mergekit and EasyEdit do with what they are given."""

from functools import cache

import numpy as np
import pytest
import torch
from helpers import classifiers
from helpers.command_line import refused
from helpers.oracle import ids_of, reward_of, token_id
from helpers.tiny import PROMPTS, double_throughout, hooked_pair, plain_pair

import ecstruct
from ecstruct import Suggestion, suggest
from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.sublayers import weights_of

KINDS = ("gpt2", "neox", "llama", "gemma2", "olmo2", "gptj")
"""Fused and separate projections, norms before, after and shared."""


@cache
def scored(family: str) -> ecstruct.ExtractiveScores:
    return ecstruct.score(*hooked_pair(family), PROMPTS, progress=False)


@cache
def suggested(family: str, share: float = 0.5) -> Suggestion:
    return suggest(*hooked_pair(family), PROMPTS, scores=scored(family), share=share, progress=False)


def test_a_unit_has_the_scores_of_its_components_and_the_highest_are_suggested() -> None:
    found = suggested("llama")
    frame = scored("llama").to_dataframe().query("score == 'informative'")
    frame["sublayer"] = frame["kind"].map({"mlp": "mlp", "head": "attn"})
    per_prompt = frame.groupby(["layer", "sublayer", "prompt"])["value"].sum()
    means = per_prompt.groupby(["layer", "sublayer"]).mean().sort_values(ascending=False)
    table = found.table()
    np.testing.assert_allclose(table["score"], means.to_numpy(), rtol=1e-9)
    assert list(zip(table["layer"], table["sublayer"], strict=True)) == list(means.index)
    assert found.chosen == list(means.index[:3]) and table["suggested"].tolist() == [True] * 3 + [False] * 3
    assert len(suggested("llama", 0.99).chosen) == 6 and len(suggested("llama", 0.01).chosen) == 1


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_before_finetuning_a_sublayer_has_the_product_of_a_sign_step_and_the_rewards_gradient(
    family: str,
) -> None:
    before, plain = hooked_pair(family)[0], plain_pair(family)[0]
    facts = [ecstruct.Prompt(f"that {p.text}", p.answer.split()[-1]) for p in PROMPTS]
    with double_throughout():
        found = suggest(before, ecstruct.FactSet(facts, PROMPTS), progress=False)
        expected = np.zeros((len(PROMPTS), 6))
        for i, (fact, asked) in enumerate(zip(facts, PROMPTS, strict=True)):
            weights = {name: p for name, p in plain.named_parameters() if ".layers." in name}
            loss = -plain(ids_of(fact)).logits[0, -1].log_softmax(-1)[token_id(fact.answer)]
            of_loss, of_reward = (
                dict(zip(weights, torch.autograd.grad(value, [*weights.values()]), strict=True))
                for value in (loss, reward_of(plain, asked))
            )
            product = {n: float((-of_loss[n].sign() * of_reward[n]).sum()) for n in weights}
            tensors = found.attrs["checkpoint"]["tensors"]
            for j, sublayer in enumerate((layer, kind) for layer in range(3) for kind in ("attn", "mlp")):
                names = [
                    name for name in weights_of([sublayer], tensors) if not name.endswith("attn.o.bias")
                ]
                expected[i, j] = sum(product[of] for of in {tensors[name] for name in names})  # no head's
    values = found.dataset["informative"].stack(of=("layer", "sublayer")).values
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-9 * abs(expected).max())
    assert found.lora()["target_modules"] and "learning rate" in found.figure.layout.yaxis.title.text
    refused(found.mergekit, "no finetuned model")
    refused(
        lambda: suggest(before, ecstruct.FactSet(facts, PROMPTS), scores=scored(family)), "leave them out"
    )
    refused(lambda: suggest(before, before), "no prompts")


def test_stability_is_the_share_of_draws_in_which_a_unit_is_suggested() -> None:
    found = suggested("llama")
    values = found.dataset["informative"].values.reshape(len(PROMPTS), -1)
    draws = np.random.default_rng(3).multinomial(len(PROMPTS), [1 / len(PROMPTS)] * len(PROMPTS), size=50)
    often = np.zeros(6)
    for draw in draws:
        often[np.argsort(-(draw @ values))[:3]] += 1
    table = found.table(resamples=50, seed=3).sort_values(["layer", "sublayer"])
    np.testing.assert_allclose(table["stability"], often / 50)
    alone = ecstruct.score(*hooked_pair("llama"), PROMPTS[:1], baseline="zero", progress=False)
    single = suggest(*hooked_pair("llama"), PROMPTS[:1], scores=alone, progress=False)
    assert single.table()["stability"].isna().all() and single.chosen


def test_prompts_that_disagree_are_told() -> None:
    dataset = suggested("llama").dataset
    values = dataset["informative"].transpose("prompt", "layer", "sublayer")
    each_its_own = np.eye(len(PROMPTS), 6).reshape(values.shape)
    all_alike = np.broadcast_to(np.arange(6.0).reshape(values.shape[1:]), values.shape)
    for scores, told in ((each_its_own, True), (all_alike, False)):
        found = Suggestion(dataset.assign(informative=values.copy(data=scores)))
        assert ("So prompts disagree: take more" in found.conclusion()) == told


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("family", KINDS)
def test_peft_adapts_the_projections_of_the_suggested_units(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    found, plain = suggested(family), plain_pair(family)[0]
    arguments = found.lora(r=2, alpha=4)
    adapted = get_peft_model(type(plain)(plain.config), LoraConfig(**arguments))
    names = {
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    assert names == set(arguments["target_modules"])
    # An adapter on all of them changes the weights of these sublayers, and none of others.
    weights = named_weights(hooked_pair(family)[0])
    changed = {name for name in weights if _in(found.attrs["checkpoint"]["tensors"][name], names)}
    assert changed == {n for n in weights_of(found.chosen, weights) if weights[n].ndim == 2}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("family", KINDS)
def test_peft_gives_every_sublayer_a_rank_by_its_score(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    found, plain = suggested(family), plain_pair(family)[0]
    adapted = get_peft_model(type(plain)(plain.config), LoraConfig(**found.lora(4, 12, by_score=True)))
    layers = {
        name.removeprefix("base_model.model.") + ".weight": module
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    scores = found.dataset["informative"].mean("prompt")
    mean = float(scores.clip(0).mean())
    tensors = found.attrs["checkpoint"]["tensors"]
    for layer in scores["layer"].values:
        for kind in scores["sublayer"].values:
            expected = 4 * max(float(scores.sel(layer=layer, sublayer=kind)), 0) / mean
            names = {tensors[name] for name in weights_of([(layer, kind)], tensors)} & set(layers)
            assert names
            for module in map(layers.__getitem__, names):
                assert abs(module.r["default"] - min(max(expected, 1), 16)) <= 0.5 + 1e-9
                assert module.scaling["default"] == 3
    assert len({module.r["default"] for module in layers.values()}) > 1


def _in(tensor: str, modules: set[str]) -> bool:
    return tensor.endswith(".weight") and tensor.removesuffix(".weight") in modules


@pytest.mark.parametrize("family", KINDS)
def test_mergekit_takes_the_suggested_units_from_the_finetuned_model(family: str) -> None:
    """By mergekit's rule: the first filter that is part of a tensor's name counts, and a list of values is
    interpolated over layers."""
    found, (before, after) = suggested(family), hooked_pair(family)
    config = found.mergekit()
    assert config["merge_method"] == "task_arithmetic"
    weights = config["models"][0]["parameters"]["weight"]
    n_layers = before.cfg.n_layers
    moved = set()
    for name, tensor in found.attrs["checkpoint"]["tensors"].items():
        value = next(each["value"] for each in weights if each.get("filter", "") in tensor)
        if isinstance(value, list):
            layer = next(int(part) for part in tensor.split(".") if part.isdigit())
            value = np.interp(layer / (n_layers - 1), np.linspace(0, 1, len(value)), value)
        assert value in (0, 1)
        moved |= {name} if value else set()
    assert moved == set(weights_of(found.chosen, named_weights(before)))
    delta = WeightDelta.between(before, after)
    merged = named_weights(delta.restrict(names=sorted(moved)).apply_to(before))
    state = {name: dict(named_weights(after if name in moved else before))[name] for name in merged}
    assert all(torch.allclose(merged[name], state[name], atol=1e-12) for name in merged)


@pytest.mark.parametrize("family", KINDS)
def test_easyedit_finds_every_module_that_it_is_told_of(family: str) -> None:
    found, plain = suggested(family, 0.9), plain_pair(family)[0]
    told = found.easyedit()
    assert told["layers"] == sorted(layer for layer, sublayer in found.chosen if sublayer == "mlp")
    weights = named_weights(hooked_pair(family)[0])
    for layer in told["layers"]:
        rewritten = plain.get_submodule(told["rewrite_module_tmp"].format(layer))
        out = weights[f"blocks.{layer}.mlp.out.weight"]
        assert sorted(rewritten.weight.shape) == sorted(out.shape)
        parts = {name: plain.get_submodule(told[f"{name}_module_tmp"].format(layer)) for name in _PARTS}
        assert rewritten in [*parts["mlp"].modules()] and parts["mlp"] in [*parts["layer"].modules()]
        assert parts["attn"] in [*parts["layer"].modules()] and rewritten not in [*parts["attn"].modules()]
    assert plain.get_submodule(told["lm_head_module"]) is plain.get_output_embeddings()
    assert plain.get_submodule(told["ln_f_module"]) not in [*parts["layer"].modules()]


_PARTS = ("layer", "mlp", "attn")


def test_a_mixture_of_experts_has_no_projection_to_edit() -> None:
    found = suggested("mixtral", 0.9)
    assert not found.edits_mlps
    refused(found.easyedit, "none among the suggested", "lora()")
    assert found.lora()["target_modules"]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_classifiers_are_trained_and_not_edited(kind: str) -> None:
    found = suggest(*classifiers.hooked_pair(kind), classifiers.PROMPTS, share=0.9, progress=False)
    assert found.lora()["task_type"] == "SEQ_CLS" and found.lora()["target_modules"]
    refused(found.easyedit, "language model")


def test_saved_and_read(tmp_path) -> None:
    found = suggested("gpt2")
    found.save(tmp_path / "s.nc")
    read = Suggestion.load(tmp_path / "s.nc")
    assert read.chosen == found.chosen and read.freeze() == found.freeze()
    assert read.mergekit() == found.mergekit() and read.conclusion() == found.conclusion()
    assert [trace.name for trace in found.figure.data if trace.showlegend] == ["attention", "MLP"]


def test_what_is_refused() -> None:
    pair = hooked_pair("llama")
    for share in (0, 1, 2.0, "half"):
        refused(lambda share=share: suggest(*pair, PROMPTS, share=share), "share")
    organism = ecstruct.load("organism", device="cpu")
    refused(lambda: suggest(organism, organism, PROMPTS, scores=scored("llama")), "3 layers", "6")
