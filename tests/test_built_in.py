"""built_in: which organisms it compares, what its curves are, and what it says of them."""

import json
from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
from helpers.tiny_organisms import few_sentences

from ecstruct import organism
from ecstruct.errors import InputError
from ecstruct.experiments import Rates, Setup, reproduce
from ecstruct.experiments.beyond import without_regulariser
from ecstruct.experiments.beyond.without_regulariser import BuiltIn, built_in, storage_boundary
from ecstruct.experiments.layer_freezing import ROWS
from ecstruct.experiments.two_hop import HOPS
from ecstruct.organism import Phase, Recipe

SETUP = Setup(repeats=1, epochs=1, batch_size=5, rates=Rates.same(1e-2))
RECIPE = Recipe(steps=2, phases=(Phase(1, inventions=1),), batch_size=4)
N_LAYERS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("built_in")
    with pytest.MonkeyPatch.context() as patch:
        few_sentences(patch)
        return out, built_in(SETUP, local_layers=(0,), recipe=RECIPE, out=out, progress=False)


def test_the_organism_is_pretrained_without_the_regulariser(run):
    out, result = run
    (home,) = (out / "organisms").iterdir()
    assert home.name == "seed-0-local-0"
    report = json.loads((home / "pretraining.json").read_text())
    assert report["recipe"] == json.loads(
        json.dumps(replace(RECIPE, local_windows=()).__dict__, default=vars)
    )
    for hop, key in HOPS.items():
        rows = result.frame[result.frame["hop"] == hop]
        assert set(rows["held_out"]) == {report["held_out_accuracy"][key]}


@pytest.mark.parametrize("hop", HOPS)
def test_the_curves_go_from_the_finetuned_model_to_the_one_before(run, hop):
    frame = run[1].frame[run[1].frame["hop"] == hop]
    table = frame[frame["boundary"].isna()].set_index("layers")
    first, others = (frame[frame["layers"] == which].set_index("boundary") for which in ("first", "others"))
    early = len(SETUP.early_and_late(N_LAYERS)[0])
    same = [
        ("None", first, 0),
        ("None", others, N_LAYERS),
        ("All", first, N_LAYERS),
        ("All", others, 0),
        ("Early (post)", first, early),
        ("Late (post)", others, early),
    ]
    assert list(first.index) == list(others.index) == list(range(N_LAYERS + 1))
    for row, curve, boundary in same:
        for kind in ("fact", "implication"):
            assert curve.at[boundary, kind] == table.at[row, kind], (row, kind)
    assert table.at["None", "fact"] != table.at["All", "fact"]  # something was learnt
    assert first["fact"].nunique() > 2


def test_a_finished_run_computes_nothing(run, monkeypatch):
    out, result = run
    monkeypatch.setattr(without_regulariser, "measure", None)
    monkeypatch.setattr(organism, "pretrain", None)
    again = built_in(SETUP, local_layers=(0,), recipe=RECIPE, out=out, progress=False)
    pd.testing.assert_frame_equal(again.frame, result.frame)


def test_another_recipe_is_not_taken_for_this_one(run):
    with pytest.raises(InputError, match="another recipe"):
        built_in(SETUP, local_layers=(0,), recipe=replace(RECIPE, lr=1e-3), out=run[0], progress=False)


def test_as_local_as_the_shipped_organism_and_yet_another_one(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        without_regulariser, "measure", lambda model, *_, **cell: asked.append(cell) or [{"layers": "All"}]
    )
    few_sentences(monkeypatch)
    results = [
        built_in(SETUP, local_layers=(4,), recipe=recipe, out=tmp_path, progress=False)
        for recipe in (None, RECIPE)
    ]
    assert len(asked) == 4
    assert results[0].options == {"local_layers": [4]}
    assert json.loads(json.dumps(results[1].options))["recipe"]["steps"] == 2
    with pytest.raises(InputError, match="built_in does not run with the option 'recipe'"):
        reproduce(["built_in"], options=results[1].config["arguments"]["options"])


def test_the_default_recipe_is_the_shipped_organism(monkeypatch):
    sources = []
    monkeypatch.setattr(
        without_regulariser,
        "measure",
        lambda model, *_, **cell: sources.append(cell) or [{"layers": "All"}],
    )
    result = built_in(SETUP, local_layers=(4,), progress=False)
    shipped = json.loads((organism.checkpoint() / "pretraining.json").read_text())["held_out_accuracy"]
    assert [cell["local"] for cell in sources] == [4, 4]
    assert dict(zip(result.frame["hop"], result.frame["held_out"], strict=True)) == {
        hop: shipped[key] for hop, key in HOPS.items()
    }


def test_what_cannot_be_run():
    with pytest.raises(InputError, match="'gpt2' is pretrained already"):
        built_in(Setup("gpt2", rates=Rates.same(1e-4)))
    with pytest.raises(InputError, match="local_layers has 7"):
        built_in(SETUP, local_layers=(7,))
    with pytest.raises(InputError, match="pass out="):
        built_in(SETUP, local_layers=(0,), progress=False)


# --- what it says --------------------------------------------------------------------------------

AFTER, BEFORE = 1.0, 9.0


def made(stored_in, after=AFTER):
    """A result whose implications are stored in one layer, by hop, local layers and seed."""
    rows = []
    for (hop, local, seed), layer in stored_in.items():

        def ranks(put_back, layer=layer):
            return {"implication": BEFORE if layer in put_back else after, "fact": 0.0}

        kept = {"None": (), "All": range(6), "Early (post)": range(4), "Late (post)": range(4, 6)}
        kept |= {row: kept[row.replace("pre", "post")] for row in ("Early (pre)", "Late (pre)")}
        cell = {"seed": seed, "repeat": 0, "local": local, "hop": hop, "held_out": 0.5 + local / 10}
        rows += [{**cell, "layers": row, **ranks(kept[row])} for row in ROWS]
        for b in range(N_LAYERS + 1):
            rows.append({**cell, "layers": "first", "boundary": b, **ranks(range(b))})
            rows.append({**cell, "layers": "others", "boundary": b, **ranks(range(b, N_LAYERS))})
    return BuiltIn(Setup(seeds=2), pd.DataFrame(rows))


def stored(first, second, *, seeds=(0, 1), local=(0, 4)):
    """The same layers for all organisms."""
    layers = {"first-hop": first, "second-hop": second}
    return {(hop, k, seed): layers[hop] for hop, k, seed in product(HOPS, local, seeds)}


def test_statistics_are_those_of_the_rows():
    result = made(stored(1, 5))
    first, second = (result.results()["built_in"][key]["0"] for key in HOPS.values())
    assert (first["contrast"]["mean"], second["contrast"]["mean"]) == (BEFORE - AFTER, AFTER - BEFORE)
    assert first["boundary"] == {"of_mean": 2, "seeds": [2, 2]}
    assert second["boundary"] == {"of_mean": 6, "seeds": [6, 6]}
    assert first["held_out"]["mean"] == 0.5
    json.dumps(result.results())


def test_the_conclusion_follows_the_rows():
    as_in_paper, reversed_ = made(stored(1, 5)).conclusion(), made(stored(5, 1)).conclusion()
    assert as_in_paper.count("the sign of the contrast survives.") == 2
    assert "+8.00 (2 of 2 seeds have the paper's sign), the boundary of storage 2" in as_in_paper
    assert reversed_.count("does not survive") == 2
    assert "-8.00 (0 of 2 seeds have the paper's sign), the boundary of storage 6" in reversed_
    assert made(stored(1, 5), after=5.0).conclusion().count("says nothing") == 2
    torn = stored(1, 5) | {("first-hop", 0, 1): 5}
    assert made(torn).conclusion().count("survives in some seeds only") == 1
    assert "is the same, 2, for all" in as_in_paper
    moved = stored(1, 5) | {("first-hop", 4, seed): 3 for seed in (0, 1)}
    assert "lies between 2 and 4" in made(moved).conclusion()


def test_figures_and_table_show_the_rows():
    result = made(stored(1, 5))
    figure, twin = result.figures().values()
    assert [list(line.y) for line in figure.data if line.mode != "lines"] == [
        [AFTER, AFTER, *[BEFORE] * 5],
        [AFTER, AFTER, *[BEFORE] * 5],
        [*[AFTER] * 6, BEFORE],
        [*[AFTER] * 6, BEFORE],
    ]
    assert [line.y[0] for line in twin.data if line.mode != "lines"] == [BEFORE] * 4
    table = result.table()
    assert list(table["local layers"]) == [0, 4, "paper"] * 2
    assert list(table["boundary"]) == ["2", "2", "", "6", "6", ""]
    assert list(table["Early (post)"]) == ["9.00 ± 0.00"] * 2 + ["8.40"] + ["1.00 ± 0.00"] * 2 + ["1.85"]


def test_the_boundary_is_where_half_is_lost():
    assert storage_boundary([0, 4.9, 5.1, 10]) == 2
    assert storage_boundary([0, 5.0, 5.0, 10]) == 3
    assert storage_boundary([9, 3, 9]) is None
