"""Scores of programs whose components' roles are known (`tests/programs.py`)."""

import numpy as np
import pandas as pd
import pytest
import torch
from programs import (
    NAMES,
    PLACE,
    STATES,
    UPSTREAM,
    Program,
    by_place,
    by_prompt,
    found,
    judged,
    mistakes,
    precision_and_recall,
    table,
)

import ecstruct
from ecstruct.scores import SCORES, causal_scores, score

EXACT = 5e-6
"""LayerNorms that are the identity up to |x|² / (4 C²) shrink what is written by some 1e-8 each time."""


@pytest.fixture(params=NAMES)
def program(request) -> Program:
    return Program(request.param)


@pytest.mark.parametrize("state", STATES)
def test_the_model_says_what_the_program_says(program, state):
    """On all inputs and at every token, logits are 1 of what it says, in equal parts, and else 0."""
    words = program.description["vocabulary"]
    ids = program.tokenizer(program.description["inputs"], return_tensors="pt")["input_ids"]
    expected = torch.zeros(*ids.shape, len(words), dtype=torch.float64)
    for i, values in enumerate(program.description["said"][state]):
        for of_value in values:
            for token, word in enumerate(of_value, start=1):
                if word is not None:
                    expected[i, token, words.index(word)] += 1 / len(values)
    with torch.no_grad():
        logits = program.plain(state)(ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=EXACT)


def test_what_is_taught_is_in_the_tensors_that_change(program):
    old, new = (dict(program.plain(state).named_parameters()) for state in STATES)
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed == program.description["changed"]
    roles = program.roles.index.to_frame()
    stores = roles.loc[roles["score"] == "informative", "component"]
    assert [f"MLP {name.split('.')[2]}" for name in changed] == sorted(stores)


def test_causal_scores_are_the_definitions_in_the_programs_own_language(program):
    """Every component at every token of every prompt; what is not listed is 0."""
    causal = by_prompt(causal_scores(*program.pair(), program.prompts, per_token=True, progress=False))
    expected = program.roles.reindex(causal.index, fill_value=0.0)
    np.testing.assert_allclose(causal.to_numpy(), expected.to_numpy(), rtol=0, atol=EXACT)
    right = judged(program, {"causal": causal.mean(axis=1)}, PLACE).loc["causal"]
    assert (right["named"] == right["right"]).all()
    assert (right.loc[right["right"] == 0, "share"].abs() < 0.1).all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_name_what_has_a_role_at_its_token_and_nothing_else(name):
    """By default. The informative score of `lookup` is 0: its attention is saturated."""
    program = Program(name)
    scores = by_place(score(*program.pair(), program.prompts, progress=False))
    found = judged(program, {"linear": scores}, PLACE).loc["linear"]
    missed = [("informative", "MLP 0", 9)] if name == "lookup" else []
    assert [*found[found["named"] != found["right"]].index] == missed
    for role, of_role in found.groupby(level="score"):
        right = of_role["right"] == 1
        if right.any() and (role != "informative" or not missed):
            assert of_role[right]["share"].min() > of_role[~right]["share"].max()


def test_precision_and_recall_by_hand():
    """`middle` has four components, six tokens, and MLP 0 at 4, head 0.0 at 4, head 1.0 and MLP 1 at 5."""
    program = Program("middle")
    places = pd.MultiIndex.from_product([SCORES, program.description["components"], range(6)], names=PLACE)
    scores = pd.Series(0.0, places)
    scores["informative", "MLP 0", 4] = 1.0
    scores["upstream", "head 0.0", 4] = 0.5
    scores["upstream", "head 1.0", 5] = 0.2  # wrong
    scores["downstream", "MLP 1", 5] = 0.05  # too small
    scores["downstream", "head 1.0", 5] = -0.5
    found = precision_and_recall([judged(program, {"mine": scores}, PLACE)] * 2).T
    assert found["mine", "informative"].tolist() == [1, 1]
    assert found["mine", "upstream"].tolist() == [1 / 2, 1]
    assert np.isnan(found["mine", "downstream"]["precision"]) and found["mine", "downstream"]["recall"] == 0
    for role, n in (("informative", 1), ("upstream", 1), ("downstream", 2)):
        assert found["random", role].tolist() == pytest.approx([n / 24, n / 24])
    of_components = judged(program, {"mine": scores}, PLACE[:2])
    assert precision_and_recall([of_components]).loc[("random", "downstream"), "recall"] == 2 / 4
    wrong = mistakes({program: {"linear": scores}})
    assert wrong[PLACE].apply(tuple, axis=1).tolist() == [
        ("downstream", "MLP 1", 5),
        ("downstream", "head 1.0", 5),
        ("upstream", "head 1.0", 5),
    ]


def test_the_ways_of_scoring_are_told_apart():
    program = Program("two_hops")
    ways = found(program)
    in_table = table({program: ways})
    assert [*in_table.index] == [*ways, "random"]
    for level in ("component", "at its token"):
        assert in_table.loc["causal", level].tolist() == ["1.00 / 1.00", "nan / nan", "1.00 / 1.00"]
    delta = ecstruct.WeightDelta.between(*program.pair())
    (change,) = delta.tensors.values()
    assert ways["|dW|"]["informative", "MLP 0"].unique() == pytest.approx([change.norm().item()])
    assert (ways["|dW|"].drop("MLP 0", level="component") == 0).all()
    surrogate = score(*program.pair(), program.prompts, **UPSTREAM["surrogate"], progress=False)
    after = surrogate.attribution.sel(state="after")
    of_head = after["heads"].sel(layer=2, head=0, token=4).mean().item()
    assert ways["attribution"]["upstream", "head 2.0", 4] == pytest.approx(of_head) and of_head > 0.1
