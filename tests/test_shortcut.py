"""What is left when implications come first: statistics on made-up scores, and one real cell."""

import json
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ecstruct
from ecstruct.experiments import Setup
from ecstruct.experiments.beyond.shortcut_components import CHECKS, SCORES, Shortcut, measure
from ecstruct.experiments.data_ordering import ORDERS, TESTING
from ecstruct.experiments.data_ordering import measure as measure_ordering
from ecstruct.experiments.fictitious import WORDS, continue_pretraining, learn_test_facts, relations
from ecstruct.models.bridge import named_weights

QUICK = Setup(repeats=1, epochs=1, batch_size=40)  # a few steps
CELL: dict[str, Any] = {"seed": 0, "repeat": 0, "words": "novel", "order": "implications first"}

COMPONENTS = {"MLP 0": 0, "MLP 1": 1, "head 0.0": 0, "head 1.0": 1}
PROFILES = {
    "joint": [4.0, 1.0, -2.0, 3.0],
    "facts first": [4.0, 2.0, -1.0, 2.0],
    "implications first": [-1.0, 3.0, 1.0, 0.0],
}
RANKS = {"joint": (9.0, 2.0), "facts first": (9.0, 3.0), "implications first": (9.5, 6.5)}
PUT_BACK = {"joint": [8.0, 3.0], "facts first": [7.0, 4.0], "implications first": [7.0, 9.0]}


def made_up(
    profiles: dict[str, list[float]] = PROFILES, put_back: dict[str, list[float]] = PUT_BACK
) -> Shortcut:
    """Two seeds of two repeats each; noise cancels over the repeats of seed 0 and all is doubled in
    seed 1, which changes neither correlations nor shares."""
    rows = []
    for seed, repeat, words, order in product((0, 1), (0, 1), WORDS, ORDERS):
        at = {"seed": seed, "repeat": repeat, "words": words, "order": order}
        noise = 0.5 if repeat else -0.5
        scored = list(zip(COMPONENTS.items(), profiles[order], strict=True))
        for name, ((component, layer), value) in product(SCORES, scored):
            of = {"measure": name, "component": component, "layer": layer}
            rows.append(at | of | {"value": (1 + seed) * (value + noise)})
        before, after = RANKS[order]
        states = {"rank before": before, "rank after": after + noise}
        states |= {"reward before": 0.0, "reward after": 1.0 + seed}
        rows += [{**at, "measure": what, "value": value} for what, value in states.items()]
        for layer, rank in enumerate(put_back[order]):
            rows.append({**at, "measure": "put back", "layer": layer, "value": rank})
            rows.append({**at, "measure": "alone", "layer": layer, "value": 9.0 - layer})
    return Shortcut(Setup(repeats=2), pd.DataFrame(rows))


def test_what_is_gained_is_positive_when_it_is_better() -> None:
    gain = made_up().gain("novel", "implications first")
    assert gain["rank"]["before"]["seeds"] == [9.5, 9.5]
    assert gain["rank"]["gain"]["seeds"] == [3.0, 3.0]
    assert gain["reward"]["gain"]["seeds"] == [1.0, 2.0]
    assert gain["reward"]["first_order"]["seeds"] == [3.0, 6.0]  # -1 + 3 + 1 + 0, and doubled


def test_profiles_are_compared_by_correlation_and_positive_total() -> None:
    result = made_up()
    stats = result.agreement("novel", "informative", "implications first", "facts first")
    expected = np.corrcoef(PROFILES["implications first"], PROFILES["facts first"])[0, 1]
    assert stats["r"]["seeds"] == pytest.approx([expected, expected])
    assert stats["ratio"]["seeds"] == pytest.approx([4 / 8, 4 / 8])
    half = made_up({**PROFILES, "implications first": [v / 2 for v in PROFILES["facts first"]]})
    stats = half.agreement("novel", "upstream", "implications first", "facts first")
    assert stats["r"]["mean"] == pytest.approx(1) and stats["ratio"]["mean"] == pytest.approx(0.5)


def test_shares_are_of_the_positive_score_and_the_largest_is_first() -> None:
    shares = made_up().shares("known", "implications first", "downstream")
    means = {name: stat["mean"] for name, stat in shares.items()}
    assert list(means)[:2] == ["MLP 1", "head 0.0"]
    assert means == pytest.approx({"MLP 1": 0.75, "head 0.0": 0.25, "MLP 0": 0, "head 1.0": 0})


def test_the_layer_that_matters_costs_most_put_back_and_gains_most_alone() -> None:
    result = made_up()
    assert result.decisive("novel", "implications first", "put back") == (1, 2.5)
    assert result.decisive("novel", "joint", "put back") == (0, 6.0)
    assert result.decisive("novel", "implications first", "alone") == (1, 1.5)  # 9.5 before, 8 alone


def test_what_falls_behind_is_where_facts_first_is_ahead_most() -> None:
    assert made_up().lacking("novel", "downstream") == ("MLP 0", -1.5, 6.0)  # 1.5 times the profiles


def test_the_conclusion_follows_the_numbers() -> None:
    others = np.corrcoef(PROFILES["joint"], PROFILES["facts first"])[0, 1]
    said = made_up().conclusion()
    assert "3.00 (implications first) ranks" in said
    assert f", both below the {others:.2f} between these" in said
    assert "0.50 times that of facts first, with 75% in MLP 1, and MLP 0 falls behind most (-1.50" in said
    assert "After implications first, layer 1 put back costs most (2.50 ranks)" in said
    other = made_up(
        {**PROFILES, "implications first": [4.0, 1.0, -2.0, 1.0]},
        {**PUT_BACK, "implications first": [8.5, 7.0]},
    ).conclusion()
    assert f", not both below the {others:.2f} between these" in other
    assert "After implications first, layer 0 put back costs most (2.00 ranks)" in other


def test_what_it_shows_has_every_order_and_is_json() -> None:
    result = made_up()
    assert len(result.table()) == len(WORDS) * len(ORDERS)
    assert all(len(table) for table in result.tables().values())
    profile: Any = result.profile_figure("known").data[0]
    mlps = list(profile.z)[
        list(dict.fromkeys(row[0][0] for row in profile.customdata)).index("joint: MLPs")
    ]
    assert list(mlps) == pytest.approx([6.0, 1.5])  # the mean of both seeds: 1.5 times the profile
    assert len(result.figures()) == 3
    novel = json.loads(json.dumps(result.results()))["shortcut"]["novel"]
    assert [stat["mean"] for stat in novel["joint"]["layers"]["put_back"]] == [8.0, 3.0]


def test_scores_that_are_nowhere_positive_have_no_shares() -> None:
    for order in ("implications first", "facts first"):
        result = made_up({**PROFILES, order: [-4.0, -2.0, -1.0, -3.0]})
        assert {stat["mean"] for stat in result.shares("novel", order, "informative").values()} == {None}
        assert "–" in set(result.largest_table()[order])
        ratio = "–" if order == "facts first" else "0.00"
        assert f"{ratio} times that of facts first" in result.conclusion()
        json.dumps(result.results(), allow_nan=False)


@pytest.fixture(scope="module")
def cell(organism: TransformerBridge) -> pd.DataFrame:
    return pd.DataFrame(measure(organism, QUICK, **CELL))


def test_the_ranks_are_those_of_the_ordering_experiment(
    organism: TransformerBridge, cell: pd.DataFrame
) -> None:
    rows = [row for row in measure_ordering(organism, QUICK, **CELL) if row["stage"] == TESTING]
    by = cell.set_index("measure")["value"]
    assert [by["rank before"], by["rank after"]] == [row["implication"] for row in rows]


def test_every_component_is_scored_and_every_layer_checked(
    organism: TransformerBridge, cell: pd.DataFrame
) -> None:
    n_layers, n_heads = organism.cfg.n_layers, organism.cfg.n_heads
    for name in SCORES:
        scored: Any = cell[cell["measure"] == name]
        assert scored["component"].nunique() == len(scored) == n_layers * (1 + n_heads)
        assert np.isfinite(scored["value"]).all() and scored["value"].any()
    for check in CHECKS:
        assert cell.loc[cell["measure"] == check, "layer"].tolist() == list(range(n_layers))


def test_a_layer_put_back_is_that_of_the_model_before(
    organism: TransformerBridge, cell: pd.DataFrame
) -> None:
    """By copying weights instead of subtracting changes; with all layers back nothing is left."""
    at: dict[str, Any] = {"seed": 0, "repeat": 0}
    data = relations(organism, QUICK, "novel", **at)
    before = organism
    for documents in (data.train.implications, data.train.facts):
        before = continue_pretraining(before, QUICK, documents, **at).model
    learnt = learn_test_facts(before, QUICK, data, **at)
    n_layers, asked = organism.cfg.n_layers, data.test.implications
    ranks = {check: cell.loc[cell["measure"] == check, "value"].tolist() for check in CHECKS}
    nothing = (learnt.delta - learnt.delta.restrict(range(n_layers))).apply_to(before)
    old = {name: p.detach().clone() for name, p in named_weights(before).items()}
    assert all(torch.equal(p, old[name]) for name, p in named_weights(nothing).items())

    weights = named_weights(learnt.model)
    new = {name: p.detach().clone() for name, p in weights.items()}
    for layer in (0, n_layers - 1):
        for check, kept in zip(CHECKS, (new, old), strict=True):
            other = old if kept is new else new
            with torch.no_grad():
                for name, p in weights.items():
                    p.copy_((other if name.startswith(f"blocks.{layer}.") else kept)[name])
            assert ecstruct.mean_rank(learnt.model, asked) == pytest.approx(ranks[check][layer], abs=1e-9)
