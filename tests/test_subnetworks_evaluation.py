"""Evaluation of subnetworks, against models from which the components were taken."""

import copy
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from helpers.oracle import blocks, head_columns, ids_of
from helpers.tiny import N_HEADS, N_LAYERS, PROMPTS, hooked, hooked_pair, plain_pair

import ecstruct
from ecstruct import Prompt
from ecstruct.errors import InputError
from ecstruct.plots.subnetworks import accuracy_lines, spread
from ecstruct.subnetworks import Masks, Reference, by_template, effective_size, evaluate, reference_values

FAMILY = "llama"  # without a bias in its output projections: without weights they write nothing
OTHER_OPTIONS = [
    Prompt(PROMPTS[0].text, "Thai", ("Thai", "Dutch", "Zulu"), template="a"),
    Prompt(PROMPTS[1].text, "Old Norse", ("Thai", "Old Norse"), aliases=("Dutch",), template="b"),
]


def masks_of(ablation: str = "zero", n: int = 3) -> Masks:
    rng = np.random.default_rng(1)
    heads, mlp = rng.random((n, N_LAYERS, N_HEADS)) < 0.7, rng.random((n, N_LAYERS)) < 0.7
    values = reference_values(hooked_pair(FAMILY)[0], PROMPTS, ablation=ablation)
    return Masks.of(heads, mlp, seeds=range(10, 10 + n), reference=values)


def without(heads: np.ndarray, mlp: np.ndarray):
    """The plain model, with zeros for the weights of what writes."""
    plain = copy.deepcopy(plain_pair(FAMILY)[0])
    with torch.no_grad():
        for layer, block in enumerate(blocks(plain)):
            for head in np.flatnonzero(~heads[layer]):
                head_columns(block.o, block.o.weight, int(head)).zero_()
            if not mlp[layer]:
                block.out.weight.zero_()
    return plain


@pytest.mark.parametrize("prompts", [PROMPTS, OTHER_OPTIONS], ids=["one template", "two"])
def test_subnetworks_are_models_without_the_weights(prompts: list[Prompt]) -> None:
    model, masks = hooked_pair(FAMILY)[0], masks_of()
    found = evaluate(model, masks, prompts, progress=False)
    full = plain_pair(FAMILY)[0]
    assert found["seed"].values.tolist() == [10, 11, 12] and found["rank"].dims == ("seed", "prompt")
    for seed, heads, mlp in zip(masks.seeds, masks.heads.values, masks.mlp.values, strict=True):
        plain, here = without(heads, mlp), found.sel(seed=seed)
        np.testing.assert_array_equal(here["rank"], ecstruct.ranks(hooked(plain), prompts))
        for i, prompt in enumerate(prompts):
            with torch.no_grad():
                p, q = (m(ids_of(prompt)).logits[0, -1].log_softmax(-1) for m in (full, plain))
            kl = (p.exp() * (p - q)).sum().item()
            assert here["kl"].values[i] == pytest.approx(kl, rel=1e-5, abs=1e-6)
            assert bool(here["agrees"].values[i]) == (p.argmax() == q.argmax()).item()
        assert here["mean_rank"].item() == here["rank"].values.mean()
        assert here["accuracy"].item() == (here["rank"].values == 0).mean()
        assert here["mean_kl"].item() == pytest.approx(here["kl"].values.mean())
        assert here["agreement"].item() == here["agrees"].values.mean()
    np.testing.assert_array_equal(found["full_rank"], ecstruct.ranks(model, prompts))
    assert found["full_mean_rank"].item() == ecstruct.mean_rank(model, prompts)
    assert found["text"].values.tolist() == [p.text for p in prompts]


def test_how_rows_are_batched_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = hooked_pair(FAMILY)[0], masks_of("mean", 5)
    whole = evaluate(model, masks, PROMPTS, progress=False)
    for tokens in (1, 20, 50):
        monkeypatch.setattr("ecstruct.engine.plan.TOKENS_PER_BATCH", tokens)
        parts = evaluate(model, masks, PROMPTS, progress=False)
        xr.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-9)


def test_everything_kept_is_the_full_model() -> None:
    model = hooked_pair(FAMILY)[0]
    every = masks_of().like(np.ones((1, N_LAYERS, N_HEADS)), np.ones((1, N_LAYERS)))
    found = evaluate(model, every, PROMPTS, progress=False)
    np.testing.assert_array_equal(found["rank"].values[0], found["full_rank"])
    assert np.abs(found["kl"].values).max() < 1e-12 and found["agreement"].item() == 1


def test_what_cannot_be_evaluated(caplog: pytest.LogCaptureFixture) -> None:
    model = hooked_pair(FAMILY)[0]
    with pytest.raises(InputError, match="do not say what takes the place"):
        evaluate(model, Masks.of(np.ones((1, 3, 4)), np.ones((1, 3))), PROMPTS)
    values = masks_of().reference
    with pytest.raises(InputError, match=r"are of \(layers, heads\) = \(3, 4\), and the masks of \(2, 4\)"):
        Masks.of(np.ones((1, 2, 4)), np.ones((1, 2)), reference=values)
    shallow = Masks.of(
        np.ones((1, 2, 4)), np.ones((1, 2)), reference=Reference(values.heads[:2], values.mlp[:2])
    )
    with pytest.raises(InputError, match=r"\(2, 4, 8, 32\), and this one has \(3, 4, 8, 32\)"):
        evaluate(model, shallow, PROMPTS)
    with pytest.raises(InputError, match="no other option"):
        evaluate(model, masks_of(), [Prompt(PROMPTS[0].text, "Thai")])
    pruned = masks_of()
    pruned.dataset.attrs["model"] = {"fingerprint": "another"}
    with caplog.at_level(logging.WARNING):
        evaluate(model, pruned, PROMPTS, progress=False)
    assert "not the model that was pruned" in caplog.text


# --- Effective size ---


def measured(accuracy: list[float], full: float) -> xr.Dataset:
    return xr.Dataset({"accuracy": ("seed", accuracy), "full_accuracy": full})


def test_effective_size_is_what_the_largest_good_sparsity_leaves() -> None:
    by_sparsity = {
        0.2: measured([0.80, 0.84], 0.85),
        0.4: measured([0.80, 0.80], 0.85),
        0.7: measured([0.79, 0.85], 0.85),
        0.9: measured([0.40, 0.90], 0.85),
    }
    assert effective_size(by_sparsity) == pytest.approx(30)
    assert effective_size(by_sparsity, within=0.5) == pytest.approx(10)
    assert effective_size({0.4: by_sparsity[0.4]}) == 100
    with pytest.raises(InputError, match="no evaluations"):
        effective_size({})
    with pytest.raises(InputError, match=r"the sparsity 50 is no share"):
        effective_size({50: by_sparsity[0.4]})


# --- The figure ---


def evaluation(ranks: list[float], full: float) -> xr.Dataset:
    variables = {"mean_rank": ("seed", ranks), "accuracy": ("seed", ranks)}
    alone = {"full_mean_rank": full, "full_accuracy": full}
    return xr.Dataset({**variables, **alone}, {"seed": np.arange(len(ranks))})


def test_the_spread_has_a_point_per_subnetwork_and_a_star() -> None:
    facts, implications = evaluation([0.1, 0.2], 0.0), evaluation([3.0, 5.0], 0.5)
    drawn: Any = spread({"50%": facts, "<b>": facts}, {"50%": implications, "<b>": implications})
    assert [trace.name for trace in drawn.data] == ["50%", "&lt;b&gt;", "full model"]
    assert (drawn.data[0].x, drawn.data[0].y) == ((0.1, 0.2), (3.0, 5.0))
    assert drawn.data[0].text == ("seed 0", "seed 1")
    assert (drawn.data[2].x, drawn.data[2].y) == ((0.0,), (0.5,))
    assert "mean rank" in drawn.layout.xaxis.title.text
    assert len(spread(facts, implications).data) == 2
    facts, implications = measured([0.8, 0.9], 0.95), measured([0.1, 0.6], 0.7)
    both = [its.assign_coords(seed=[0, 1]) for its in (facts, implications)]
    drawn = spread(*both, measure="accuracy")
    assert (drawn.data[0].x, drawn.data[0].y) == ((0.8, 0.9), (0.1, 0.6))
    assert (drawn.data[1].x, drawn.data[1].y) == ((0.95,), (0.7,))
    assert "accuracy" in drawn.layout.yaxis.title.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, {}), "no subnetworks"),
        (({"a": evaluation([1], 0)}, {"b": evaluation([1], 0)}), "groups in-domain are"),
        ((evaluation([1], 0), evaluation([1, 2], 0)), "not of the same seeds"),
    ],
)
def test_what_has_no_spread(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spread(*arguments)


# --- By template ---


def test_accuracy_by_template_is_that_of_its_prompts_alone() -> None:
    model, masks = hooked_pair(FAMILY)[0], masks_of()
    prompts = [replace(p, template=name) for name in ("b", "a") for p in PROMPTS]
    prompts = [*prompts[:1], *prompts[len(PROMPTS) :], *prompts[1 : len(PROMPTS)]]
    found = by_template(evaluate(model, masks, prompts, progress=False))
    assert found["template"].tolist() == ["b", "a"]
    for row in found.to_dict(orient="records"):
        own = evaluate(model, masks, [p for p in prompts if p.template == row["template"]], progress=False)
        accuracies = own["accuracy"].values
        assert row["prompts"] == own.sizes["prompt"] == len(PROMPTS)
        assert row["full model"] == pytest.approx(own["full_accuracy"].item())
        assert row["mean"] == pytest.approx(accuracies.mean())
        assert (row["lowest"], row["highest"]) == pytest.approx((accuracies.min(), accuracies.max()))


def test_accuracy_is_drawn_against_sparsity() -> None:
    sets = {
        "in-domain": {0.5: measured([0.7, 0.9], 1.0), 0.2: measured([0.9, 1.0], 1.0)},
        "generalization": {0.5: measured([0.1, 0.3], 0.6), 0.2: measured([0.5, 0.5], 0.6)},
    }
    figure = accuracy_lines(sets)
    drawn = {trace.name: trace for trace in figure.data if trace.mode != "lines" or trace.fill is None}
    assert drawn["in-domain"].y == pytest.approx([1.0, 0.95, 0.8])
    assert drawn["generalization"].y == pytest.approx([0.6, 0.5, 0.2])
    assert figure.layout.xaxis.ticktext == ("0%", "20%", "50%")
    with pytest.raises(InputError, match=r"'generalization' has the sparsities \[0.5\], not \[0.2, 0.5\]"):
        accuracy_lines({**sets, "generalization": {0.5: measured([0.1], 0.6)}})
    with pytest.raises(InputError, match="no evaluations"):
        accuracy_lines({})
