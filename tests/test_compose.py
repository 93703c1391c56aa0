"""Two-hop facts on a known relation, and the filter for what a model knows."""

import json
from pathlib import Path

import pytest

import ecstruct
from ecstruct.errors import InputError
from ecstruct.evaluate import keep_known, ranks
from ecstruct.facts import (
    Derivation,
    FactSet,
    Prompt,
    Relation,
    compose,
    first_hop,
    read_relations,
    second_hop,
)
from ecstruct.facts.paper_lists import paper_lists

LRE = Path(__file__).parent / "data" / "lre"
CITIES = paper_lists()["cities"]
LANGUAGE = {city["city"]: city["language"] for city in CITIES}
LANDMARK = {city["landmark"]: city["city"] for city in CITIES}
SPOKEN = Relation("spoken", ["The people in {} speak"], list(LANGUAGE.items()), "city")
STANDS = Relation("stands", ["{} is in"], list(LANDMARK.items()), "landmark")


@pytest.fixture(scope="module")
def organism():
    return ecstruct.load("organism", device="cpu")


def test_the_papers_first_hop_can_be_composed():
    data = compose(
        [STANDS, SPOKEN], known_relation="spoken", fact="{name} lives in", mention="the city {name} is from"
    )
    paper = first_hop()
    assert [p.text for p in data.facts] == [p.text for p in paper.facts]
    assert [p.text for p in data.implications] == [p.text for p in paper.implications]
    assert [set(p.options) for p in data.implications] == [set(p.options) for p in paper.implications]
    for i, (fact, implied, known) in enumerate(zip(data.facts, data.implications, data.known, strict=True)):
        assert known.text == f"The people in {fact.answer} speak"
        assert implied.answer == known.answer == LANGUAGE[fact.answer]
        assert fact.subject == implied.subject and known.subject == fact.answer
        assert data.derivations[i] == Derivation((i,), (i,), (1,))
    assert len({fact.answer for fact in data.facts}) == 20


def test_the_papers_second_hop_can_be_composed():
    data = compose(
        [STANDS, SPOKEN],
        known_relation="stands",
        hop="second",
        fact="The mayor of {object} is",
        mention="the city that contains {subject}",
    )
    paper = second_hop()
    assert {p.text for p in data.facts} == {p.text for p in paper.facts}
    assert {p.text for p in data.implications} == {p.text for p in paper.implications}
    for i, (fact, implied, known) in enumerate(zip(data.facts, data.implications, data.known, strict=True)):
        assert fact.text == f"The mayor of {known.answer} is"
        assert LANDMARK[known.subject] == known.answer and implied.subject == known.subject
        assert fact.answer == implied.answer == paper_lists()["names"][i]
        assert data.derivations[i] == Derivation((i,), (i,), (2,))


def test_words_of_its_own_for_relations_of_lre():
    first = compose(LRE, known_relation="country language")
    assert first.facts[0].text == "The favorite country of Grace Miller is"
    assert first.implications[0].text == "People in the favorite country of Grace Miller speak"
    assert first.name == "country language, first hop new"
    second = compose(LRE / "country_capital_city.json", known_relation="country capital city", hop="second")
    by_capital = {known.answer: known.subject for known in second.known}
    assert by_capital["Brasília"] == "Brazil" and len(second.facts) == 12
    for fact, implied, known in zip(second.facts, second.implications, second.known, strict=True):
        assert fact.text == f"The biggest fan of {known.answer} is"
        assert implied.text == f"The biggest fan of the capital city of {known.subject} is"
    other = compose(LRE, known_relation="country language", template="Most people in {} speak")
    assert other.known[0].text.startswith("Most people in ")


def test_the_seed_draws_the_samples():
    drawn = [compose([SPOKEN], known_relation="spoken", seed=seed, n=10) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]
    assert [p.text for p in drawn[0].facts] == [p.text for p in drawn[2].facts]


def test_what_is_ambiguous_is_left_out():
    pairs = [("a", "X"), ("a", "Y"), ("b", "X"), ("c", "X"), ("d", "Z"), ("d", "Z")]
    relation = Relation("r", ["The r of {} is"], pairs)
    assert {p.subject for p in compose([relation], known_relation="r").known} == {"b", "c", "d"}
    used = [
        {p.subject for p in compose([relation], known_relation="r", hop="second", seed=seed).known}
        for seed in range(10)
    ]
    assert all(subjects in ({"b", "d"}, {"c", "d"}) for subjects in used) and used.count(used[0]) < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known_relation": "currency"}, "no relation 'currency' among 'stands', 'spoken'"),
        ({"hop": "third"}, "hop='third' is unknown"),
        ({"fact": "Somebody lives in"}, "'Somebody lives in' has no {name}"),
        ({"fact": "{name} lives in"}, "'{name} lives in' is no 'The ... is'.* pass mention="),
        ({"fact": "{name} lives in", "mention": "the city"}, "'the city' has no {name}"),
        ({"hop": "second"}, "'The people in {subject} speak' is no 'The ... is'"),
        ({"hop": "second", "mention": "there"}, "'there' has no {subject}"),
        ({"hop": "second", "fact": "The mayor is", "mention": "{subject}"}, "has no {object}"),
        ({"template": "They speak"}, "'They speak' has no {}"),
        ({"names": ["Ada"]}, "1 names and n=20 make no two facts"),
        ({"n": -3}, "n=-3 make no two facts"),
    ],
)
def test_what_cannot_be_composed(arguments, message):
    with pytest.raises(InputError, match=message):
        compose([STANDS, SPOKEN], **{"known_relation": "spoken", **arguments})


def test_objects_that_are_all_the_same_make_no_question():
    same = Relation("same", ["The sort of {} is"], [("a", "X"), ("b", "X"), ("c", "X")])
    with pytest.raises(InputError, match="of different objects"):
        compose([same], known_relation="same")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"name": "x", "prompt_templates": ["{} is"], "samples": []}, "has no samples"),
        (
            {"name": "x", "prompt_templates": ["It is"], "samples": [{"subject": "a", "object": "b"}]},
            "needs {}",
        ),
        ({"name": "x", "prompt_templates": ["{} is"], "samples": [{"subject": "a"}]}, "no 'object'"),
        ({"prompt": "a"}, "line 1, is no relation"),
        ([1], "it is no object"),
    ],
)
def test_files_that_are_no_relations(record, message, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        read_relations(tmp_path / "x.json")


# What a model knows


def told(language):
    """A relation of which some samples are wrong, so that the organism does not know them."""
    wrong = dict(zip(("Tokyo", "Paris", "Rome"), ("French", "Italian", "Japanese"), strict=True))
    return Relation(
        "spoken", ["The people in {} speak"], list({**language, **wrong}.items()), "city"
    ), wrong


def test_only_what_the_model_knows_is_kept(organism):
    relation, wrong = told(LANGUAGE)
    data = compose(
        [relation], known_relation="spoken", fact="{name} lives in", mention="the city {name} is from"
    )
    found = keep_known(organism, data)
    assert {p.subject for p in found.dropped} == set(wrong) and all(rank > 0 for rank in found.ranks)
    assert len(found.kept.facts) == len(found.kept.implications) == len(found.kept.known) == 17
    assert (ranks(organism, found.kept.known) == 0).all()
    for fact, implied, known in zip(
        found.kept.facts, found.kept.implications, found.kept.known, strict=True
    ):
        assert known.subject == fact.answer and fact.subject == implied.subject
        assert fact in data.facts and implied in data.implications  # options and all
    assert found.kept.derivations == tuple(Derivation((i,), (i,), (1,)) for i in range(17))


def test_prompts_can_be_filtered_too(organism):
    relation, wrong = told(LANGUAGE)
    prompts = compose([relation], known_relation="spoken").known
    found = keep_known(organism, prompts)
    assert found.kept == tuple(p for p in prompts if p.subject not in wrong)
    assert found.ranks == tuple(ranks(organism, prompts)[[p.subject in wrong for p in prompts]])
    assert keep_known(organism, prompts, answer_tokens="all").kept == found.kept


def test_a_fact_that_another_implication_needs_stays(organism):
    known = [Prompt("The people in Tokyo speak", a, ("Japanese", "French")) for a in ("Japanese", "French")]
    data = FactSet(
        [("Ada lives in", "Tokyo"), ("Bea lives in", "Paris")],
        [("Ada speaks", "Japanese"), ("Ada talks", "French"), ("Bea talks", "French")],
        "two",
        [known[0], Prompt("The people of Tokyo speak", "French", ("Japanese", "French"))],
        [Derivation((0,), (0,)), Derivation((0,), (1,)), Derivation((1,), (0, 1))],
    )
    kept = keep_known(organism, data).kept
    assert [p.text for p in kept.facts] == ["Ada lives in"]
    assert [p.text for p in kept.implications] == ["Ada speaks"]
    assert kept.known == (known[0],) and kept.derivations == (Derivation((0,), (0,)),)


def test_nothing_known_and_nothing_to_know(organism):
    with pytest.raises(InputError, match="knows none of 1 facts, as 'The people in Tokyo speak'"):
        keep_known(organism, [Prompt("The people in Tokyo speak", "French", ("Japanese", "French"))])
    with pytest.raises(InputError, match="'first-hop' has no known facts"):
        keep_known(organism, first_hop())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"derivations": [Derivation((0,))] * 2}, "2 derivations of 1 implications"),
        ({"derivations": [Derivation((3,))]}, r"follows from facts\[3\], but there are only 2"),
        ({"derivations": [Derivation((0,), (0,))]}, r"follows from known\[0\], but there are only 0"),
    ],
)
def test_derivations_must_go_with_the_prompts(arguments, message):
    with pytest.raises(InputError, match=message):
        FactSet([("a b", "c"), ("d e", "f")], [("g h", "i")], **arguments)


def test_subsets():
    data = compose([SPOKEN], known_relation="spoken", n=4)
    part = data.subset([3, 1])
    assert part.implications == (data.implications[3], data.implications[1])
    assert part.facts == (data.facts[1], data.facts[3])
    assert part.derivations == (Derivation((1,), (1,), (1,)), Derivation((0,), (0,), (1,)))
    assert FactSet.from_dataset(part.to_dataset()) == part
    with pytest.raises(InputError, match="no fact is left"):
        data.subset([])
    with pytest.raises(InputError, match="has no derivations"):
        data.shuffled(0).subset([0])
