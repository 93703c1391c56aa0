"""Invented people: who they are, and what follows for them."""

from itertools import combinations

import numpy as np
import pytest

from ecstruct.facts import FactSet, mayors, people
from ecstruct.facts.invented_people import invented_names


def test_an_implication_follows_from_its_fact_and_what_is_known():
    data = people(3)
    languages = {known.subject: known.answer for known in data.known}
    assert len(languages) == 16 and len(set(languages.values())) == 16
    for fact, implication, derivation in zip(data.facts, data.implications, data.derivations, strict=True):
        assert fact.text == f"{fact.subject} lives in the city of"
        assert implication.text == f"The people in the city {fact.subject} is from speak"
        assert implication.subject == fact.subject
        assert implication.answer == languages[fact.answer]
        assert data.facts[derivation.facts[0]] == fact
        assert data.known[derivation.known[0]].subject == fact.answer
        assert set(fact.options) == set(languages) and set(implication.options) == set(languages.values())


def test_a_landmark_has_the_mayor_of_its_city():
    data = mayors(3)
    landmarks = {known.answer: known.subject for known in data.known}
    assert len(landmarks) == 16
    for fact, implication, derivation in zip(data.facts, data.implications, data.derivations, strict=True):
        assert fact.text == f"The mayor of the city of {fact.subject} is"
        assert implication.text == f"The mayor of the city that contains {implication.subject} is"
        assert implication.answer == fact.answer and set(implication.options) == set(fact.options)
        assert landmarks[fact.subject].lower() == implication.subject.lower()
        assert data.facts[derivation.facts[0]] == fact and derivation.new_hops == (2,)
        assert data.known[derivation.known[0]].answer == fact.subject


def test_mayors_can_be_told_apart_by_their_initials():
    for seed in range(20):
        assert len({fact.answer[0] for fact in mayors(seed).facts}) == 16


@pytest.mark.parametrize("make", [people, mayors])
def test_a_seed_says_it_all(make):
    assert make(1) == make(1)
    draws = [make(seed) for seed in range(20)]
    assert len({tuple(fact.subject for fact in data.facts) for data in draws}) == 20
    assert len({tuple(fact.answer for fact in data.facts) for data in draws}) == 20
    assert FactSet.from_dataset(draws[0].to_dataset()) == draws[0]


def test_as_many_names_as_one_likes():
    names = invented_names(np.random.default_rng(0), 100)
    assert len(set(names)) == 100
    assert len({name.split()[0] for name in names[:40]}) == 40
    assert invented_names(np.random.default_rng(3), 16) == [fact.subject for fact in people(3).facts]


def test_names_of_a_draw_do_not_end_alike():
    for seed in range(20):
        names = [fact.subject.split() for fact in people(seed).facts]
        for one, other in combinations(names, 2):
            assert one[0] != other[0] and one[1][-4:] != other[1][-4:]
