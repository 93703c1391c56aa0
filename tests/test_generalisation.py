"""Which facts generalise: kinds of facts, a real cell on a tiny model, statistics, resuming, bad input."""

import json
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny
from helpers.command_line import refused, run
from helpers.facts_fixtures import byte_tokenizer
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

import ecstruct
from ecstruct.errors import InputError
from ecstruct.experiments import Rates, Setup, reproduce
from ecstruct.experiments.beyond import Generalisation, facts_that_generalise, generalisation
from ecstruct.experiments.beyond.facts_that_generalise import PREDICTORS, RANKS, SCORED, measure
from ecstruct.experiments.beyond.kinds_of_facts import KINDS, N_PEOPLE, Names
from ecstruct.facts import people
from ecstruct.scores.alignment_result import FORMS

CELL: dict[str, Any] = {"seed": 0, "repeat": 0}


def quick(folder) -> Setup:
    return Setup(str(folder), repeats=1, rates=Rates.same(3e-3), epochs=2)


@pytest.mark.parametrize("seed", [0, 1003])
def test_without_a_change_the_facts_are_those_of_people(seed):
    data, expected = KINDS["people"].facts(seed), people(seed)
    for ours, theirs in ((data.facts, expected.facts), (data.implications, expected.implications)):
        assert [(p.text, p.answer, p.options, p.subject) for p in ours] == [
            (p.text, p.answer, p.options, p.subject) for p in theirs
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_one_thing(kind):
    of, data, base = KINDS[kind], KINDS[kind].facts(0), people(0)
    assert len(data.facts) == of.n * len(of.wordings) and len(data.implications) == of.n
    for i, (implication, derivation) in enumerate(zip(data.implications, data.derivations, strict=True)):
        own = [data.facts[j] for j in derivation.facts]
        assert {fact.subject for fact in own} == {implication.subject}
        assert {fact.answer for fact in own} == {base.facts[i].answer}
        assert implication.answer == base.implications[i].answer
        assert len(own) == len({fact.text for fact in own}) == len(of.wordings)
        assert len(implication.options) == of.n
    subjects = [implication.subject for implication in data.implications]
    assert len(set(subjects)) == of.n
    changed = [
        subjects != [fact.subject for fact in base.facts[: of.n]],
        of.wordings != KINDS["people"].wordings,
        of.n != N_PEOPLE,
        of.rate != 1,
        of.epochs != 1,
    ]
    assert sum(changed) == (kind != "people")


def test_names_are_what_their_kind_says():
    split = {kind: [p.subject.split() for p in KINDS[kind].facts(5).implications] for kind in KINDS}
    base, names = split["people"], Names(5)
    lengths = {kind: {len(name) for name in its} for kind, its in split.items()}
    assert lengths["given name only"] == {1} and lengths["with two more names"] == {4}
    whole = split["with two more names"]
    assert [[name[0], name[2]] for name in whole] == base
    pieces = [names.piece(place, i) for place in range(4) for i in range(2 * N_PEOPLE)]
    assert len(set(pieces)) == len(pieces)  # so that no two names share one
    assert len({name[1] for name in split["one family"]}) == 1
    assert len({name[1] for name in split["families of two"]}) == N_PEOPLE / 2
    assert len({name[0] for name in split["one given name"]}) == 1
    assert {name[1].endswith(names.piece(3, 0)) for name in split["one ending"]} == {True}
    common = split["common names"]
    assert [name[0] for name in split["common given names"]] == [name[0] for name in common]
    assert [name[1] for name in split["common family names"]] == [name[1] for name in common]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model that reads all kinds of facts, its tokenizer byte-level."""
    folder = tmp_path_factory.mktemp("model")
    texts = [f"{p.text} {p.answer}" for kind in KINDS.values() for p in kind.facts(0).implications]
    texts += [f"{p.text} {p.answer}" for kind in KINDS.values() for p in kind.facts(0).facts]
    tokenizer = byte_tokenizer("\n".join(texts), vocab_size=1200)
    plain = tiny.build("llama", dtype=torch.float32)
    plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    plain.config.max_position_embeddings, plain.config.eos_token_id = 64, tokenizer.eos_token_id
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cell(folder):
    model = ecstruct.load(str(folder), device="cpu")
    return model, pd.DataFrame(measure(model, quick(folder), **CELL, kind="two wordings"))


def test_the_ranks_are_those_of_a_finetuning(folder, cell):
    model, found = cell
    data, by = KINDS["two wordings"].facts(0), found[found["layer"].isna()].set_index("measure")["value"]
    tuned = ecstruct.finetune(model, data.facts, lr=3e-3, epochs=2, seed=0, progress=False).model
    assert by["facts"] == pytest.approx(ecstruct.mean_rank(tuned, data.facts) / 7.5)
    assert by["implications"] == pytest.approx(ecstruct.mean_rank(tuned, data.implications) / 7.5)
    assert by["implications before"] == pytest.approx(ecstruct.mean_rank(model, data.implications) / 7.5)
    assert set(by.index) == {*RANKS, *PREDICTORS}
    asked = data.implications[:SCORED]
    scored = ecstruct.score(model, tuned, asked, propagation="gradient", progress=False)
    components = scored.components("informative")
    positive = components["value"].astype(float).clip(lower=0).groupby(components["layer"]).sum()
    shares = found[found["measure"] == "informative"].sort_values("layer")["value"]
    np.testing.assert_allclose(shares, positive / positive.sum(), rtol=1e-3)


def test_what_is_known_before_is_that_of_the_model(folder, cell):
    model, found = cell
    data, by = KINDS["two wordings"].facts(0), found[found["layer"].isna()].set_index("measure")["value"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    states, names = [], []
    for fact in data.facts[:N_PEOPLE]:
        read = tokenizer(fact.text, return_offsets_mapping=True, return_tensors="pt")
        end = fact.text.index(fact.subject) + len(fact.subject)
        inside = [i for i, (left, right) in enumerate(read["offset_mapping"][0].tolist()) if left < end]
        names.append(read["input_ids"][0, inside].tolist())
        with torch.no_grad():
            hidden = plain(read["input_ids"], output_hidden_states=True).hidden_states
        states.append(torch.stack([layer[0, inside[-1]] for layer in hidden[:-1]]).double())
    pairs = list(combinations(states, 2))
    cosines = sum(torch.cosine_similarity(a, b, dim=-1) for a, b in pairs) / len(pairs)
    similar = found[found["measure"] == "similarity"].sort_values("layer")["value"].to_numpy()
    np.testing.assert_allclose(similar[:-1], cosines, atol=1e-5)
    assert by["similarity of names"] == pytest.approx(similar.mean())
    assert by["tokens per name"] == sum(map(len, names)) / N_PEOPLE
    assert by["mean token id"] == pytest.approx(np.mean([t for name in names for t in name]))
    holders = [sum(t in other for other in names) for name in names for t in name]
    assert by["tokens shared"] == pytest.approx(np.mean([count > 1 for count in holders]))
    chosen = [*data.facts[:6], *data.facts[N_PEOPLE : N_PEOPLE + 6]]
    total = ecstruct.alignment(model, chosen, [*data.implications[:6]] * 2, progress=False).total[..., :6]
    own = np.tile(np.eye(6, dtype=bool), (2, 1))
    for form in FORMS:
        values = total.sel(form=form).values
        assert by[f"{form}, own"] == pytest.approx(values[own].mean(), rel=1e-4)
        difference = values[own].mean() - values[~own].mean()
        assert by[f"{form}, own minus others"] == pytest.approx(difference, rel=1e-4)


def made_up(noise: float = 0.0) -> Generalisation:
    """All kinds; the cosine of own pairs says how implications come out, all else is random."""
    rng, rows = np.random.default_rng(0), []
    for place, kind in enumerate(KINDS):
        rank = place / len(KINDS)
        values = {name: rng.random() for name in (*RANKS, *PREDICTORS)}
        values |= {"implications": rank, "cosine, own": 1 - rank + noise * rng.standard_normal()}
        rows += [{**CELL, "kind": kind, "measure": m, "layer": None, "value": v} for m, v in values.items()]
        for measured in ("similarity", "informative"):
            shares = rng.dirichlet(np.ones(6))
            rows += [
                {**CELL, "kind": kind, "measure": measured, "layer": layer, "value": share}
                for layer, share in enumerate(shares)
            ]
    return Generalisation(Setup("smollm2", rates=Rates.same(1e-4)), pd.DataFrame(rows))


def test_the_correlations_are_spearmans():
    result = made_up(noise=0.5)
    table, listed = result.by_kind(), result.table().set_index("known before")
    assert list(listed.index) == list(PREDICTORS) and len(table) == len(KINDS) >= 24
    for facts_only, columns in ((False, ("rho", "p")), (True, ("rho, facts only", "p, facts only"))):
        some = table[table["axis"] != "training"] if facts_only else table
        assert len(some) == len(KINDS) - 4 * facts_only
        for name in PREDICTORS:
            expected: Any = spearmanr(some[name], some["implications"])
            assert listed.at[name, columns[0]] == pytest.approx(expected.statistic)
            assert listed.at[name, columns[1]] == pytest.approx(expected.pvalue, abs=0.02)
    layers = result.frame[(result.frame["measure"] == "informative") & (result.frame["kind"] == "born")]
    assert table.at["born", "early"] == pytest.approx(layers["value"].iloc[:2].sum())


def test_the_conclusion_says_whether_alignment_predicts():
    said = made_up().conclusion()
    assert said.startswith("Of 25 kinds of facts, 'people' generalises best, with implications at 0.00")
    assert "predicts generalisation after it by cosine, own, with and without kinds" in said
    assert "No form of alignment before finetuning predicts" in made_up(noise=100.0).conclusion()
    worse = made_up()
    rows = worse.frame["measure"] == "cosine, own"
    worse.frame.loc[rows, "value"] *= -1  # aligned facts generalise less: that is no prediction
    assert "No form of alignment before finetuning predicts" in worse.conclusion()


def test_what_it_shows_is_json():
    result = made_up()
    found = json.loads(json.dumps(result.results(), allow_nan=False))["generalisation"]
    assert found["correlations"]["cosine, own"]["all"]["rho"] == pytest.approx(-1)
    assert len(found["kinds"]["born"]["layers"]["informative"]) == 6
    assert [len(table) for table in result.tables().values()] == [len(PREDICTORS), len(KINDS)]
    figure: Any = result.figure
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(dots) == len(FORMS) and list(dots[0].text) == list(KINDS)
    assert figure.layout.coloraxis.colorbar.title.text == "tokens per name"


def test_finished_cells_are_not_measured_again(folder, tmp_path, monkeypatch):
    kinds = ["people", "4 people"]
    first = generalisation(quick(folder), kinds=kinds, out=tmp_path, progress=False)
    asked = []

    def counted(*args: Any, **cell: Any):
        asked.append(cell["kind"])
        return measure(*args, **cell)

    monkeypatch.setattr(facts_that_generalise, "measure", counted)
    (tmp_path / "cells" / "generalisation" / "seed=0-repeat=0-kind=4_people.json").unlink()
    options = {"generalisation": {"kinds": kinds}}
    (again,) = reproduce(["generalisation"], quick(folder), options, out=tmp_path, progress=False)
    assert asked == ["4 people"]
    pd.testing.assert_frame_equal(again.frame, first.frame)
    assert again.config["arguments"]["options"] == options


def test_bad_input_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="there is no kind of facts 'short': choose among people, given"):
        generalisation(quick(folder), kinds=["people", "short"])
    with pytest.raises(InputError, match="kinds="):
        generalisation(quick(folder), kinds=[])
    with pytest.raises(InputError, match="two cells of generalisation are the same"):
        generalisation(quick(folder), kinds=["people", "people"])
    refused(
        run("reproduce", "generalisation", "--out", tmp_path / "out", "--quiet"),
        "the organism cannot read invented names: give another model, such as smollm2",
    )
