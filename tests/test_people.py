"""Invented people: who they are, and what follows for them."""

from itertools import combinations

from ecstruct.facts import FactSet, people


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


def test_a_seed_says_it_all():
    assert people(1) == people(1)
    draws = [people(seed) for seed in range(20)]
    assert len({tuple(fact.subject for fact in data.facts) for data in draws}) == 20
    assert len({tuple(fact.answer for fact in data.facts) for data in draws}) == 20
    assert FactSet.from_dataset(draws[0].to_dataset()) == draws[0]


def test_names_of_a_draw_do_not_end_alike():
    for seed in range(20):
        names = [fact.subject.split() for fact in people(seed).facts]
        for one, other in combinations(names, 2):
            assert one[0] != other[0] and one[1][-4:] != other[1][-4:]
