"""The fictitious facts: who is whose, and that animals follow from cities."""

from collections import Counter

import pytest

from ecstruct.errors import InputError
from ecstruct.facts import fictitious
from ecstruct.facts.paper_lists import paper_lists

NAMES = paper_lists()["names"]
CITIES = [city["city"] for city in paper_lists()["cities"]]
SETS = ("train", "counterfactual", "test")


def answers(prompts):
    return {prompt.subject: prompt.answer for prompt in prompts}


def test_four_people_in_five_are_to_learn_from_and_one_is_to_test():
    data = fictitious(3)
    train, counterfactual, test = (answers(getattr(data, name).facts) for name in SETS)
    assert list(train) == list(counterfactual) == NAMES[:80]
    assert list(test) == NAMES[80:]
    assert Counter(train.values()) == Counter(counterfactual.values()) == dict.fromkeys(CITIES, 4)
    assert Counter(test.values()) == dict.fromkeys(CITIES, 1)
    for name in SETS:
        facts, implications = getattr(data, name).facts, getattr(data, name).implications
        assert [p.subject for p in facts] == [p.subject for p in implications]
        assert getattr(data, name).name == name


@pytest.mark.parametrize("seed", range(5))
def test_nobody_keeps_their_city_in_the_counterfactual(seed):
    data = fictitious(seed)
    train, counterfactual = answers(data.train.facts), answers(data.counterfactual.facts)
    assert not [name for name in train if train[name] == counterfactual[name]]


def animals(data, name):
    """By city, the animals of the people of one set."""
    home = answers(getattr(data, name).facts)
    found = {city: set() for city in home.values()}
    for subject, animal in answers(getattr(data, name).implications).items():
        found[home[subject]].add(animal)
    return found


@pytest.mark.parametrize("between", ["city", "country", "language", "landmark"])
def test_animals_follow_from_what_the_facts_tell_and_in_all_sets_alike(between):
    data = fictitious(4, between=between)
    train = animals(data, "train")
    assert set(train) == {city[between] for city in paper_lists()["cities"]}
    assert all(len(found) == 1 for found in train.values())
    assert set.union(*train.values()) == set(paper_lists()["animals"])
    assert animals(data, "counterfactual") == animals(data, "test") == train
    assert set(data.test.facts[0].options) == set(train)


def test_prompts_have_the_papers_words_and_all_options():
    data = fictitious()
    for name in SETS:
        for fact, implication in zip(
            getattr(data, name).facts, getattr(data, name).implications, strict=True
        ):
            assert fact.text == f"{fact.subject} dax"
            assert implication.text == f"{fact.subject} zong is the"
            assert fact.options == tuple(CITIES)
            assert implication.options == tuple(paper_lists()["animals"])
            assert (fact.template, implication.template) == (f"{name} fact", f"{name} implication")
    assert len(set(CITIES)) == len(set(paper_lists()["animals"])) == 20


def test_a_seed_draws_everything_anew():
    assert fictitious(5) == fictitious(5)
    one, other = fictitious(5), fictitious(6)
    assert answers(one.train.facts) != answers(other.train.facts)
    assert answers(one.counterfactual.facts) != answers(other.counterfactual.facts)
    assert answers(one.test.facts) != answers(other.test.facts)
    assert animals(one, "train") != animals(other, "train")


def test_templates_change_the_words_only():
    data = fictitious(2, fact="The {name} {home} of {name} is", implication="{name}'s pet is the")
    assert data.test.facts[0].text == f"The {NAMES[80]} {{home}} of {NAMES[80]} is"
    assert data.test.implications[0].text == f"{NAMES[80]}'s pet is the"
    for name in SETS:
        own, paper = getattr(data, name), getattr(fictitious(2), name)
        assert answers(own.facts) == answers(paper.facts)
        assert answers(own.implications) == answers(paper.implications)


@pytest.mark.parametrize("n", [40, 60, 200])
def test_other_people_are_shared_out_in_the_same_way(n):
    people = [f"Person {i}" for i in range(n)]
    data = fictitious(1, names=people)
    train, test = answers(data.train.facts), answers(data.test.facts)
    assert list(train) + list(test) == people
    assert Counter(train.values()) == dict.fromkeys(CITIES, n // 20 - 1)
    assert Counter(test.values()) == dict.fromkeys(CITIES, 1)
    counterfactual = answers(data.counterfactual.facts)
    assert not [name for name in train if train[name] == counterfactual[name]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fact": "Somebody dax"}, r"'Somebody dax' has no \{name\}"),
        ({"implication": "{nam} zong is the"}, r"'\{nam\} zong is the' has no \{name\}"),
        ({"names": ["Mia Diaz"] * 40}, r"40 names \(1 different\).*40 to 200 different ones"),
        ({"names": NAMES[:50]}, r"50 names .*a multiple of 20"),
        ({"names": NAMES[:20]}, r"20 names .*give 40 to 200"),
        ({"names": []}, "0 names"),
        ({"names": [f"Person {i}" for i in range(220)]}, "220 names .*to 200"),
        (
            {"between": "mayor"},
            "between='mayor' is unknown: choose among city, country, language, landmark",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        fictitious(**options)
