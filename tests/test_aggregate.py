"""Aggregation against sums by hand, on prompts whose entities have two, three and one token."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.synthetic_scores import ENTITIES, PREFIX, SUFFIX, make_scores, prompts_of

from ecstruct.errors import InputError
from ecstruct.scores.aggregate import prompt_slots
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.slots import SlotScores

# Where each prompt has its tokens: two of prefix, then the entity, then three of suffix.
TWO, THREE, ONE = 0, 1, 2


@pytest.fixture
def scores() -> ExtractiveScores:
    return make_scores()


def at(scores: ExtractiveScores, kind: str, prompt: int, token: int) -> np.ndarray:
    """The scores of one prompt at one token, (score, layer[, head]), in float64."""
    return scores.dataset[kind].values[:, prompt, ..., token].astype("float64")


def slot(aggregated: SlotScores, kind: str, position: int) -> np.ndarray:
    return aggregated.dataset[kind].values[..., position]


@pytest.mark.parametrize("kind", ["mlp", "heads"])
def test_means_by_hand(scores: ExtractiveScores, kind: str) -> None:
    result = scores.aggregate()
    assert result.slot_text == ["The", "Ġcity", "X", "Y", "Ġis", "Ġfrom", "Ġspeak"]
    assert result.dataset["part"].values.tolist() == ["prefix"] * 2 + ["entity"] * 2 + ["suffix"] * 3
    assert result.count.values.tolist() == [3, 3, 2, 3, 3, 3, 3]
    tokens = {  # slot -> the token of the prompts with a two-, three- and one-token entity
        0: (0, 0, 0),
        1: (1, 1, 1),
        2: (2, 3, None),
        3: (3, 4, 2),
        4: (4, 5, 3),
        6: (6, 7, 5),
    }
    for position, places in tokens.items():
        values = [
            at(scores, kind, prompt, token) for prompt, token in enumerate(places) if token is not None
        ]
        expected = sum(values) / len(values)
        np.testing.assert_allclose(slot(result, kind, position), expected, rtol=1e-14)


def test_dimensions_and_everything_else_averaged(scores: ExtractiveScores) -> None:
    result = scores.aggregate()
    assert result.mlp.dims == ("score", "layer", "slot")
    assert result.heads.dims == ("score", "layer", "head", "slot")
    assert result.mlp.dtype == np.float64
    reward = scores.reward.values.astype("float64").mean(0)
    np.testing.assert_allclose(result.dataset["reward"].values, reward, rtol=1e-14)
    assert result.dataset["attribution_heads"].dims == ("state", "layer", "head", "slot")
    assert result.attrs["options"] == scores.attrs["options"]
    assert result.attrs["aggregate"] == {
        "template": "city",
        "prompts": 3,
        "fold": False,
        "like": None,
    }


@pytest.mark.parametrize("kind", ["mlp", "heads"])
def test_fold_keeps_the_sums_and_dropping_does_not(scores: ExtractiveScores, kind: str) -> None:
    total = scores.dataset[kind].astype("float64").sum(["prompt", "token"])

    def summed(result: SlotScores) -> np.ndarray:
        return (result.dataset[kind] * result.count).sum("slot").values

    np.testing.assert_allclose(summed(scores.aggregate(fold=True)), total.values, rtol=1e-12)
    surplus = at(scores, kind, THREE, 2)
    np.testing.assert_allclose(summed(scores.aggregate()), total.values - surplus, rtol=1e-12)


def test_fold_adds_all_surplus_tokens_to_the_first_entity_slot() -> None:
    scores = make_scores(prompts_of([["a", "b"], ["a", "b", "c", "d", "e"]]))
    folded, dropped = scores.aggregate(fold=True), scores.aggregate()
    surplus = at(scores, "mlp", 1, 2) + at(scores, "mlp", 1, 3) + at(scores, "mlp", 1, 4)
    expected = (at(scores, "mlp", 0, 2) + surplus + at(scores, "mlp", 1, 5)) / 2
    np.testing.assert_allclose(slot(folded, "mlp", 2), expected, rtol=1e-14)
    for other in (0, 1, 3, 4, 5, 6):
        np.testing.assert_array_equal(slot(folded, "mlp", other), slot(dropped, "mlp", other))


def test_like_reference_duplicates_and_drops(scores: ExtractiveScores) -> None:
    result = scores.aggregate(like="reference")
    assert result.count.values.tolist() == [3] * 7
    first = at(scores, "mlp", TWO, 2) + at(scores, "mlp", THREE, 3) + at(scores, "mlp", ONE, 2)
    second = at(scores, "mlp", TWO, 3) + at(scores, "mlp", THREE, 4) + at(scores, "mlp", ONE, 2)
    np.testing.assert_allclose(slot(result, "mlp", 2), first / 3, rtol=1e-14)
    np.testing.assert_allclose(slot(result, "mlp", 3), second / 3, rtol=1e-14)


def test_a_slot_that_no_prompt_fills_is_nan() -> None:
    result = make_scores(prompts_of([["a"], ["b"]])).aggregate()
    assert result.count.values.tolist() == [2, 2, 0, 2, 2, 2, 2]
    assert np.isnan(slot(result, "mlp", 2)).all()
    assert np.isfinite(slot(result, "mlp", 3)).all()


def test_answer_tokens_are_in_no_slot() -> None:
    scores = make_scores()
    # The last token of every prompt is said to be of the answer.
    length = scores.dataset["length"]
    with_answers = ExtractiveScores(scores.dataset.assign_coords(prompt_length=length - 1))
    result, whole = with_answers.aggregate(fold=True), scores.aggregate(fold=True)
    assert result.slot_text == whole.slot_text[:-1]
    np.testing.assert_array_equal(result.mlp.values, whole.mlp.values[..., :-1])


def test_one_template_of_several() -> None:
    other = {"tokens": ["A", "b", "c"], "entity": (1, 2), "template": "other"}
    scores = make_scores([*prompts_of(ENTITIES), other])
    with pytest.raises(InputError, match=r"2 templates \('city', 'other'\).*template='city'"):
        scores.aggregate()
    with pytest.raises(InputError, match=r"template='none' is not among .* 'city', 'other'"):
        scores.aggregate(template="none")
    result = scores.aggregate(template="other")
    assert result.slot_text == ["A", "X", "Y", "c"]
    np.testing.assert_allclose(slot(result, "mlp", 3), at(scores, "mlp", 3, 2), rtol=1e-14)
    assert scores.aggregate(template="city").count.values.tolist() == [3, 3, 2, 3, 3, 3, 3]


def test_prompts_that_do_not_line_up() -> None:
    prompts = prompts_of(ENTITIES[:1]) + prompts_of(ENTITIES[:1], prefix=["A", "b", "c"])
    with pytest.raises(InputError, match="2 and 3 tokens before the entity"):
        make_scores(prompts).aggregate()
    prompts = prompts_of(ENTITIES[:1]) + prompts_of(ENTITIES[:1], suffix=["z"])
    with pytest.raises(InputError, match="3 and 1 tokens after the entity"):
        make_scores(prompts).aggregate()


def test_tokens_that_differ_outside_the_entity_are_not_named() -> None:
    prompts = prompts_of(ENTITIES[:1]) + prompts_of(ENTITIES[:1], suffix=["Ġis", "Ġin", "Ġspeak"])
    assert make_scores(prompts).aggregate().slot_text[-3:] == ["Ġis", "…", "Ġspeak"]


def test_bad_options(scores: ExtractiveScores) -> None:
    with pytest.raises(InputError, match="like='paper' is unknown"):
        scores.aggregate(like="paper")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="fold=True cannot be had"):
        scores.aggregate(fold=True, like="reference")
    no_tokens = ExtractiveScores(scores.dataset.sum("token"))
    with pytest.raises(InputError, match="not split over tokens"):
        no_tokens.aggregate()


def test_one_prompt_by_its_own_tokens(scores: ExtractiveScores) -> None:
    one = prompt_slots(scores.dataset, THREE)
    assert one.slot_text == [*PREFIX, *ENTITIES[THREE], *SUFFIX]
    assert one.count.values.tolist() == [1] * 8
    for token in range(8):
        np.testing.assert_array_equal(slot(one, "heads", token), at(scores, "heads", THREE, token))
    with pytest.raises(InputError, match="no prompt 3 among these 3"):
        prompt_slots(scores.dataset, 3)


def test_dataframe_has_every_cell(scores: ExtractiveScores) -> None:
    result = scores.aggregate()
    frame = result.to_dataframe()
    assert len(frame) == 3 * 7 * (2 + 2 * 3)
    row = frame[
        (frame["score"] == "upstream") & (frame["layer"] == 1) & (frame["head"] == 2) & (frame["slot"] == 2)
    ]
    assert row["value"].item() == result.heads.sel(score="upstream", layer=1, head=2, slot=2)
    assert (row["count"].item(), row["slot_text"].item(), row["kind"].item()) == (2, "X", "head")
