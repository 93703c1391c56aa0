"""Informative scores by projection, against autograd on plain models."""

import numpy as np
import pytest
import torch
from helpers.oracle import blocks, first_ids, ids_of
from helpers.tiny import (
    N_HEADS,
    N_LAYERS,
    OTHERS,
    PROMPTS,
    SHAPES,
    double_throughout,
    hooked_pair,
    plain_pair,
)

import ecstruct
from ecstruct import InputError, score
from ecstruct.scores.result import ExtractiveScores


def scored(family: str, **options) -> ExtractiveScores:
    options = {"projections": True, "progress": False, **options}
    with double_throughout():
        return score(*hooked_pair(family), PROMPTS, **options)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, {}) for family in SHAPES + OTHERS),
        *(("gpt2", {"convention": "reference"}), ("neox", {"path_steps": 2})),
    ],
    ids=str,
)
def test_projections_sum_to_the_scores(family, options):
    whole = scored(family, projections=False, **options)
    found = scored(family, **options)
    for name in ("mlp", "heads"):
        expected = whole.dataset[name].sel(score="informative").sum("token")
        largest = float(abs(expected).max())
        np.testing.assert_allclose(
            getattr(found.projections, name).sum("projection"), expected, atol=1e-10 * largest
        )
        for each in whole.dataset["score"].values:
            of = [its.dataset[name].sel(score=each).fillna(0) for its in (found, whole)]
            np.testing.assert_allclose(*of, rtol=0, atol=1e-10 * float(abs(of[1]).max()))
    np.testing.assert_allclose(found.rest.sel(group=whole.rest["group"]), whole.rest, rtol=1e-8, atol=1e-12)


def test_each_is_the_product_of_gradient_and_change_of_its_matrix():
    before, after = plain_pair("llama")
    found = scored("llama", baseline="zero")
    paths = {
        "q": "q_proj",
        "k": "k_proj",
        "v": "v_proj",
        "o": "o_proj",
        "in": "up_proj",
        "gate": "gate_proj",
    }
    paths["out"] = "down_proj"
    for i, prompt in enumerate(PROMPTS):
        before.zero_grad()
        with double_throughout():
            options = before(ids_of(prompt)).logits[0, -1][first_ids(prompt)]
            (options[prompt.options.index(prompt.answer)] - options.mean()).backward()
        for projection, path in paths.items():
            kind = "heads" if projection in "qkvo" else "mlp"
            summed = getattr(found.projections, kind).sel(projection=projection, prompt=i)
            for layer in range(N_LAYERS):
                expected = sum(
                    float((p.grad * (new - p).detach()).sum())
                    for (name, p), new in zip(before.named_parameters(), after.parameters(), strict=True)
                    if f"layers.{layer}." in name and path in name
                )
                assert float(summed.sel(layer=layer).sum()) == pytest.approx(expected, rel=1e-8, abs=1e-12)
        before.zero_grad()


def test_the_columns_of_an_output_projection_are_those_of_its_head():
    before, after = plain_pair("llama")
    found = scored("llama").projections.heads.sel(projection="o")
    for i, prompt in enumerate(PROMPTS):
        before.zero_grad()
        with double_throughout():
            options = before(ids_of(prompt)).logits[0, -1][first_ids(prompt)]
            (options[prompt.options.index(prompt.answer)] - options.mean()).backward()
        for layer, (old, new) in enumerate(zip(blocks(before), blocks(after), strict=True)):
            product = old.o.weight.grad * (new.o.weight - old.o.weight).detach()
            by_head = product.sum(0).view(N_HEADS, -1).sum(1)
            np.testing.assert_allclose(found.sel(prompt=i, layer=layer), by_head, rtol=1e-7, atol=1e-12)
        before.zero_grad()


def test_a_mixture_of_experts_is_one_projection():
    names = scored("mixtral").projections.dataset["projection"].values.tolist()
    assert names == ["q", "k", "v", "o", "experts", "norm"]
    assert scored("gpt2").projections.dataset["projection"].values.tolist() == [
        "q",
        "k",
        "v",
        "o",
        "in",
        "out",
        "norm",
    ]


def test_tables_figures_and_files(tmp_path):
    scores = scored("gpt2", batch_size=2)
    frame = scores.projections.table()
    top = scores.components("informative")
    np.testing.assert_allclose(frame["value"], top["value"], rtol=1e-8)
    np.testing.assert_allclose(frame[["q", "k", "v", "o", "in", "out", "norm"]].sum(axis=1), frame["value"])
    figure = scores.projections.figure
    cells = [np.array(trace.z, float) for trace in figure.data if trace.type == "heatmap"]
    assert [c.shape for c in cells] == [(N_LAYERS, 3), (N_LAYERS, 5)]  # in, out, norm; q, k, v, o, norm
    mlps = frame[frame["kind"] == "mlp"]
    np.testing.assert_allclose(cells[0], mlps[["in", "out", "norm"]], rtol=1e-9)
    scores.save(tmp_path / "scores.nc")
    again = ExtractiveScores.load(tmp_path / "scores.nc")
    assert again.projections.dataset.identical(scores.projections.dataset)
    with pytest.raises(InputError, match="computed without projections: score with projections=True"):
        ecstruct.score(*hooked_pair("gpt2"), PROMPTS, progress=False).projections  # noqa: B018


def test_models_are_as_they_were():
    model, _ = hooked_pair("gemma2")
    before = [p.detach().clone() for p in model.parameters()]
    scored("gemma2")
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
