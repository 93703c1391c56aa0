"""What `knockout` takes for positions, groups of them and windows, and what it refuses."""

import numpy as np
import pytest
from helpers.recall_cases import SUBJECTS, parts_of
from helpers.tiny import N_LAYERS, PROMPTS, hooked_pair, tokenizer

from ecstruct import InputError, Prompt, recall
from ecstruct.engine.session import Session
from ecstruct.recall.attention_knockout import windows
from ecstruct.recall.groups import positions
from ecstruct.recall.runs import read

TWO = SUBJECTS[:2]


def test_positions_may_be_numpy_integers_and_results_are_saved(tmp_path):
    model, _ = hooked_pair("llama")
    last = len(read(Session.of(model), TWO[:1])[0].ids) - 1
    its = {
        "one": np.int64(1),
        "some": np.array([1, 2]),
        "listed": [np.int32(2)],
        "sliced": slice(np.int64(0), np.int64(2)),
    }
    plain = {"one": 1, "some": [1, 2], "listed": [2], "sliced": slice(0, 2)}
    found, expected = (
        recall.knockout(model, TWO[:1], groups=groups, destination=into, window=1, progress=False)
        for groups, into in ((its, np.int64(last)), (plain, last))
    )
    np.testing.assert_array_equal(found, expected)
    assert found.attrs == expected.attrs
    recall.save(found, tmp_path / "found.nc")
    assert recall.load(tmp_path / "found.nc").attrs == expected.attrs


@pytest.mark.parametrize("which", [1.5, [0.5], None, slice(0.5)])
def test_what_is_no_group_of_positions_is_refused(which):
    (prompt,) = read(Session.of(hooked_pair("llama")[0]), TWO[:1])
    with pytest.raises(InputError, match="no group of positions"):
        positions(prompt, which)


def test_a_model_of_few_layers_needs_no_window():
    model, _ = hooked_pair("llama")
    found = recall.knockout(model, TWO, progress=False)
    assert found.attrs["options"]["window"] == N_LAYERS < 9
    whole = recall.knockout(model, TWO, window=N_LAYERS, progress=False)
    assert found.identical(whole)
    by_token = recall.knockout_tokens(model, TWO[0], progress=False)
    assert by_token.attrs["options"]["window"] == N_LAYERS


def test_one_part_may_be_given_without_a_list():
    model, _ = hooked_pair("llama")
    attributes = recall.Attributes.from_facts(TWO, model)
    options = {"at_layer": 1, "top": 10, "kept": 10, "progress": False}
    one = recall.sublayer_knockout(model, TWO, attributes, parts="mlp", **options)
    assert one.identical(recall.sublayer_knockout(model, TWO, attributes, parts=["mlp"], **options))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"window": 4}, "window=4: the model has 3 layers, use 1 to 3 of them."),
        ({"window": 0}, "window=0: the model has 3 layers, use 1 to 3 of them."),
        ({"token": "right"}, "token is 'predicted' or 'answer', not 'right'."),
        ({"groups": ["subjects"]}, "there is no group of positions 'subjects': choose among subject, "),
        ({"groups": []}, "groups=\\[\\] has no group: choose among subject, "),
        ({"groups": ["last", "last"]}, "names a group twice: name each once."),
        ({"destination": "start"}, "there is no group of positions 'start': choose among subject, "),
        (
            {"groups": ["subject-others"]},
            "the group 'subject-others' .* has no token in 'people that Ada knows",
        ),
        ({"groups": {"x": []}}, "has no token in 'people that Ada knows"),
        ({"groups": {"x": 6}}, "there is no position 6 in the 6 tokens of 'people that Ada knows speak'."),
        (
            {"groups": {"x": -7}},
            "there is no position -7 in the 6 tokens of 'people that Ada knows speak'.",
        ),
        (
            {"groups": {"x": slice(None)}},
            "without 'x' the token 'speak' of 'people .* sees nothing in layer 0",
        ),
        (
            {"groups": ["last"], "destination": "subject"},
            "the group 'last' of 'people that Ada .* comes after all",
        ),
    ],
)
def test_says_what_is_wrong(options: dict, error: str) -> None:
    model, _ = hooked_pair("llama")
    with pytest.raises(InputError, match=error):
        recall.knockout(model, SUBJECTS, **{"window": 2, "progress": False, **options})


def test_prompts_without_a_subject() -> None:
    model, _ = hooked_pair("llama")
    with pytest.raises(
        InputError, match="'people that Ada knows speak' has no subject: give it one, or positions"
    ):
        recall.knockout(model, PROMPTS, window=2, progress=False)
    recall.knockout(model, PROMPTS, window=2, groups={"name": [3]}, progress=False)
    with pytest.raises(InputError, match="the subject 'Bob' does not occur in the prompt"):
        recall.knockout(model, [{"prompt": "Ada knows", "answer": "Bo", "subject": "Bob"}], window=2)


def test_positions_of_groups() -> None:
    model, _ = hooked_pair("llama")
    at_end = Prompt("people that speak Cy de Wit", "Thai", None, "Cy de Wit")
    for prompt, expected in zip(
        read(Session.of(model), [*SUBJECTS, at_end]), [*map(parts_of, SUBJECTS), None], strict=True
    ):
        for name in ("subject", "non-subject", "last", "subject-last") if expected else ():
            assert positions(prompt, name) == expected[name]
    assert positions(prompt, "subject") == [4, 5, 6]
    assert positions(prompt, "subject-first") == [4]
    assert positions(prompt, "subject-others") == [5]
    assert positions(prompt, "non-subject") == [0, 1, 2, 3]
    assert positions(prompt, "first") == [0]
    assert positions(prompt, "all-but-first") == [1, 2, 3, 4, 5, 6]
    assert positions(prompt, "all-but-subject") == [0, 1, 2, 3]
    assert positions(prompt, "subject-first+first") == [0, 4]
    assert positions(prompt, "all-but-subject-last+first") == [1, 2, 3, 4, 5]
    assert positions(prompt, "after-subject", may_be_empty=True) == []
    with pytest.raises(InputError, match="the group 'all-but-all' has no token in"):
        positions(prompt, "all-but-all")
    assert positions(prompt, [-1, 0, 6]) == [0, 6]
    assert positions(prompt, slice(-2, None)) == [5, 6]
    ada = read(Session.of(model), SUBJECTS[:1])[0]
    assert positions(ada, "subject-others", may_be_empty=True) == []
    assert positions(ada, "after-subject") == [4]


def test_positions_in_a_chat_template() -> None:
    model, _ = hooked_pair("llama")
    wrapped = Prompt("people that Ada knows", "Dutch", subject="Ada", wrapper=("Ada speak ", " Di "))
    (prompt,) = read(Session.of(model), [wrapped])
    assert prompt.tokens == ("Ada", "speak", "people", "that", "Ada", "knows", "Di")
    assert positions(prompt, "subject") == [4]
    assert positions(prompt, "last") == [6]  # where the answer is predicted
    assert positions(prompt, "non-subject") == [0, 1, 2, 3, 5]


def test_tokenizers_that_do_not_tell_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = hooked_pair("llama")
    monkeypatch.setattr(type(tokenizer()), "is_fast", False)
    with pytest.raises(InputError, match="'people that Ada knows speak' by this tokenizer: use its fast"):
        recall.knockout(model, SUBJECTS, window=2, progress=False)
    recall.knockout(model, SUBJECTS, window=2, groups=["last"], progress=False)


def test_windows() -> None:
    for n, size in [(1, 1), (6, 1), (6, 2), (6, 3), (6, 6), (48, 9)]:
        for layer, window in enumerate(windows(n, size)):
            assert window.start == max(0, layer - size // 2)
            assert window.stop - 1 == min(n, layer + int(np.ceil(size / 2))) - 1
            assert layer in window
