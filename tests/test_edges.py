"""Edges between components: against plain models with hooks, and against programs whose edges are known."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from helpers.comparisons import EXACT
from helpers.interventions import COMPONENTS, Component, baseline_value, run, writing
from helpers.oracle import is_parallel, reward_of
from helpers.tiny import (
    N_LENGTHS,
    PROMPTS,
    assert_unchanged,
    double_throughout,
    hooked_pair,
    plain_pair,
    state_of,
)
from programs import NAMES, Program
from torch import Tensor

import ecstruct
from ecstruct import Edges, InputError, causal_scores, edges, score
from ecstruct.models.delta import WeightDelta
from ecstruct.scores import SCORES
from ecstruct.scores.components import component_names

CHOSEN: dict[str, list[Component]] = {
    "upstream": [(0, None), (0, 1), (1, 2), (1, 3)],
    "informative": [(1, None), (1, 2), (2, 1), (0, None)],
    "downstream": [(1, 0), (2, None), (2, 1)],
}


def named(component: Component) -> str:
    layer, head = component
    return f"MLP {layer}" if head is None else f"head {layer}.{head}"


ROLES = {role: [named(component) for component in its] for role, its in CHOSEN.items()}


@cache
def found(family: str) -> Edges:
    with double_throughout():
        return edges(*hooked_pair(family), PROMPTS, ROLES, progress=False)


def comes_after(family: str, second: Component, first: Component) -> bool:
    in_block = second[1] is None and first[1] is not None and not is_parallel(plain_pair(family)[0])
    return second[0] > first[0] or (second[0] == first[0] and in_block)


# --- Path patching, by whole runs of plain models ---


@cache
def written(family: str) -> list[dict[Component, Tensor]]:
    """What components write under W, by prompt."""
    with double_throughout(), torch.no_grad():
        return [run(plain_pair(family)[0], prompt).written for prompt in PROMPTS]


def reward(family: str, i: int, component: Component, value: Tensor) -> float:
    """R under W, with what a component writes replaced."""
    before, _ = plain_pair(family)
    with writing(before, component, value):
        return float(reward_of(before, PROMPTS[i]))


@cache
def asked_else(family: str, i: int, first: Component | None) -> list[dict[Component, Tensor]]:
    """What components write under W' and under W where W stands, after the first was replaced by y*."""
    before, after = plain_pair(family)
    inputs = run(before, PROMPTS[i]).inputs
    if first is not None:
        y_star = baseline_value("counterfactual", i, [each[first] for each in written(family)])
        with writing(before, first, y_star):
            inputs = run(before, PROMPTS[i]).inputs
    return [run(weights, PROMPTS[i], inputs).written for weights in (after, before)]


def queried(family: str, i: int, first: Component, second: Component) -> float:
    """E(u, i): the informative score that goes when the second is not asked through the first."""
    asked = asked_else(family, i, None) + asked_else(family, i, first)
    rewards = [reward(family, i, second, each[second]) for each in asked]
    return rewards[0] - rewards[1] - (rewards[2] - rewards[3])


@cache
def after_first(family: str, i: int, first: Component) -> dict[Component, Tensor]:
    """What components write under W after the first wrote what it does with its weights of W'."""
    before, _ = plain_pair(family)
    with writing(before, first, asked_else(family, i, None)[0][first]):
        return run(before, PROMPTS[i]).written


def read(family: str, i: int, first: Component, second: Component) -> float:
    """E(i, d): what the second makes of the change of the first."""
    its = after_first(family, i, first)[second]
    return reward(family, i, second, its) - float(reward_of(plain_pair(family)[0], PROMPTS[i]))


@pytest.mark.parametrize("family", ["gpt2", "neox", "olmo2", "olmo-clip"])
@pytest.mark.parametrize(
    ("roles", "expected"), [(SCORES[1::-1], queried), (SCORES[::2], read)], ids=["queried", "read"]
)
def test_edges_are_those_of_plain_models_with_hooks(family, roles, expected):
    seen = found(family).dataset["_to_".join(roles)].isel(prompt=slice(N_LENGTHS))
    values = np.full(seen.shape, np.nan)
    with double_throughout(), torch.no_grad():
        for (a, first), (b, second) in product(*(enumerate(CHOSEN[role]) for role in roles)):
            if comes_after(family, second, first):
                values[a, b] = [expected(family, i, first, second) for i in range(N_LENGTHS)]
    assert np.isnan(values).any() and np.nanmax(abs(values)) > 1e-3
    np.testing.assert_allclose(seen, values, rtol=0, atol=EXACT * np.nanmax(abs(values)))


def test_components_have_their_causal_scores():
    pair = hooked_pair("olmo2")
    with double_throughout():
        causal = causal_scores(*pair, PROMPTS, progress=False)
    for role, its in CHOSEN.items():
        for component, scores in zip(its, found("olmo2").dataset[f"{role}_score"], strict=True):
            layer, head = component
            expected = (causal.mlp if head is None else causal.heads.sel(head=head)).sel(
                score=role, layer=layer
            )
            np.testing.assert_allclose(scores, expected, atol=1e-12)


def test_of_small_changes_the_edges_into_a_component_sum_to_its_downstream_score():
    """All components that change are informative here: a tenth of the change leaves a tenth of the rest."""
    before, after = hooked_pair("olmo")  # in which all weights of a block belong to a component
    delta = WeightDelta.between(before, after).restrict([0, 1])
    every = {"informative": [named(c) for c in COMPONENTS if c[0] < 2], "downstream": ["MLP 2", "head 2.1"]}
    left = []
    for eps in (1e-2, 1e-3):
        with double_throughout():
            its = edges(before, eps * delta, PROMPTS, every, progress=False)
        whole = its.dataset["downstream_score"]
        rest = whole - its.dataset["informative_to_downstream"].sum("informative")
        left.append(float(abs(rest).max() / abs(whole).max()))
    assert left[0] < 0.05 and left[1] == pytest.approx(left[0] / 10, rel=0.2)


# --- Programs ---


@pytest.mark.parametrize("name", NAMES[::2])
def test_the_edges_of_programs_are_those_of_their_own_language_and_no_others(name):
    """Between all components, whatever their roles; LayerNorms shrink what is written by some 1e-8."""
    program = Program(name)
    every = program.description["components"]
    its = edges(*program.pair(), program.prompts, dict.fromkeys(SCORES, every), progress=False).dataset
    known = {(e["role"], e["from"], e["to"]): e["effects"] for e in program.description["edges"]}
    assert known
    for first, second in (("upstream", "informative"), ("informative", "downstream")):
        values = its[f"{first}_to_{second}"]
        for one, other in product(every, every):
            expected = known.get((second, one, other), np.zeros(len(program.prompts)))
            seen = values.sel({first: one, second: other}).fillna(0)
            np.testing.assert_allclose(seen, expected, rtol=0, atol=5e-6)


# --- What is asked for ---


def test_the_strongest_components_are_those_of_the_scores():
    pair = hooked_pair("gpt2")
    scores = score(*pair, PROMPTS, progress=False)
    chosen = edges(*pair, PROMPTS, scores, top=2, progress=False)
    alone = edges(*pair, PROMPTS, top=2, progress=False)
    for role in SCORES:
        names = component_names(scores.top(2, role).query("value > 0"))
        assert chosen.dataset[role].values.tolist() == names
        assert chosen.attrs["options"]["components"][role] == names
    assert chosen.dataset.equals(alone.dataset)


def test_the_reward_of_whole_answers():
    pair, options = hooked_pair("gpt2"), {"reward": "logprob", "answer_tokens": "all"}
    its = edges(*pair, PROMPTS, ROLES, baseline="zero", progress=False, **options)
    causal = causal_scores(*pair, PROMPTS, kinds="informative", baseline="zero", progress=False, **options)
    np.testing.assert_allclose(
        its.dataset["informative_score"].sel(informative="MLP 1"),
        causal.mlp.sel(score="informative", layer=1),
        rtol=1e-5,
        atol=1e-6,
    )
    assert its.attrs["options"]["answer_tokens"] == "all"


def test_models_are_as_they_were():
    pair = hooked_pair("olmo-clip")
    edges(*pair, PROMPTS, ROLES, progress=False)  # from the first call on, models have hooks
    states = [state_of(model) for model in pair]
    edges(*pair, PROMPTS, ROLES, progress=False)
    for model, state in zip(pair, states, strict=True):
        assert_unchanged(model, state)


def test_tables_figures_and_files(tmp_path):
    its = found("gpt2")
    table, nodes = its.table(), its.nodes()
    assert table["effect"].abs().is_monotonic_decreasing
    arrays = [its.dataset[f"{a}_to_{b}"] for a, b in (SCORES[1::-1], SCORES[::2])]
    assert len(table) == sum(int(array.notnull().all("prompt").sum()) for array in arrays)
    row = table[(table["from"] == "MLP 1") & (table["to"] == "MLP 2")].iloc[0]
    mean = float(arrays[1].sel(informative="MLP 1", downstream="MLP 2").mean())
    whole = float(its.dataset["downstream_score"].sel(downstream="MLP 2").mean())
    assert row[["from_role", "to_role"]].tolist() == ["informative", "downstream"]
    assert row["effect"] == pytest.approx(mean) and row["share"] == pytest.approx(mean / whole)
    assert row["low"] <= mean <= row["high"]
    assert nodes.groupby("role", sort=False)["component"].apply(list).to_dict() == ROLES
    of_mlp = nodes[(nodes["role"] == "downstream") & (nodes["component"] == "MLP 2")]["explained"].item()
    assert of_mlp == pytest.approx(float(arrays[1].sel(downstream="MLP 2").mean("prompt").sum()) / whole)
    its.save(tmp_path / "edges.nc")
    again = Edges.load(tmp_path / "edges.nc")
    assert again.dataset.identical(its.dataset) and again.attrs == its.attrs
    strongest = table.iloc[0]
    first = f"{strongest['from']} ({strongest['from_role']}) to {strongest['to']} ({strongest['to_role']})"
    assert its.conclusion().startswith(f"The strongest edges: {first} {strongest['effect']:.2f}, ")


def test_the_figure_has_a_node_per_role_and_a_line_per_edge():
    its = found("gpt2")
    *lines, points = [trace for trace in its.figure.data if trace.x[0] is not None]
    nodes, table = its.nodes(), its.table()
    layers = [int(name.split()[1].split(".")[0]) for name in nodes["component"]]
    assert [round(y) for y in points.y] == layers
    assert [*points.marker.symbol] == ["square" if n[0] == "M" else "circle" for n in nodes["component"]]
    drawn = table[table["effect"].abs() >= 0.05 * table["effect"].abs().max()]
    assert len(lines) == len(drawn)
    place = {
        (r, n): (x, y)
        for r, n, x, y in zip(nodes["role"], nodes["component"], points.x, points.y, strict=True)
    }
    assert len({*place.values()}) == len(nodes)
    widths = []
    for line, (_, edge) in zip(reversed(lines), drawn.iterrows(), strict=True):
        ends = place[edge["from_role"], edge["from"]], place[edge["to_role"], edge["to"]]
        assert ((line.x[0], line.y[0]), (line.x[-1], line.y[-1])) == ends
        red, blue = (int(line.line.color[i : i + 2], 16) for i in (1, 5))
        assert (red > blue) == (edge["effect"] > 0)
        widths.append(line.line.width)
    assert sorted(widths, reverse=True) == widths and widths[0] > 3 * widths[-1]


def test_a_role_may_have_no_components_and_a_single_prompt_no_interval():
    alone = {"prompts": PROMPTS[:1], "baseline": "zero", "progress": False}
    its = edges(*hooked_pair("gpt2"), roles={"informative": ["mlp 1"]}, **alone)
    assert its.table().empty and its.nodes()["component"].tolist() == ["MLP 1"]
    assert "there are no edges" in its.conclusion() and its.figure.data
    some = {"informative": ["mlp 1"], "downstream": ["MLP 2"]}
    table = edges(*hooked_pair("gpt2"), roles=some, **alone).table()
    assert len(table) == 1 and table[["low", "high"]].isna().all(axis=None)


def test_without_a_change_every_edge_is_zero():
    before = hooked_pair("gpt2")[0]
    its = edges(before, before, PROMPTS, ROLES, progress=False)
    assert (its.table()["effect"].abs() < 1e-12).all()
    assert its.conclusion() and its.figure.data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roles": {"upstream": ["MLP 0"]}}, "no component is informative"),
        ({"roles": {"informative": ["MLP 3"]}}, "there is no component 'MLP 3'"),
        (
            {"roles": {"storage": ["MLP 0"]}},
            "there is no role 'storage': use informative, upstream, downstream",
        ),
        ({"top": 0}, "top"),
        ({"baseline": "none"}, "baseline"),
        ({"prompts": []}, "the list of prompts is empty"),
    ],
)
def test_bad_input(options, message):
    arguments = {"prompts": PROMPTS, "progress": False, **options}
    with pytest.raises(InputError, match=message):
        edges(*hooked_pair("gpt2"), **arguments)


def test_scores_of_another_model_are_refused():
    scores = score(*hooked_pair("gpt2"), PROMPTS, progress=False)
    smaller = ecstruct.ExtractiveScores(scores.dataset.isel(head=slice(3)))
    with pytest.raises(InputError, match="3 layers of 3 heads, but this model has 3 of 4"):
        edges(*hooked_pair("gpt2"), PROMPTS, smaller, progress=False)
