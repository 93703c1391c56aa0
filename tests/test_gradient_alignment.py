"""Alignment of gradients: against plain autograd on the plain model, by component, and one step."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.comparisons import EXACT, HEADS, LAYERS, assert_same
from helpers.figures import titles_of
from helpers.oracle import ids_of, reward_of, token_id
from helpers.tiny import (
    LANGUAGES,
    OTHERS,
    PROMPTS,
    SHAPES,
    assert_unchanged,
    double_throughout,
    hooked_pair,
    plain_pair,
    state_of,
)
from helpers.untied import InformativeOracle, informative_along, untie, untied
from scipy.stats import permutation_test
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

import ecstruct
from ecstruct import Alignment, FactSet, InputError, Prompt
from ecstruct.facts import Derivation
from ecstruct.scores.alignment_result import FORMS
from ecstruct.scores.components import component_names

FACTS = [
    Prompt(f"that {name} speak", answer, LANGUAGES)
    for name, answer in zip(
        ("Ada", "Bo Li", "Cy de Wit", "Di", "Ed Roy"), (*LANGUAGES, "Dutch"), strict=True
    )
]
"""As many as prompts; one answer has two tokens."""

FROZEN = ("wte", "wpe", "embed", "lm_head")


def loss_of(plain: PreTrainedModel, fact: Prompt) -> torch.Tensor:
    """The mean cross-entropy of an answer's tokens, teacher-forced, of one prompt on its own."""
    answer = [token_id(word) for word in fact.answer.split()]
    ids = torch.cat([ids_of(fact), torch.tensor([answer[:-1]], dtype=torch.long)], 1)
    logits = plain(input_ids=ids, use_cache=False).logits[0, -len(answer) :]
    return cross_entropy(logits, torch.tensor(answer))


def gradients(plain: PreTrainedModel, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient by all weights that finetuning trains."""
    weights = {n: p for n, p in plain.named_parameters() if not any(part in n for part in FROZEN)}
    found = torch.autograd.grad(value, [*weights.values()], allow_unused=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))


def directions(family: str) -> dict[str, list[dict[str, torch.Tensor]]]:
    plain = plain_pair(family)[0]
    with double_throughout():
        sgd = [gradients(plain, -loss_of(plain, fact)) for fact in FACTS]
    v = {name: torch.stack([g[name] ** 2 for g in sgd]).mean(0) for name in sgd[0]}
    return {
        "sgd": sgd,
        "sign": [{name: torch.sign(g) for name, g in of.items()} for of in sgd],
        "adam": [{name: g / (v[name].sqrt() + 1e-8) for name, g in of.items()} for of in sgd],
    }


def moved(plain: PreTrainedModel, direction: dict[str, torch.Tensor]) -> PreTrainedModel:
    after = copy.deepcopy(plain)
    weights = dict(after.named_parameters())
    with torch.no_grad():
        for name, step in direction.items():
            weights[name].add_(step)
    return after


def oracle(family: str, direction: dict[str, torch.Tensor]) -> InformativeOracle:
    """<dR/dW_C, d> of the prompts, where no two components share a weight."""
    plain = plain_pair(family)[0]
    after = moved(plain, direction)
    return informative_along(plain, after, untied(family, 0), untie(after))


@cache
def aligned(family: str, **options: Any) -> Alignment:
    with double_throughout():
        return ecstruct.alignment(hooked_pair(family)[0], FACTS, PROMPTS, progress=False, **options)


def assert_is(found: Alignment, form: str, fact: int, expected: InformativeOracle) -> None:
    its = found.dataset.sel(form=form, fact=fact)
    assert_same(its["mlp"], expected.mlp + expected.ln2, 10 * EXACT)
    assert_same(its["heads"], expected.heads + expected.ln1, 10 * EXACT)
    rest = {name: value for name, value in expected.rest.items() if value.any()}
    assert rest.keys() == set(its["group"].values)
    for name, value in rest.items():
        assert_same(its["rest"].sel(group=name), value, 10 * EXACT)
    assert_same(found.total.sel(form=form, fact=fact), expected.total, 10 * EXACT)


@pytest.mark.tl3
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_form_is_that_of_plain_autograd(family):
    found = aligned(family)
    for fact, (form, by_fact) in enumerate(directions(family).items()):
        assert_is(found, form, fact, oracle(family, by_fact[fact]))


@pytest.mark.tl3
@pytest.mark.parametrize("family", [*SHAPES, *OTHERS])
def test_components_of_every_family_get_their_shares(family):
    assert_is(aligned(family), "adam", 1, oracle(family, directions(family)["adam"][1]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_cosine_is_that_of_the_whole_gradients(family):
    found, plain = aligned(family), plain_pair(family)[0]
    with double_throughout():
        learnt = [gradients(plain, -loss_of(plain, fact)) for fact in FACTS]
        asked = [gradients(plain, reward_of(plain, prompt)) for prompt in PROMPTS]
    flat = [np.stack([torch.cat([t.flatten() for t in g.values()]) for g in of]) for of in (learnt, asked)]
    lengths = np.outer(*(np.linalg.norm(of, axis=1) for of in flat))
    assert_same(found.total.sel(form="cosine"), flat[0] @ flat[1].T / lengths, EXACT)
    heads = found.heads.sel(form=["sgd", "cosine"])
    assert_same(heads.sel(form="cosine"), heads.sel(form="sgd") / lengths[..., None, None], EXACT)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_small_step_of_sgd_changes_the_loss_of_the_implication_as_predicted(family):
    """With the reward that is minus the loss of an implication's answer, all of its tokens."""
    lr, plain = 1e-7, plain_pair(family)[0]
    predicted = aligned(family, reward="logprob", answer_tokens="all").total.sel(form="sgd")
    with double_throughout():
        step = gradients(plain, -loss_of(plain, FACTS[1]))
        after = moved(plain, {name: lr * g for name, g in step.items()})
        for i, prompt in enumerate(PROMPTS):
            n_tokens = len(prompt.answer.split())
            change = n_tokens * (loss_of(plain, prompt) - loss_of(after, prompt)).item() / lr
            assert change == pytest.approx(float(predicted[1, i]), rel=1e-4, abs=1e-7)


def test_nothing_depends_on_batches_and_the_model_stays_as_it_was(monkeypatch):
    model = hooked_pair("llama")[0]
    state, found = state_of(model), aligned.__wrapped__("llama")
    assert_unchanged(model, state)
    monkeypatch.setattr("ecstruct.scores.gradient_alignment.prompts_per_batch", lambda prompts: 2)
    monkeypatch.setattr("ecstruct.scores.gradient_alignment.fits_in_memory", lambda *_: False)
    other = aligned.__wrapped__("llama")
    for name in ("mlp", "heads", "rest"):
        assert_same(other.dataset[name], found.dataset[name])


def planted(noise: float = 0.0) -> Alignment:
    """An alignment of five facts and implications whose own pairs have 1 more than others."""
    found = aligned("gpt2")
    dataset = found.dataset.copy(deep=True)
    rng = np.random.default_rng(0)
    values = np.eye(5) + noise * rng.standard_normal((5, 5))
    for name in ("mlp", "heads", "rest"):
        dataset[name] = 0.0 * dataset[name]
    dataset["mlp"][..., 1] = values
    dataset["heads"][..., 2, 3] = 2 * values
    return Alignment(dataset)


def test_the_contrast_of_own_and_other_pairs():
    contrast = planted().contrast(permutations=999)
    assert (contrast["own"] == 3).all() and (contrast["others"] == 0).all()
    assert (contrast["first"] == 1).all() and (contrast["chance"] == 1 / 5).all()
    assert contrast["p"].between(1 / 1000, 30 / 1000).all()  # 1 of 120 orders is as good
    frame = planted().components("sgd")
    frame.index = component_names(frame)
    assert frame.loc["MLP 1", ["own", "others"]].tolist() == [1, 0]
    assert frame.loc["head 2.3", ["own", "others"]].tolist() == [2, 0]
    assert frame["own"].sum() == 3 and len(frame) == len(LAYERS) * (1 + len(HEADS))
    without = planted()
    without.dataset["mlp"][0, 2, 2, 1] = np.nan  # a gradient of zero has no cosine
    assert np.isnan(without.contrast(permutations=9).loc["cosine", "p"])
    refused = planted()
    with pytest.raises(InputError, match="permutations=0 give no p-value"):
        refused.contrast(permutations=0)
    with pytest.raises(InputError, match="form='adagrad' is unknown: use one of cosine, sgd, sign, adam"):
        refused.components("adagrad")  # type: ignore[arg-type]


def test_p_is_that_of_a_permutation_test():
    found = planted(noise=1.5)
    values = found.total.sel(form="sgd").values
    exact: Any = permutation_test(
        (np.arange(5),),
        lambda order: values[np.arange(5), order].sum(),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    p = found.contrast(permutations=20_000).loc["sgd", "p"]
    assert 0.02 < exact.pvalue < 0.98 and p == pytest.approx(exact.pvalue, abs=0.015)


def test_implications_belong_to_the_facts_that_they_follow_from():
    derived = [Derivation((0, 2)), Derivation((1,)), Derivation(())]
    data = FactSet(FACTS[:3], PROMPTS[:3], derivations=derived)
    found = ecstruct.alignment(hooked_pair("gpt2")[0], data, progress=False)
    expected = np.zeros((3, 3), bool)
    expected[[0, 2, 1], [0, 0, 1]] = True
    np.testing.assert_array_equal(found.pairs, expected)
    assert found.contrast().loc["sgd", "chance"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    total = found.total.sel(form="sign").values
    assert found.contrast().loc["sign", "own"] == pytest.approx(total[expected].mean())
    assert found.contrast().loc["sign", "others"] == pytest.approx(total[~expected].mean())


def test_a_single_pair_has_no_others():
    found = ecstruct.alignment(hooked_pair("gpt2")[0], FACTS[:1], PROMPTS[:1], progress=False)
    assert np.isnan(found.contrast()["others"]).all() and (found.contrast()["p"] == 1).all()
    assert "others" not in found.conclusion()


def test_it_is_saved_loaded_and_shown(tmp_path):
    found = aligned("llama")
    found.save(tmp_path / "alignment.nc")
    loaded = Alignment.load(tmp_path / "alignment.nc")
    for name in found.dataset.variables:
        np.testing.assert_array_equal(loaded.dataset[name], found.dataset[name])
    assert loaded.attrs == found.attrs
    assert found.attrs["options"] == {"reward": "logit_diff", "answer_tokens": "first"}
    assert list(found.table()["form"]) == list(FORMS)
    for form, row in found.contrast().iterrows():
        for column, spec in (("own", ".3g"), ("others", ".3g"), ("first", ".0%"), ("p", ".2g")):
            assert f"{row[column]:{spec}} ({form})" in found.conclusion()
    figure: Any = found.figure
    by_layer = found.mlp.sel(form="cosine").where(found.pairs).mean(("fact", "implication"))
    assert figure.data[0].name == "MLPs, own" and figure.data[0].y == pytest.approx(by_layer.values)
    assert titles_of(figure)[: len(FORMS)] == [f"<b>{form}</b>" for form in FORMS]


def test_bad_input_is_refused():
    model = hooked_pair("gpt2")[0]
    with pytest.raises(InputError, match=r"2 implications cannot be paired with 5 facts one to one"):
        ecstruct.alignment(model, FACTS, PROMPTS[:2])
    with pytest.raises(InputError, match="there are no implications: pass implications="):
        ecstruct.alignment(model, FACTS)
    with pytest.raises(InputError, match="no implication follows from any of the facts"):
        ecstruct.alignment(model, FactSet(FACTS, PROMPTS[:1], derivations=[Derivation(())]))
    with pytest.raises(InputError, match="answer_tokens='all' goes with reward='logprob' only"):
        ecstruct.alignment(model, FACTS, PROMPTS, answer_tokens="all")
    with pytest.raises(InputError, match="reward"):
        ecstruct.alignment(model, FACTS, PROMPTS, reward="logits")  # type: ignore[arg-type]

    def endless(logits, batch):
        return logits.sum(1) * np.inf

    with pytest.raises(InputError, match="losses or rewards are NaN or infinite"):
        ecstruct.alignment(model, FACTS, PROMPTS, reward=endless, progress=False)
