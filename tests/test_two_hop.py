"""The paper's facts, and fact sets as Hugging Face datasets."""

import datasets
import numpy as np
import pytest

from ecstruct.errors import InputError
from ecstruct.facts import FactSet, Prompt, first_hop, second_hop

LANGUAGE = {"Tokyo": "Japanese", "Paris": "French", "Nairobi": "Swahili", "Addis Ababa": "Amharic"}
LANDMARK = {"Tokyo": "Senso-ji Temple", "Paris": "Eiffel Tower", "Nairobi": "Uhuru Gardens"}


def test_first_hop_implications_follow_from_the_facts():
    data = first_hop(seed=3)
    assert data.name == "first-hop"
    home = {}
    for prompt in data.facts:
        assert prompt.text == f"{prompt.subject} lives in"
        assert prompt.template == "first-hop fact"
        home[prompt.subject] = prompt.answer
    assert len(home) == len(set(home.values())) == 20
    assert next(iter(home)) == "Grace Miller" and list(home)[19] == "Owen Foster"
    assert set(data.facts[0].options) == set(home.values())
    for prompt in data.implications:
        assert prompt.text == f"The people in the city {prompt.subject} is from speak"
        assert prompt.template == "first-hop implication"
        assert len(set(prompt.options)) == 20
        assert prompt.answer == LANGUAGE.get(home[prompt.subject], prompt.answer)
    languages = {home[p.subject]: p.answer for p in data.implications}
    assert LANGUAGE.items() <= languages.items()


def test_second_hop_implications_follow_from_the_facts():
    data = second_hop(seed=3)
    assert data.name == "second-hop"
    mayor = {prompt.subject: prompt.answer for prompt in data.facts}
    for prompt in data.facts:
        assert prompt.text == f"The mayor of {prompt.subject} is"
        assert prompt.template == "second-hop fact"
    assert next(iter(mayor)) == "Tokyo" and len(set(mayor.values())) == 20
    of_landmark = {}
    for prompt in data.implications:
        assert prompt.text == f"The mayor of the city that contains {prompt.subject} is"
        assert prompt.template == "second-hop implication"
        assert set(prompt.options) == set(mayor.values())
        of_landmark[prompt.subject] = prompt.answer
    assert {LANDMARK[c]: mayor[c] for c in LANDMARK}.items() <= of_landmark.items()


@pytest.mark.parametrize("make", [first_hop, second_hop])
def test_the_seed_draws_the_pairing_and_nothing_else(make):
    assert make(seed=5) == make(seed=5)
    a, b = make(seed=0), make(seed=1)
    assert [p.text for p in a.facts] == [p.text for p in b.facts]
    assert [p.answer for p in a.facts] != [p.answer for p in b.facts]
    assert {p.answer for p in a.facts} == {p.answer for p in b.facts}


def test_the_pairing_is_the_documented_permutation():
    cities = first_hop().facts[0].options
    drawn = np.random.default_rng(7).permutation(20)
    assert [p.answer for p in first_hop(7).facts] == [cities[i] for i in drawn]
    names = second_hop().facts[0].options
    assert [p.answer for p in second_hop(7).facts] == [names[i] for i in drawn]


def test_other_names_share_nobody_with_the_first():
    others = {p.subject for p in first_hop(names=slice(20, 40)).facts}
    assert len(others) == 20
    assert not others & {p.subject for p in first_hop().facts}
    with pytest.raises(InputError, match="selects 10 of the 100 names"):
        second_hop(names=slice(90, 110))


@pytest.mark.parametrize(
    "data",
    [
        first_hop(),
        second_hop(),
        FactSet([Prompt("a b", "c")], (), "one fact"),
        FactSet(
            [Prompt("a b", "c", ("c", "d"), "a", "t"), Prompt("e f", "c")],
            [Prompt("é \u2028 b", "c")],
        ),
    ],
)
def test_a_fact_set_comes_back_from_datasets_exactly(data, tmp_path):
    dataset = data.to_dataset()
    assert isinstance(dataset, datasets.DatasetDict)
    assert FactSet.from_dataset(dataset) == data
    dataset.save_to_disk(str(tmp_path))
    assert FactSet.from_dataset(datasets.load_from_disk(str(tmp_path))) == data


def test_unusable_fact_sets_are_refused():
    with pytest.raises(InputError, match="list of prompts is empty"):
        FactSet([], [Prompt("a b", "c")])
    with pytest.raises(InputError, match="this DatasetDict has 'train'"):
        FactSet.from_dataset(datasets.DatasetDict(train=first_hop().to_dataset()["facts"]))
