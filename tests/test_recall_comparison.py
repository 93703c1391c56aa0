"""Before against after, and the figures and files of what recall finds."""

from html import unescape
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers import tiny
from helpers.recall_cases import SUBJECTS, span_of
from helpers.tiny import N_LAYERS, assert_unchanged, single_pair, state_of
from scipy.stats import spearmanr

from ecstruct import InputError, finetune, load, mean_rank, recall, score
from ecstruct.bootstrap import Bootstrap
from ecstruct.facts import Prompt, first_hop
from ecstruct.organism.world import World
from ecstruct.plots import knockout_heatmap, knockout_lines, layer_lines, patched_lines
from ecstruct.plots.style import token_label
from ecstruct.report.recall import _strongest, _summary, recall_report
from ecstruct.scores.permutation import rank_correlation

TEXTS = {name: [*tiny.LANGUAGES[i % 4].split(), "people"] for i, name in enumerate(tiny.NAMES)}


@pytest.fixture(scope="module")
def compared() -> recall.Comparison:
    before, after = single_pair("llama")
    for model in (before, after):
        mean_rank(model, SUBJECTS)  # blocks get hooks of their own in the first run
    states = [state_of(model) for model in (before, after)]
    attributes = recall.Attributes.from_texts(TEXTS, before)
    found = recall.compare(before, after, SUBJECTS, attributes, window=2, progress=False)
    for model, state in zip((before, after), states, strict=True):
        assert_unchanged(model, state)
    return found


def test_each_side_is_what_its_model_gives(compared: recall.Comparison) -> None:
    before, after = single_pair("llama")
    for model, side in ((before, compared.before), (after, compared.after)):
        expected = recall.knockout(model, SUBJECTS, window=2, token="answer", progress=False)
        xr.testing.assert_identical(side.knockout, expected)
        attributes = recall.Attributes.from_texts(TEXTS, model)
        xr.testing.assert_identical(
            side.rate, recall.attributes_rate(model, SUBJECTS, attributes, progress=False)
        )
    at = [side.sublayers.attrs["options"]["at_layer"] for side in (compared.before, compared.after)]
    assert at[0] == at[1]


def test_differences(compared: recall.Comparison) -> None:
    difference = compared.difference()
    assert difference.keys() == compared.after.parts().keys()
    knocked = compared.after.knockout.values - compared.before.knockout.values
    np.testing.assert_array_equal(difference["knockout"].values, knocked)
    events = [side.extraction["mlp"].values.astype(int) for side in (compared.before, compared.after)]
    np.testing.assert_array_equal(difference["extraction"]["mlp"].values, events[1] - events[0])
    share = compared.after.heads["share"].values - compared.before.heads["share"].values
    np.testing.assert_array_equal(difference["heads"]["share"].values, share)


def test_scores_beside_recall(compared: recall.Comparison) -> None:
    before, after = single_pair("llama")
    scores = score(before, after, SUBJECTS, baseline="mean", progress=False)
    mlp, downstream = np.zeros((5, N_LAYERS)), np.zeros((5, N_LAYERS, tiny.N_HEADS))
    for i, prompt in enumerate(SUBJECTS):
        n_tokens = len(prompt.text.split()) + 1
        informative = scores.mlp.sel(score="informative", prompt=i)
        mlp[i] = sum(informative.sel(token=token).values for token in span_of(prompt))
        downstream[i] = scores.heads.sel(score="downstream", prompt=i, token=n_tokens - 1).values
    joined = compared.joined
    rising = joined["informative MLPs and rising attributes"]
    np.testing.assert_allclose(rising["x"], mlp.mean(0), rtol=1e-6)
    rate = compared.after.rate.sel(position="subject-last").values
    np.testing.assert_allclose(rising["y"][1:], np.nanmean(rate[:, 1:] - rate[:, :-1], 0), atol=1e-12)
    assert np.isnan(rising["y"][0])
    lost = joined["informative MLPs and attributes lost without them"]
    change = np.nanmean(compared.after.sublayers.sel(part="mlp").values, 0)
    np.testing.assert_allclose(lost["y"][: len(change)], -change, atol=1e-12)
    heads = joined["downstream heads and heads that map to attributes"]
    np.testing.assert_allclose(heads["x"], downstream.mean(0).ravel(), rtol=1e-6)
    assert heads["name"][5] == "head 1.1"
    assert heads["y"][5] == compared.after.heads["share"].values[1, 1]
    attention = joined["downstream attention and extraction"]
    np.testing.assert_allclose(attention["x"], downstream.mean(0).sum(1), rtol=1e-6)
    events = compared.after.extraction["attention"].values[0]
    np.testing.assert_allclose(attention["y"], [100 * events[:, n].mean() for n in range(N_LAYERS)])
    agreement = compared.agreement().set_index("question")
    assert (
        agreement.loc["downstream heads and heads that map to attributes", "n"] == heads.dropna().shape[0]
    )


def test_rank_correlation() -> None:
    x, y = np.array([1.0, 2, 3, 3, 7, 9]), np.array([2.0, 1, 5, 6, 6, 8])
    rho, chance = rank_correlation(x, y, 10_000, seed=0)
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    at_least = [abs(spearmanr(x, other).statistic) >= rho - 1e-9 for other in list(permutations(y))[::7]]
    assert chance == pytest.approx(np.mean(at_least), abs=0.03)
    assert all(np.isnan(rank_correlation(x, np.ones(6), 10, seed=0)))
    two = recall.Comparison(*[None] * 3, {"of two": pd.DataFrame({"x": x[:2], "y": y[:2]})})  # pyright: ignore
    assert two.agreement()[["rho", "chance"]].isna().all(axis=None)


def test_without_attributes() -> None:
    before, after = single_pair("gpt2")
    found = recall.compare(before, after, SUBJECTS, token="answer", progress=False)
    assert found.after.parts().keys() == {"knockout", "extraction", "readings"}
    assert [*found.joined] == ["downstream attention and extraction"]
    # 9 layers of the paper are more than there are.
    assert found.before.knockout.attrs["options"]["window"] == N_LAYERS
    assert found.before.knockout["token"].values.tolist() == ["Dutch", "Old", "Thai", "Zulu", "Dutch"]


def test_files(compared: recall.Comparison, tmp_path) -> None:
    for name, part in compared.after.parts().items():
        recall.save(part, tmp_path / f"{name}.nc")
        again = recall.load(tmp_path / f"{name}.nc")
        assert type(again) is type(part)
        assert again.attrs == part.attrs
        xr.testing.assert_equal(again, part)
        if name == "extraction":
            assert again["mlp"].dtype == bool
    with pytest.raises(InputError, match="there is no file"):
        recall.load(tmp_path / "none.nc")
    (tmp_path / "damaged.nc").write_bytes((tmp_path / "rate.nc").read_bytes()[:2000])
    with pytest.raises(InputError, match="damaged or no netCDF file"):
        recall.load(tmp_path / "damaged.nc")
    compared.scores.save(tmp_path / "scores.nc")
    with pytest.raises(InputError, match="but not one of ecstruct"):
        recall.load(tmp_path / "scores.nc")


def test_lines_are_means_over_prompts(compared: recall.Comparison) -> None:
    figure = knockout_lines({"before": compared.before.knockout, "after": compared.after.knockout})
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == ["subject", "non-subject", "last"] * 2
    values = compared.after.knockout.sel(group="subject").values
    np.testing.assert_allclose(lines[3].y, values.mean(0))
    assert lines[3].xaxis == "x2"
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    low, high = Bootstrap(5, ci=0.95, resamples=1000, seed=0).interval(values)
    np.testing.assert_allclose(bands[3].y, [*high, *low[::-1]])
    assert lines[0].line.color == lines[3].line.color != lines[1].line.color
    one = knockout_lines(compared.after.knockout.isel(prompt=[2]))
    assert not [trace for trace in one.data if trace.fill]


def test_lines_leave_out_prompts_without_a_value(compared: recall.Comparison) -> None:
    rate = compared.after.rate
    figure = layer_lines(rate, lines="position", y="rate")
    others = next(
        trace for trace in figure.data if trace.name == "subject-others" and trace.mode != "lines"
    )
    (longest,) = [i for i, p in enumerate(SUBJECTS) if len(p.subject.split()) == 3]
    np.testing.assert_allclose(others.y, rate.sel(prompt=longest, position="subject-others").values)
    with pytest.raises(InputError, match="no dimension 'group'"):
        layer_lines(rate, lines="group", y="")
    with pytest.raises(InputError, match="no arrays"):
        layer_lines({}, lines="group", y="")


def test_heatmap_of_tokens() -> None:
    model, _ = single_pair("llama")
    found = recall.knockout_tokens(model, SUBJECTS[2], window=2, progress=False)
    figure = knockout_heatmap({"one": found, "<other>": found})
    panels = [trace for trace in figure.data if trace.type == "heatmap"]
    for panel in panels:
        np.testing.assert_allclose(
            np.asarray(panel.z, dtype=float), found.transpose("layer", "token").values
        )
        assert panel.zmin == -panel.zmax
        assert "+1e+02" not in panel.colorbar.ticktext
    assert "<other>" not in figure.to_json()
    with pytest.raises(InputError, match="give what recall"):
        knockout_heatmap(recall.knockout(model, SUBJECTS, window=2, progress=False))


def test_report(compared: recall.Comparison, tmp_path) -> None:
    model, _ = single_pair("llama")
    tokens = {"before": recall.knockout_tokens(model, SUBJECTS[2], window=2, progress=False)}
    for name, found in (("two", compared), ("one", compared.after)):
        recall_report(tmp_path / f"{name}.html", found, tokens, "ecstruct replay", {"window": 2})
    two, one = ((tmp_path / f"{name}.html").read_text() for name in ("two", "one"))
    for title in (
        "Attention knockout",
        "Subject enrichment",
        "Attribute extraction",
        "What layers say",
        "Extraction heads",
    ):
        assert f"<h2>{title}</h2>" in one
        assert f"<h2>{title}</h2>" in two
    assert "Extractive scores and recall" in two
    assert "Extractive scores and recall" not in one
    assert "After finetuning, blocking attention" in two


def test_the_summary_names_a_group_as_it_is_called() -> None:
    changes = xr.DataArray(
        # Of the second prompt the token is so unlikely that any change of it is one by many times.
        [[[-1.0, -2.0], [-3.0, -40.0]], [[9e5, 9e5], [-9e5, 9e5]]],
        dims=("prompt", "group", "layer"),
        coords={"group": ["subject", "non-subject"], "probability": ("prompt", [0.5, 1e-6])},
        attrs={"options": {"token": "answer"}},
    )

    def said(knockout: xr.DataArray) -> str:
        return _summary({"": SimpleNamespace(knockout=knockout)})  # pyright: ignore[reportArgumentType]

    assert said(changes) == (
        "Blocking attention from the non-subject tokens to the last one around layer 1 changes the "
        "token's probability (0.25 on average) by −40%."
    )
    assert said(changes[1:]) == (
        "The answer's first token has a probability of 1e-06 on average: what blocking attention changes "
        "of it is noise."
    )


def test_panels_of_knockout_have_a_scale_each_and_fit_a_page(compared: recall.Comparison) -> None:
    one = compared.after.knockout
    figure = knockout_lines({"before": one / 1000, "after": one, "more": one.isel(layer=[0] * 30)})
    assert figure.layout.yaxis2.range[1] > 50 * figure.layout.yaxis.range[1]
    assert figure.layout.width <= 1250
    assert figure.layout.yaxis2.showticklabels
    shared = layer_lines({"before": one, "after": 1000 * one}, lines="group", y="y")
    assert shared.layout.yaxis.range == shared.layout.yaxis2.range


def test_unlikely_tokens_do_not_set_the_scale(compared: recall.Comparison) -> None:
    """A token of probability 1e-6 becomes many times as likely when attention is blocked."""
    usual, wild = compared.after.knockout.clip(-100, 50), 0 * compared.after.knockout
    wild[0, 0, 1], usual[0, 0, 1] = 30_000, -80
    for effects in (wild, xr.concat([usual, wild], "prompt")):
        figure = knockout_lines(effects)
        low, high = figure.layout.yaxis.range
        assert -111 < low < high < 111
        assert all(
            trace.cliponaxis for trace in figure.data
        )  # what leaves the panel is not drawn over others
        assert len({trace.name for trace in figure.data if trace.showlegend}) == 3
    model, _ = single_pair("llama")
    found = recall.knockout_tokens(model, SUBJECTS[2], window=2, progress=False)
    found[0, 0] = 300
    (cells,) = [trace for trace in knockout_heatmap(found).data if trace.type == "heatmap"]
    assert (cells.zmin, cells.zmax) == (-100, 100) and cells.colorbar.ticktext[-1] == "≥ +100"
    assert "+300%" in str(cells.text)


def test_the_logit_lens_stands_beside_the_heatmap() -> None:
    model, _ = single_pair("llama")
    found = recall.knockout_tokens(model, SUBJECTS[2], window=2, progress=False)
    layers = np.arange(30) % found.sizes["layer"]
    deep = found.isel(layer=layers).assign_coords(layer=np.arange(30))
    figure = knockout_heatmap({"before": deep, "after": deep})
    texts = [trace for trace in figure.data if trace.type == "scatter"]
    assert len(texts) == 2 and list(texts[0].y) == list(range(30))
    p = 100 * float(deep["lens_probability"][3])
    assert texts[0].text[3] == f" {token_label(str(deep['lens'].values[3]))} {p:.0f}%"
    up = figure.layout.yaxis.domain
    inner = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    assert (up[1] - up[0]) * inner / 30 > 11.9  # a line of text fits a layer
    widest = 4.8 * max(len(unescape(text)) for text in texts[0].text)
    across = figure.layout.width - figure.layout.margin.l - figure.layout.margin.r
    gap = figure.layout.xaxis2.domain[0] - figure.layout.xaxis.domain[1]
    assert min(gap * across, figure.layout.margin.r) > widest  # beside the cells, not over others


def test_patched_groups_by_the_layer_that_they_are_patched_from(compared: recall.Comparison) -> None:
    events = compared.after.extraction
    layers = events.attrs["options"]["patched"]
    figure = patched_lines(events)
    lines = [trace for trace in figure.data if (trace.mode or "").startswith("lines+")]
    assert [line.name for line in lines] == ["not patched", "subject", "non-subject", "last"] * 2
    for part, its in (("attention", lines[:4]), ("mlp", lines[4:])):
        share = 100 * events[part].any("layer").mean("prompt")
        assert list(its[3].x) == layers
        np.testing.assert_allclose(
            its[3].y, [share.sel(condition=f"patched last from {layer}") for layer in layers]
        )
        np.testing.assert_allclose(its[0].y, float(share.sel(condition="none")))
    bare = recall.extraction(single_pair("llama")[0], SUBJECTS, progress=False)
    with pytest.raises(InputError, match="nothing is patched"):
        patched_lines(bare)


def test_strongest_effects_are_split_by_subjects_at_position_zero() -> None:
    effect = xr.DataArray(
        [[[-10.0, -90.0]], [[-50.0, -20.0]], [[-70.0, 0.0]]],
        dims=("prompt", "group", "layer"),
        coords={
            "group": ["subject"], "subject_at": ("prompt", [0, 2, 4]),
            "probability": ("prompt", [0.5, 0.5, 0.5]),
            "first_layer": ("layer", [0, 1]), "last_layer": ("layer", [0, 1]),
        },
    )  # fmt: skip
    models: Any = {"": SimpleNamespace(knockout=effect)}
    found = _strongest(models)
    assert found[["subject", "prompts", "layer", "change, %"]].values.tolist() == [
        ["all", 3, 0, pytest.approx(-130 / 3)],
        ["at position 0", 1, 1, -90.0],
        ["later", 2, 0, -60.0],
    ]
    assert _strongest({"": SimpleNamespace(knockout=effect[1:])})["subject"].tolist() == ["all"]


def test_finetuned_facts_of_the_organism_travel_the_road_of_pretrained_ones() -> None:
    organism, facts = load("organism", device="cpu"), first_hop().facts
    tuned = finetune(organism, facts, progress=False).model
    people = [person for person in World.build().people if not person.held_out][:40]
    homes = [Prompt(f"{p.name} lives in", p.home.name, subject=p.name) for p in people]
    for model, asked in ((organism, homes), (tuned, facts)):
        found = recall.knockout(model, asked, window=2, progress=False).mean("prompt")
        assert found.sel(group="subject", layer=5) < -95
        assert found.sel(group="subject", layer=slice(0, 3)).min() > -5
        assert abs(found.sel(group="non-subject")).max() < 5


def test_markers_are_for_few_layers() -> None:
    def modes(n_layers: int) -> set[str]:
        changes = xr.DataArray(np.zeros((1, n_layers, 1)), dims=("prompt", "layer", "group"))
        named = changes.assign_coords(layer=np.arange(n_layers), group=["subject"])
        return {trace.mode for trace in layer_lines(named, lines="group", y="y").data}

    assert (modes(6), modes(80)) == ({"lines+markers"}, {"lines"})
