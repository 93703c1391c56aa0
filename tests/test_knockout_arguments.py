"""What `knockout` takes for positions and windows."""

import numpy as np
import pytest
from helpers.recall_cases import SUBJECTS
from helpers.tiny import N_LAYERS, hooked_pair

from ecstruct import InputError, recall
from ecstruct.recall.groups import positions
from ecstruct.recall.session import Session

PROMPTS = SUBJECTS[:2]


def test_positions_may_be_numpy_integers_and_results_are_saved(tmp_path):
    model, _ = hooked_pair("llama")
    last = len(Session.of(model).read(PROMPTS[:1])[0].ids) - 1
    its = {
        "one": np.int64(1),
        "some": np.array([1, 2]),
        "listed": [np.int32(2)],
        "sliced": slice(np.int64(0), np.int64(2)),
    }
    plain = {"one": 1, "some": [1, 2], "listed": [2], "sliced": slice(0, 2)}
    found, expected = (
        recall.knockout(model, PROMPTS[:1], groups=groups, destination=into, window=1, progress=False)
        for groups, into in ((its, np.int64(last)), (plain, last))
    )
    np.testing.assert_array_equal(found, expected)
    assert found.attrs == expected.attrs
    recall.save(found, tmp_path / "found.nc")
    assert recall.load(tmp_path / "found.nc").attrs == expected.attrs


@pytest.mark.parametrize("which", [1.5, [0.5], None, slice(0.5)])
def test_what_is_no_group_of_positions_is_refused(which):
    (prompt,) = Session.of(hooked_pair("llama")[0]).read(PROMPTS[:1])
    with pytest.raises(InputError, match="no group of positions"):
        positions(prompt, which)


def test_a_model_of_few_layers_needs_no_window():
    model, _ = hooked_pair("llama")
    found = recall.knockout(model, PROMPTS, progress=False)
    assert found.attrs["options"]["window"] == N_LAYERS < 9
    whole = recall.knockout(model, PROMPTS, window=N_LAYERS, progress=False)
    assert found.identical(whole)
    by_token = recall.knockout_tokens(model, PROMPTS[0], progress=False)
    assert by_token.attrs["options"]["window"] == N_LAYERS


def test_one_part_may_be_given_without_a_list():
    model, _ = hooked_pair("llama")
    attributes = recall.Attributes.from_facts(PROMPTS, model)
    options = {"at_layer": 1, "top": 10, "kept": 10, "progress": False}
    one = recall.sublayer_knockout(model, PROMPTS, attributes, parts="mlp", **options)
    assert one.identical(recall.sublayer_knockout(model, PROMPTS, attributes, parts=["mlp"], **options))
