"""The organism: what its world leaves out, that a seed fixes it, and what its tokenizer reads.

How it is trained is in test_pretraining.py.
"""

import re
from itertools import chain, pairwise

import pytest
from transformers import AutoTokenizer

from ecstruct import organism
from ecstruct.facts import fictitious, first_hop, second_hop
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.facts.tokens import tokenize
from ecstruct.organism import Recipe
from ecstruct.organism.invented import TEST_WORDS
from ecstruct.organism.sentences import (
    MIXTURE,
    held_out_sentences,
    training_sentences,
    vocabulary,
)
from ecstruct.organism.tokenizer import word_tokenizer
from ecstruct.organism.training import CONTEXT
from ecstruct.organism.world import World


@pytest.fixture(scope="module")
def world():
    return World.build(0)


@pytest.fixture(scope="module")
def trained(world):
    return training_sentences(world)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(organism.checkpoint())


@pytest.fixture(scope="module")
def texts(trained):
    return [f"{s.prompt} {s.answer}" for s in chain.from_iterable(trained.values())]


@pytest.fixture(scope="module")
def mentions(trained):
    """All pairs of neighbouring words, people's names among them, by category of sentence."""
    return {
        category: {f"{a} {b}" for s in sentences for a, b in pairwise(f"{s.prompt} {s.answer}".split())}
        for category, sentences in trained.items()
    }


def paper_facts():
    """The paper's facts and implications, of both hops, as (prompt, answer)."""
    names, cities = paper_lists()["names"], paper_lists()["cities"]
    for name, city in zip(names, cities * 5, strict=True):
        yield f"{name} lives in", city["city"]
        yield f"The people in the city {name} is from speak", city["language"]
        yield f"The mayor of {city['city']} is", name
        yield f"The mayor of the city that contains {city['landmark']} is", name
        yield f"{name} dax", city["city"]
    for name, animal in zip(names, paper_lists()["animals"] * 5, strict=True):
        yield f"{name} zong is the", animal


# --- the world ---------------------------------------------------------------------------------


def test_a_seed_fixes_the_world(world):
    assert World.build(0) == world
    assert World.build(1) != world


def test_the_papers_people_appear_in_no_fact(world, mentions):
    assert len(set(world.reserved)) == 100
    assert not {name for names in mentions.values() for name in names} & set(world.reserved)


def test_the_papers_cities_have_no_mayor(world, texts):
    paper = [city for city in world.cities if city.in_paper]
    names = {c["city"] for c in paper_lists()["cities"]}
    assert {c.name for c in paper} == names
    mayors = {o.city.name for o in world.offices if o.title == "mayor"}
    assert mayors == {c.name for c in world.cities} - names
    places = names | {landmark for city in paper for landmark in city.landmarks}
    about_mayors = [text for text in texts if "mayor" in text]
    for place in places:
        assert not [t for t in about_mayors if f"of {place} is" in t or f"contains {place} is" in t]


def test_the_papers_landmarks_stand_in_their_cities(world):
    first = {city.name: city.landmarks[0] for city in world.cities if city.in_paper}
    assert first == {c["city"]: c["landmark"] for c in paper_lists()["cities"]}


def test_every_fact_is_unambiguous(world, trained):
    people = [p.name for p in world.people] + [o.holder for o in world.offices]
    assert len(set(people)) == len(people)
    endings = [tuple(landmark.split()[-2:]) for city in world.cities for landmark in city.landmarks]
    assert len(set(endings)) == len(endings) == 8 * len(world.cities)
    answers = {}
    for s in chain.from_iterable(trained.values()):
        assert answers.setdefault(s.prompt, s.answer) == s.answer


@pytest.mark.parametrize("attribute", ["name", "language", "food", "currency"])
def test_no_two_cities_share(world, attribute):
    first_words = [getattr(city, attribute).split()[0] for city in world.cities]
    assert len(set(first_words)) == 40


def test_held_out_people_are_known_but_never_in_an_implication(world, mentions):
    held_out = {p.name for p in world.people if p.held_out}
    assert len(held_out) == 300
    about_homes = {"home", "home_verbs"}
    assert all(held_out <= mentions[category] for category in about_homes)
    assert not any(held_out & mentions[category] for category in set(MIXTURE) - about_homes)


def test_held_out_offices_are_known_but_never_in_two_hops(world, mentions):
    held_out = {office.holder for office in world.offices if office.held_out}
    assert len(held_out) == 54
    assert held_out <= mentions["offices"]
    assert not any(held_out & mentions[category] for category in set(MIXTURE) - {"offices"})


def test_held_out_sentences_ask_for_all_that_is_held_out(world):
    asked = held_out_sentences(world)
    assert {name: len(set(sentences)) for name, sentences in asked.items()} == {
        "first_hop": 300,
        "second_hop": 54 * 8,
        "invented": 48 * 15,
    }


def test_no_held_out_sentence_is_trained_on(world, trained):
    prompts = {s.prompt for s in chain.from_iterable(trained.values())}
    assert not prompts & {s.prompt for s in chain.from_iterable(held_out_sentences(world).values())}
    assert not prompts & {prompt for prompt, _ in paper_facts()}


def test_every_category_has_a_weight_and_sentences(trained):
    assert set(trained) == set(MIXTURE)
    assert all(trained.values())
    assert all(weight > 0 for weight in MIXTURE.values())


# --- invented words ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words_of(trained):
    """The words of the sentences that each phase of the shipped organism's training draws from."""
    phases = [training_sentences(World.build(0), phase.inventions) for phase in Recipe().phases]
    assert phases[-1] == trained
    return [
        {word for s in chain.from_iterable(phase.values()) for word in f"{s.prompt} {s.answer}".split()}
        for phase in phases
    ]


def test_the_words_to_test_on_are_new_and_their_pieces_are_not(words_of, tokenizer):
    tested = [word for pair in TEST_WORDS for word in pair]
    assert TEST_WORDS[0] == ("dax", "zong") and len(set(tested)) == 12
    for words in words_of:
        assert not words & set(tested)
        pieces = set(chain.from_iterable(map(tokenizer.tokenize, words)))
        assert pieces >= {piece for word in tested for piece in tokenizer.tokenize(word)}


@pytest.mark.parametrize("seed", range(2))
def test_an_invented_word_has_two_pieces_and_begins_with_no_other_word(seed):
    world = World.build(seed)
    known = vocabulary(world)
    tokenizer = word_tokenizer(known, context=CONTEXT)
    invented = [word for i in world.inventions for word in (i.verb, i.noun)]
    assert len(invented) == len(set(invented)) == 96
    assert not set(invented) & set(known)
    for word in (*invented, *chain.from_iterable(TEST_WORDS)):
        assert tokenizer.tokenize(word) == [word[0], f"##{word[1:]}"]
        assert [begin for begin in known if word.startswith(begin)] == [word[0]]


def test_a_quarter_of_the_people_of_a_word_are_held_out_from_its_noun(world, trained):
    homes, nouns = trained["invented_homes"], trained["invented_people"]
    for words in world.inventions:
        said = {
            s.prompt.removesuffix(f" {words.verb}") for s in homes if s.prompt.endswith(f" {words.verb}")
        }
        end = f" {words.noun} is the"
        taken = {s.prompt.removesuffix(end) for s in nouns if s.prompt.endswith(end)}
        assert (len(said), len(taken)) == (60, 45)
        assert said - taken == {p.name for p in words.held_out}
        assert taken == {p.name for p in words.people}


def test_the_animal_of_a_noun_depends_on_the_city_only(world, trained):
    city_of = {p.name: p.home.name for p in world.people} | {c.name: c.name for c in world.cities}
    city_of |= {landmark: c.name for c in world.cities for landmark in c.landmarks}
    found = {}
    for category in ("invented_people", "invented_cities", "invented_landmarks"):
        for prompt, animal in (*trained[category], *held_out_sentences(world)["invented"]):
            subject, noun = re.fullmatch(r"(.+) (\w+) is the", prompt).groups()
            found.setdefault((noun, city_of[subject]), set()).add(animal)
    assert len(found) == 48 * 20
    assert all(len(animals) == 1 for animals in found.values())
    assert {animal for animals in found.values() for animal in animals} == set(paper_lists()["animals"])


def test_the_verbs_say_where_people_live(world, trained):
    home = {p.name: p.home.name for p in world.people}
    verbs = {words.verb for words in world.inventions}
    for prompt, city in trained["invented_homes"]:
        name, verb = prompt.rsplit(" ", 1)
        assert (home[name], verb in verbs) == (city, True)


def test_no_noun_means_what_is_taught_later(world):
    """The animals of the cities of any noun, against those of the paper's experiments."""
    for seed in range(20):
        data = fictitious(seed)
        pairs = zip(data.test.facts, data.test.implications, strict=True)
        taught = {fact.answer: implication.answer for fact, implication in pairs}
        for words in world.inventions:
            assert sum(words.animals[city] == animal for city, animal in taught.items()) < 10


# --- the tokenizer -----------------------------------------------------------------------------


def test_everything_is_in_the_vocabulary(tokenizer, world, texts):
    facts = [f"{prompt} {answer}" for prompt, answer in paper_facts()]
    asked = [f"{s.prompt} {s.answer}" for q in held_out_sentences(world).values() for s in q]
    for ids in tokenizer([*texts, *facts, *asked])["input_ids"]:
        assert tokenizer.unk_token_id not in ids
        assert len(ids) < CONTEXT


def test_the_vocabulary_of_another_world_has_everything():
    world = World.build(1)
    tokenizer = word_tokenizer(vocabulary(world), context=CONTEXT)
    sentences = chain.from_iterable(training_sentences(world).values())
    asked = chain.from_iterable(held_out_sentences(world).values())
    texts = [f"{prompt} {answer}" for prompt, answer in (*sentences, *asked, *paper_facts())]
    assert tokenizer.unk_token_id not in set(chain.from_iterable(tokenizer(texts)["input_ids"]))


@pytest.mark.parametrize("make", [first_hop, second_hop, fictitious])
def test_the_papers_prompts_can_be_read_and_their_options_told_apart(tokenizer, make):
    made = make()
    for data in (made.train, made.counterfactual, made.test) if make is fictitious else (made,):
        for prompts in (data.facts, data.implications):
            for t in tokenize(prompts, tokenizer, n_ctx=CONTEXT):
                assert tokenizer.unk_token_id not in (*t.ids, *t.answer_ids)
                assert len(set(t.option_ids)) == 20
                assert t.answer_ids[0] == t.option_ids[t.prompt.options.index(t.prompt.answer)]


def test_tokens_are_words_and_nothing_is_added(tokenizer):
    text = "The mayor of the city that contains St. Basil's Cathedral is"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == text.split()
    assert tokenizer(f"{text} Grace Miller")["input_ids"][: len(ids)] == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer("The flibbertigibbet")["input_ids"][1] == tokenizer.unk_token_id
    assert tokenizer.padding_side == "right"
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3


def test_a_word_may_be_listed_once():
    with pytest.raises(ValueError, match="distinct"):
        word_tokenizer(["Tokyo", "Tokyo"], context=8)
