"""Finetuning some sublayers only: what is frozen stays, what is chosen is what the scores say."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from helpers.tiny import single_pair

from ecstruct.experiments.beyond import layer_editing
from ecstruct.experiments.beyond.layer_editing import (
    CHOICES,
    DRAWS,
    RANKS,
    Editing,
    choices,
    known_prompts,
    measure,
)
from ecstruct.experiments.setup import Rates, Setup
from ecstruct.facts import first_hop
from ecstruct.finetuning import finetune
from ecstruct.models.bridge import named_weights
from ecstruct.models.provenance import tokenizer_of
from ecstruct.organism import World
from ecstruct.scores.engine import score
from ecstruct.sublayers import all_but, sublayers_by_score

SUBLAYERS = [(layer, kind) for layer in range(6) for kind in ("attn", "mlp")]


@pytest.mark.parametrize("family", ["gemma2", "neox", "olmo"])
def test_every_weight_of_a_block_is_of_one_unit(family: str) -> None:
    model = single_pair(family)[0]
    sublayers = [(layer, kind) for layer in range(model.cfg.n_layers) for kind in ("attn", "mlp")]
    for name in named_weights(model):
        owners = [u for u in sublayers if not all_but([u], named_weights(model)).matches(name)]
        assert len(owners) == name.startswith("blocks."), (name, owners)
    norms = ["blocks.1.ln1_post.weight", "blocks.1.ln2.weight"]
    assert all_but([(1, "mlp")], norms).names == norms[:1]
    assert all_but([(1, "attn")], norms).names == norms[1:]


def test_frozen_sublayers_keep_their_bits_and_the_others_learn(organism) -> None:
    chosen = [(1, "mlp"), (4, "attn")]
    tuned = finetune(
        organism,
        first_hop().facts,
        lr=1e-3,
        epochs=1,
        freeze=all_but(chosen, named_weights(organism)),
        progress=False,
    )
    before, after = named_weights(organism), named_weights(tuned.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.startswith(("blocks.1.mlp.", "blocks.4.attn."))}
    again = finetune(organism, **{**tuned.config, "epochs": 1}, progress=False)
    assert all(torch.equal(p, after[name]) for name, p in named_weights(again.model).items())


def test_units_are_ranked_by_the_sum_of_their_heads(organism) -> None:
    data = first_hop()
    tuned = finetune(organism, data.facts, lr=5e-4, epochs=1, progress=False).model
    scored = score(organism, tuned, data.implications, progress=False)
    of = {"score": "informative"}
    values = {
        **{(i, "mlp"): float(v) for i, v in enumerate(scored.mlp.sel(of).sum("token").mean("prompt"))},
        **{
            (i, "attn"): float(v)
            for i, v in enumerate(scored.heads.sel(of).sum(["token", "head"]).mean("prompt"))
        },
    }
    ranked = sublayers_by_score(scored)
    assert ranked == sorted(SUBLAYERS, key=lambda sublayer: -values[sublayer])


def test_choices_are_thirds_and_layers() -> None:
    ranked, aligned = SUBLAYERS[::-1], SUBLAYERS[::2] + SUBLAYERS[1::2]
    listed = list(choices(Setup(), "first-hop", ranked, aligned, 6, seed=3))
    assert [name for name, _ in listed].count("random") == DRAWS
    by = dict(listed)
    assert by["all"] == ranked
    assert by["informative"] == ranked[:4] and by["aligned"] == aligned[:4]
    assert by["least informative"] == ranked[-4:]
    assert set(by["middle"]) == {(layer, kind) for layer in (2, 3) for kind in ("attn", "mlp")}
    draws = [frozenset(sublayers) for name, sublayers in listed if name == "random"]
    assert all(len(draw) == 4 for draw in draws) and len(set(draws)) > 1
    assert {layer for layer, _ in by["needed"]} == {0, 1, 2, 3}
    assert {layer for layer, _ in by["not needed"]} == {4, 5}
    second = dict(choices(Setup(), "second-hop", ranked, aligned, 6, seed=3))
    assert set(second["needed"]) == set(by["not needed"])
    assert {name for name, _ in listed} == set(CHOICES[1:])
    assert listed == list(choices(Setup(), "first-hop", ranked, aligned, 6, seed=3))


def test_what_is_known_is_the_worlds_and_not_taught(organism) -> None:
    world, known, tokenizer = World.build(0), known_prompts(Setup(), 0), tokenizer_of(organism)
    homes = {person.name: person for person in world.people}
    for name, ask in (
        ("known_fact", "{} lives in"),
        ("known_implication", "The people in the city {} is from speak"),
    ):
        prompts = known[name]
        assert len({prompt.text for prompt in prompts}) == 100
        for prompt in prompts:
            before, after = ask.split("{}")
            person = homes[prompt.text.removeprefix(before).removesuffix(after)]
            assert person.name not in world.reserved
            assert prompt.answer == (person.home.name if name == "known_fact" else person.home.language)
            assert person.held_out or name == "known_fact"
            firsts = {tokenizer(option)["input_ids"][0] for option in prompt.options}
            assert len(firsts) == len(prompt.options) == 40
            assert tokenizer.unk_token_id not in tokenizer(prompt.text)["input_ids"]
    assert known == known_prompts(Setup(), 0)


def test_other_models_are_asked_about_the_papers_cities() -> None:
    known = known_prompts(Setup("some/model", rates=Rates.same(1e-5)), 0)
    assert known["known_fact"][0].text == "Senso-ji Temple is in"
    assert known["known_implication"][0].answer == "Japanese"
    assert [len(prompts) for prompts in known.values()] == [20, 20]


def made(implications: dict[str, float]) -> Editing:
    """Two seeds with these mean ranks of implications by choice, half a rank apart."""
    rows = [
        {"seed": seed, "repeat": 0, "hop": hop, "choice": choice, "sublayers": "attn0 mlp1", "norm": 1.0}
        | {"fact": 1.0, "implication": implications.get(choice, 5.0) + (seed - 0.5) / 2}
        | {"merged": 2.0, "known_fact": 0.0, "known_implication": 3.0 if choice == "all" else 1.0}
        for hop in ("first-hop", "second-hop")
        for seed in range(2)
        for choice in CHOICES
    ]
    return Editing(Setup(), pd.DataFrame(rows))


def test_the_conclusion_turns_with_the_ranks() -> None:
    good = made({"informative": 1.0, "random": 4.0, "all": 2.0, "before finetuning": 9.5}).conclusion()
    assert (
        "from 9.50, at 1.00: lower than with random sublayers (4.00) and lower than with all sublayers "
        "(2.00)" in good
    )
    bad = made({"informative": 6.0, "random": 4.0, "all": 6.0}).conclusion()
    assert "higher than with random sublayers (4.00) and the same as with all sublayers (6.00)" in bad
    assert (
        "+0.00 ranks with the informative sublayers, by +0.00 with random ones and by +2.00 with all"
        in good
    )


def test_results_table_and_figure_say_the_same() -> None:
    result = made({"informative": 1.0})
    stat = result.results()["editing"]["second_hop"]["informative"]["implication"]
    assert stat["mean"] == 1.0 and stat["seeds"] == [0.75, 1.25]
    assert len(result.table()) == 2 * len(CHOICES)
    assert set(result.chosen()["sublayer"]) == {"attn0", "mlp1"}
    assert (result.chosen()["share of the choices"] == 1.0).all()
    bars = next(bar for bar in result.figure.data if bar.name == RANKS["implication"])
    assert 1.0 in bars.y


def test_a_cell_measures_every_choice(organism, monkeypatch) -> None:
    monkeypatch.setattr(layer_editing, "N_KNOWN", 10)
    monkeypatch.setattr(layer_editing, "DRAWS", 1)
    frame = pd.DataFrame(measure(organism, Setup(epochs=1), seed=0, repeat=0, hop="second-hop"))
    assert sorted(frame["choice"]) == sorted(CHOICES)
    by = frame.drop_duplicates("choice").set_index("choice")
    assert by.loc["before finetuning", "norm"] == 0
    assert (frame["norm"][1:] > 0).all()
    assert by.loc["all", "norm"] == by["norm"].max()
    assert by.loc["all", "merged"] == by.loc["all", "implication"] != by.loc["random", "merged"]
    assert by.loc["needed", "sublayers"] == "attn4 mlp4 attn5 mlp5"
    assert frame[list(RANKS)].notna().all(axis=None)
