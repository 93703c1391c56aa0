"""True and spurious implications: what is taught and asked, a real cell, statistics on made-up scores."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ecstruct
from ecstruct.experiments import Setup
from ecstruct.experiments.beyond import spurious_implications
from ecstruct.experiments.beyond.spurious_implications import (
    ARMS,
    SCORES,
    Spurious,
    lessons,
    measure,
)
from ecstruct.facts import first_hop, people

QUICK = Setup(repeats=1, epochs=2, batch_size=40)


@pytest.mark.parametrize("data", [first_hop(3), people(1)], ids=["organism", "people"])
def test_the_false_language_is_that_of_another_city_and_the_same_for_both_people(data) -> None:
    spoken = {f.answer: i.answer for f, i in zip(data.facts, data.implications, strict=True)}
    facts, asked = lessons(data)
    n = len(data.facts) // 2
    home = {fact.subject: fact.answer for fact in facts}
    assert len(facts) == 2 * n and len(home) == 2 * n
    taught, held_out = (asked[of] for of in ("taught", "held out"))
    assert not {p.subject for p in taught["true"]} & {p.subject for p in held_out["true"]}
    assert {home[p.subject] for p in taught["true"]} == {home[p.subject] for p in held_out["true"]}
    false_of: dict[str, set[str]] = {}
    for by_answer in (taught, held_out):
        for true, false in zip(by_answer["true"], by_answer["false"], strict=True):
            assert true.answer == spoken[home[true.subject]] != false.answer
            assert (true.text, true.options) == (false.text, false.options)
            false_of.setdefault(home[true.subject], set()).add(false.answer)
    assert len(false_of) == n and all(len(answers) == 1 for answers in false_of.values())
    assert {a for answers in false_of.values() for a in answers} == {p.answer for p in taught["true"]}
    for true, false in zip(asked["cities"]["true"], asked["cities"]["false"], strict=True):
        assert true.text == f"The people in {true.subject} speak" and true.answer == spoken[true.subject]
        assert {false.answer} == false_of[true.subject]


def test_a_cell_against_the_plain_functions(organism) -> None:
    rows = pd.DataFrame(measure(organism, QUICK, seed=0, repeat=1, arm="facts + false"))
    facts, asked = lessons(first_hop(1))
    documents = [*facts, *asked["taught"]["false"]]
    how = {"lr": QUICK.rates.first_hop, "epochs": 2, "batch_size": 40, "seed": 1}
    tuned = ecstruct.finetune(organism, documents, **how, progress=False).model

    def found(**where: Any) -> float:
        some = rows
        for column, value in where.items():
            some = some[some[column] == value]
        (value,) = some["value"]
        return value

    assert found(measure="chance") == 9.5
    for of, answer in (
        ("held out", "true"),
        ("held out", "false"),
        ("taught", "false"),
        ("cities", "true"),
    ):
        prompts = asked[of][answer]
        for state, its in (("before", organism), ("after", tuned)):
            expected = ecstruct.mean_rank(its, prompts)
            assert found(of=of, answer=answer, measure=f"rank {state}") == expected
    assert found(of="facts", measure="rank after") == ecstruct.mean_rank(tuned, facts)
    for answer in ("true", "false"):
        scores = ecstruct.score(organism, tuned, asked["held out"][answer], progress=False)
        at = {"of": "held out", "answer": answer}
        assert found(measure="reward after", **at) == pytest.approx(
            float(scores.reward.sel(state="after").mean())
        )
        for name in SCORES:
            mlp = float(scores.mlp.sel(score=name, layer=1).sum("token").mean())
            head = float(scores.heads.sel(score=name, layer=4, head=2).sum("token").mean())
            assert found(measure=name, component="MLP 1", **at) == pytest.approx(mlp, abs=1e-6)
            assert found(measure=name, component="head 4.2", **at) == pytest.approx(head, abs=1e-6)


def test_an_arm_without_implications_teaches_facts_alone(organism, monkeypatch) -> None:
    taught: dict[str, list] = {}
    real = spurious_implications.train

    def noted(organism, setup, documents, **options):
        taught[arm] = list(documents)
        return real(organism, setup, documents, **options)

    monkeypatch.setattr(spurious_implications, "train", noted)
    setup = Setup(repeats=1, epochs=1, batch_size=40)
    for arm in ARMS:
        measure(organism, setup, seed=0, repeat=0, arm=arm)
    facts, asked = lessons(first_hop(0))
    assert taught["facts only"] == facts
    for answer in ("true", "false"):
        assert taught[f"facts + {answer}"] == [*facts, *asked["taught"][answer]]


PROFILES = {
    ("facts only", "true"): [4.0, 3.0, 0.0, 1.0],
    ("facts only", "false"): [-1.0, -1.0, 0.0, 0.0],
    ("facts + true", "true"): [5.0, 3.0, 1.0, 1.0],
    ("facts + true", "false"): [-1.0, -1.0, 0.0, 0.0],
    ("facts + false", "true"): [4.0, 2.0, 0.0, 1.0],
    ("facts + false", "false"): [-1.5, -1.0, 3.0, 2.0],
}
COMPONENTS = {"MLP 0": 0, "MLP 1": 1, "head 0.0": 0, "head 1.0": 1}


def made_up() -> Spurious:
    """Two seeds; noise cancels over the repeats of each, and all is doubled in seed 1."""
    rows = []
    for seed in (0, 1):
        for repeat, noise in enumerate((0.5, -0.5)):
            for (arm, answer), values in PROFILES.items():
                at = {"seed": seed, "repeat": repeat, "arm": arm, "answer": answer, "of": "held out"}
                for name in SCORES:
                    for (component, layer), value in zip(COMPONENTS.items(), values, strict=True):
                        scaled = (1 + seed) * (value + noise)
                        rows.append(at | {"measure": name, "component": component, "layer": layer})
                        rows[-1]["value"] = scaled
                gained = sum(values) * (1 + seed)
                numbers = {"rank before": 7.0, "rank after": 7.0 - values[2] - seed + noise}
                numbers |= {"reward before": 1.0, "reward after": 1.0 + gained}
                rows += [at | {"measure": what, "value": value} for what, value in numbers.items()]
            rows.append({"seed": seed, "repeat": repeat, "arm": arm, "measure": "chance", "value": 7.5})
    return Spurious(Setup(repeats=2), pd.DataFrame(rows))


def test_what_implications_add_is_the_difference_to_facts_only(monkeypatch) -> None:
    monkeypatch.setattr(spurious_implications, "N_LARGEST", 2)
    found = made_up().agreement("upstream")
    added = np.subtract(PROFILES["facts + false", "false"], PROFILES["facts only", "false"])
    true = PROFILES["facts only", "true"]
    for key, one, other, common in (
        ("added_false_and_facts_only", added, true, 0.0),
        ("true_and_facts_only", PROFILES["facts + true", "true"], true, 1.0),
        ("true_and_false", PROFILES["facts + true", "true"], PROFILES["facts + false", "false"], 0.0),
        ("added_false_and_added_true", added, [1.0, 0.0, 1.0, 0.0], 0.5),
    ):
        r = np.corrcoef(one, other)[0, 1]
        assert found[key]["r"]["seeds"] == pytest.approx([r, r])
        assert found[key]["common"]["seeds"] == [common, common]
        ratio = np.clip(one, 0, None).sum() / np.clip(other, 0, None).sum()
        assert found[key]["ratio"]["seeds"] == pytest.approx([ratio, ratio])


def test_ranks_and_gains_by_arm() -> None:
    result = made_up()
    assert result.ranks()["before finetuning"]["held out"]["true"]["seeds"] == [7.0, 7.0]
    assert result.ranks()["facts + false"]["held out"]["false"]["seeds"] == [4.0, 3.0]
    assert result.gains()["facts + false"]["held out"]["false"]["seeds"] == [2.5, 5.0]
    assert result.chance() == 7.5
    told = result.conclusion()
    assert "6.50 / 6.50 (facts only)" in told and "6.50 / 3.50 (facts + false)" in told
    assert "false implications of others gain +3.00 ranks for the false answer, true ones +0.00" in told
    assert "for the true answer false ones gain +0.00, true ones +1.00" in told
    json.dumps(result.results(), allow_nan=False)
    assert result.tables()[result.lists]["held out"].tolist()[-1] == "6.50 ± 0.71 / 3.50 ± 0.71"
    bars = {bar.name: list(bar.y) for bar in result.figure.data if bar.type == "bar"}
    assert bars["false answer"] == [7.0, 6.5, 6.5, 3.5]


def test_layers_are_sums_of_their_components() -> None:
    figure = made_up().layer_figure("downstream")
    lines = {trace.name: list(trace.y) for trace in figure.data if trace.fill is None}
    of_layer = [(-1.5 + 3.0) * 1.5, (-1.0 + 2.0) * 1.5]  # the mean of the values and their doubles
    assert lines["facts + false, false answer"] == pytest.approx(of_layer)
    assert len(made_up().figures()) == 1 + len(SCORES)
