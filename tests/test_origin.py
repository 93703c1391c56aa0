"""origin: that only the order differs, that it is measured where it says, and what it says of it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from helpers.tiny_organisms import few_sentences
from safetensors.torch import load_file

from ecstruct import organism
from ecstruct.errors import InputError
from ecstruct.evaluate import mean_rank
from ecstruct.experiments import Rates, Setup
from ecstruct.experiments.beyond import origin_in_pretraining
from ecstruct.experiments.beyond.origin_in_pretraining import (
    FACTS,
    IMPLICATIONS,
    ORDERS,
    Origin,
    origin,
    recipes,
)
from ecstruct.experiments.extractive_scores import REGIONS
from ecstruct.experiments.two_hop import HOPS
from ecstruct.facts import first_hop, second_hop
from ecstruct.finetuning import finetune
from ecstruct.models.loading import load
from ecstruct.models.provenance import source_of
from ecstruct.organism import Recipe, World
from ecstruct.organism.sentences import MIXTURE, training_sentences
from ecstruct.scores.engine import score

SETUP = Setup(repeats=1, epochs=1, batch_size=20, rates=Rates.same(1e-3))
RECIPE = Recipe(batch_size=4)
ARGUMENTS = {"steps": 4, "snapshots": 2, "recipe": RECIPE, "progress": False}


# --- the orders ----------------------------------------------------------------------------------


def expected(recipe):
    """How often each category is drawn, on average."""
    drawn = dict.fromkeys(MIXTURE, 0.0)
    for phase in recipe.phases:
        assert phase.categories and phase.inventions == 0
        total = sum(MIXTURE[name] for name in phase.categories)
        for name in phase.categories:
            drawn[name] += phase.steps_of(recipe.steps) * recipe.batch_size * MIXTURE[name] / total
    return drawn


def test_every_category_is_drawn_as_often_in_every_order():
    for drawn in (exact := [expected(r) for r in recipes(Recipe(steps=900)).values()]):
        assert drawn == pytest.approx(exact[0])
        assert sum(drawn.values()) == pytest.approx(900 * Recipe().batch_size)
        assert {name for name, times in drawn.items() if times} == {*FACTS, *IMPLICATIONS}
    # 2400 steps do not share out evenly: one of the phases is a third of a step too long.
    for drawn in (nearly := [expected(r) for r in recipes(Recipe(steps=2400)).values()]):
        assert drawn == pytest.approx(nearly[-1], rel=0.5 / 1000)


def test_only_the_order_differs():
    made = recipes(Recipe(steps=2400))
    assert list(made) == list(ORDERS)
    assert len({replace(recipe, phases=()) for recipe in made.values()}) == 1
    lengths = {order: [p.steps_of(2400) for p in recipe.phases] for order, recipe in made.items()}
    assert lengths["facts first"] == lengths["mixed"] == lengths["implications first"][::-1]
    assert [p.categories for p in made["facts first"].phases] == [FACTS, IMPLICATIONS]
    assert [p.categories for p in made["implications first"].phases] == [IMPLICATIONS, FACTS]


def test_facts_have_one_hop_and_implications_two():
    trained = training_sentences(World.build(0), 0)
    assert {name for name, sentences in trained.items() if sentences} == {*FACTS, *IMPLICATIONS}
    for names, two_hops in ((FACTS, False), (IMPLICATIONS, True)):
        for name in names:
            assert all(("the city" in s.prompt) is two_hops for s in trained[name]), name


# --- a run ---------------------------------------------------------------------------------------


def row(hop, rank, downstream):
    """A row of one hop in which nothing but these numbers is of interest."""
    return {
        **{"hop": hop, "fact_before": 8.0, "implication_before": 8.0, "fact": 0.0, "implication": rank},
        **{"held_out": 0.5, "informative": 3.0, "upstream": 1.0, "downstream": downstream},
        **{name: 0.5 if region.hop == hop else None for name, region in REGIONS.items()},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that measures the last snapshot of one order only, and the source of every cell."""
    out, measure, sources = tmp_path_factory.mktemp("origin"), origin_in_pretraining.measure, {}

    def measured(model, setup, **cell):
        at = cell["order"], cell["step"]
        sources[at] = Path(source_of(model)).relative_to(out / "organisms").as_posix()
        if at == ("implications first", 4):
            return measure(model, setup, **cell)
        return [row(hop, 4.0, 2.0) for hop in HOPS]

    with pytest.MonkeyPatch.context() as patch:
        few_sentences(patch)
        patch.setattr(origin_in_pretraining, "measure", measured)
        return out, origin(SETUP, out=out, **ARGUMENTS), sources


def test_snapshots_are_where_they_should_be(run):
    out, result, sources = run
    assert sources == {
        (order, step): f"seed-0-{key}/snapshots/step-{step}"
        for order, key in ORDERS.items()
        for step in (2, 4)
    }
    homes = {f"seed-0-{key}": out / "organisms" / f"seed-0-{key}" for key in ORDERS.values()}
    assert {home.name for home in (out / "organisms").iterdir()} == set(homes)
    for home in homes.values():
        kept = {path.name: path for path in (home / "snapshots").iterdir()}
        assert set(kept) == {"step-2", "step-4"}
        half, end, final = (
            load_file(path / "model.safetensors") for path in (kept["step-2"], kept["step-4"], home)
        )
        assert all(end[name].equal(final[name]) for name in final)
        assert not half["lm_head.weight"].equal(final["lm_head.weight"])
    assert result.steps == [2, 4]
    assert result.options == {"steps": 4, "snapshots": 2, "recipe": asdict(RECIPE)}
    assert len(result.frame) == len(ORDERS) * 2 * len(HOPS)
    assert result.boundaries == {"facts first": 2, "implications first": 2, "mixed": 2}


def test_a_row_is_measured_on_its_snapshot(run):
    out, result, _ = run
    home = out / "organisms" / "seed-0-implications_first"
    accuracy = json.loads((home / "pretraining.json").read_text())["held_out_accuracy"]
    rows = result.frame[(result.frame["order"] == "implications first") & (result.frame["step"] == 4)]
    model = load(home)
    for hop, data in (("first-hop", first_hop(0)), ("second-hop", second_hop(0))):
        (found,) = rows[rows["hop"] == hop].to_dict("records")
        tuned = finetune(model, data.facts, lr=1e-3, epochs=1, batch_size=20, seed=0, progress=False).model
        assert found["held_out"] == accuracy[HOPS[hop]]
        assert found["implication_before"] == mean_rank(model, data.implications)
        assert found["implication"] == mean_rank(tuned, data.implications)
        assert (found["fact_before"], found["fact"]) == (
            mean_rank(model, data.facts),
            mean_rank(tuned, data.facts),
        )
        if hop == "first-hop":
            published = {"upstream": "surrogate", "propagation": "gradient", "convention": "reference"}
            scores = score(model, tuned, data.implications, **published, progress=False)
            slots = scores.aggregate(like="reference")
            for mass in ("informative", "upstream", "downstream"):
                positive = [
                    float(values.sel(score=mass).clip(min=0).sum()) for values in (slots.mlp, slots.heads)
                ]
                assert found[mass] == pytest.approx(sum(positive))
        for name, region in REGIONS.items():
            assert (0 <= found[name] <= 1) if region.hop == hop else pd.isna(found[name])


def test_a_finished_run_computes_nothing(run, monkeypatch):
    out, result, _ = run
    monkeypatch.setattr(origin_in_pretraining, "measure", None)
    monkeypatch.setattr(organism, "pretrain", None)
    again = origin(SETUP, out=out, **ARGUMENTS)
    pd.testing.assert_frame_equal(again.frame, result.frame)
    json.dumps(again.results())
    assert len(again.figures()) == 3
    assert len(again.table()) == len(ORDERS) * len(HOPS)


def test_another_run_is_not_taken_for_this_one(run):
    with pytest.raises(InputError, match="another recipe"):
        origin(SETUP, out=run[0], **{**ARGUMENTS, "steps": 6})
    with pytest.raises(InputError, match="no snapshot of step 1"):
        origin(SETUP, out=run[0], **{**ARGUMENTS, "snapshots": 4})


def test_what_cannot_be_run():
    with pytest.raises(InputError, match="'gpt2' is pretrained already"):
        origin(Setup("gpt2", rates=Rates.same(1e-4)))
    with pytest.raises(InputError, match="steps=1"):
        origin(SETUP, steps=1)
    for snapshots in (0, 5):
        with pytest.raises(InputError, match=f"snapshots={snapshots}"):
            origin(SETUP, steps=4, snapshots=snapshots)
    with pytest.raises(InputError, match="pass out="):
        origin(SETUP, **ARGUMENTS)


# --- what it says --------------------------------------------------------------------------------


def made(by_order):
    """A result with these ranks of implications by order, at steps 10, 20...; 8 before finetuning."""
    rows = [
        {
            **{"seed": seed, "repeat": 0, "order": order, "step": 10 * (i + 1)},
            **row(hop, rank + seed / 10, 2.0 + i),
        }
        for seed in (0, 1)
        for order, ranks in by_order.items()
        for i, rank in enumerate(ranks)
        for hop in HOPS
    ]
    return Origin(
        Setup(seeds=2), pd.DataFrame(rows), {"facts first": 15, "implications first": 5, "mixed": 15}
    )


PAPER = {"facts first": [8, 3, 1], "implications first": [8, 7, 6], "mixed": [3.9, 2, 2]}


def test_the_conclusion_follows_the_rows():
    said = made(PAPER).conclusion()
    for hop in HOPS:
        assert (
            f"{hop} implications below half of their rank before it first at step 20 with facts first"
            in said
        )
    assert said.count("at no snapshot with implications first (it ends at 6.05)") == 2
    assert said.count("first at step 10 with mixed") == 2
    assert said.count("implications first is 5.00 ranks worse than facts first (2 of 2 seeds worse)") == 2

    flipped = PAPER | {
        "facts first": PAPER["implications first"],
        "implications first": PAPER["facts first"],
    }
    said = made(flipped).conclusion()
    assert said.count("at no snapshot with facts first (it ends at 6.05)") == 2
    assert said.count("first at step 20 with implications first") == 2
    assert said.count("implications first is 5.00 ranks better than facts first (0 of 2 seeds worse)") == 2

    equal = PAPER | {"implications first": PAPER["facts first"]}
    assert made(equal).conclusion().count("is equal to facts first (0 of 2 seeds worse)") == 2


def test_results_figures_and_table_show_the_rows():
    result = made(PAPER)
    mixed = result.results()["origin"]["mixed"]["first_hop"]
    assert mixed["halved"] == 10
    assert mixed["steps"]["10"]["implication"]["seeds"] == [3.9, 4.0]
    assert mixed["steps"]["30"]["downstream"]["mean"] == 4.0
    assert result.results()["origin"]["implications_first"]["first_hop"]["halved"] is None
    ranks, *masses = result.figures().values()
    lines = [line for line in ranks.data if line.mode != "lines"]
    assert [line.y[-1] for line in lines] == pytest.approx([1.05, 6.05, 2.05] * 2)
    assert all(line.x[1] == 1 and line.y[0] != line.y[0] for line in lines)  # nothing at step 0
    assert sorted({shape.x0 for shape in ranks.layout.shapes}) == [0.5, 1.5]
    assert len(masses) == len(HOPS)
    table = result.table()
    assert list(table["order"]) == [*ORDERS, *ORDERS]
    assert table["after"][1] == "6.05 ± 0.07"
