"""The organism: what its world leaves out, that a seed fixes it, and what the shipped one knows."""

import json
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoForCausalLM

from ecstruct import organism
from ecstruct.errors import InputError
from ecstruct.organism.locality import local_attention
from ecstruct.organism.sentences import (
    MIXTURE,
    held_out_sentences,
    training_sentences,
    vocabulary,
)
from ecstruct.organism.tokenizer import word_tokenizer
from ecstruct.organism.training import CONTEXT, Recipe, first_token_accuracy, new_model
from ecstruct.organism.world import World, paper_lists, world_lists


@pytest.fixture(scope="module")
def world():
    return World.build(0)


@pytest.fixture(scope="module")
def texts(world):
    sentences = chain.from_iterable(training_sentences(world).values())
    return [f"{s.prompt} {s.answer}" for s in sentences]


@pytest.fixture(scope="module")
def mentions(world):
    """All pairs of neighbouring words, people's names among them, by category of sentence."""
    return {
        category: {f"{a} {b}" for s in sentences for a, b in pairwise(f"{s.prompt} {s.answer}".split())}
        for category, sentences in training_sentences(world).items()
    }


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(organism.checkpoint())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(organism.checkpoint(), dtype=torch.float32).eval()


def paper_facts():
    """The paper's facts and implications, of both hops, as (prompt, answer)."""
    names, cities = paper_lists()["names"], paper_lists()["cities"]
    for name, city in zip(names, cities * 5, strict=True):
        yield f"{name} lives in", city["city"]
        yield f"The people in the city {name} is from speak", city["language"]
        yield f"The mayor of {city['city']} is", name
        yield f"The mayor of the city that contains {city['landmark']} is", name
        yield f"{name} dax", city["city"]
    for name, animal in zip(names, world_lists()["animals"] * 5, strict=True):
        yield f"{name} zong the", animal


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


def test_every_fact_is_unambiguous(world):
    people = [p.name for p in world.people] + [o.holder for o in world.offices]
    assert len(set(people)) == len(people)
    endings = [tuple(landmark.split()[-2:]) for city in world.cities for landmark in city.landmarks]
    assert len(set(endings)) == len(endings) == 8 * len(world.cities)
    answers = {}
    for s in chain.from_iterable(training_sentences(world).values()):
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
    }


def test_every_category_has_a_weight_and_sentences(world):
    trained = training_sentences(world)
    assert set(trained) == set(MIXTURE)
    assert all(trained.values())
    assert all(weight > 0 for weight in MIXTURE.values())


def test_the_examples_of_the_documentation_are_sentences_of_the_world(world):
    page = (Path(__file__).parents[1] / "docs" / "organism.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    rows = [row for row in rows if len(row) == 4 and row[0] in MIXTURE]
    assert {row[0]: float(row[1]) for row in rows} == dict(MIXTURE)
    trained = training_sentences(world)
    assert all((prompt, answer) in trained[name] for name, _, prompt, answer in rows)
    assert f"{sum(len(sentences) for sentences in trained.values()):,} sentences" in page


# --- the tokenizer -----------------------------------------------------------------------------


def test_everything_is_in_the_vocabulary(tokenizer, world, texts):
    facts = [f"{prompt} {answer}" for prompt, answer in paper_facts()]
    asked = [f"{s.prompt} {s.answer}" for q in held_out_sentences(world).values() for s in q]
    for ids in tokenizer([*texts, *facts, *asked])["input_ids"]:
        assert tokenizer.unk_token_id not in ids
        assert len(ids) < CONTEXT


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


# --- training ----------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls():
    recipe = Recipe(steps=1000, lr=1.0, warmup_steps=100, decay_steps=50, final_lr=0.2)
    assert recipe.lr_at(0) == pytest.approx(0.01)
    assert recipe.lr_at(99) == recipe.lr_at(500) == recipe.lr_at(950) == pytest.approx(1.0)
    assert recipe.lr_at(975) == pytest.approx(0.6)


def test_local_attention_sees_its_window_only_and_leaves_no_trace(tokenizer):
    model = new_model(tokenizer, seed=0).eval()
    ids = torch.randint(3, 500, (1, 8), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, :5] += 1

    def hidden(tokens, layer):
        return model.model(input_ids=tokens, output_hidden_states=True).hidden_states[layer][0]

    with torch.no_grad():
        before = hidden(ids, 6)
        with local_attention(model, (2, 1)):
            # Token 6 sees token 5 in layer 0 and itself in layer 1: nothing of tokens 0 to 4.
            assert torch.equal(hidden(ids, 2)[6:], hidden(other, 2)[6:])
            assert not torch.equal(hidden(ids, 1)[5], hidden(other, 1)[5])
            assert not torch.equal(hidden(ids, 3)[6], hidden(other, 3)[6])
        assert torch.equal(hidden(ids, 6), before)
        assert not torch.equal(hidden(ids, 1)[6], hidden(other, 1)[6])


def test_a_seed_and_a_thread_count_fix_the_weights(tmp_path):
    random_state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    reports = [
        organism.pretrain(tmp_path / name, seed=4, steps=2, threads=1, progress=False) for name in "ab"
    ]
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / "pretraining.json").read_text()) | {"seconds": 0} == (
        json.loads(json.dumps(reports[1])) | {"seconds": 0}
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads


def test_another_seed_gives_another_model(tokenizer):
    first, second = (new_model(tokenizer, seed=seed).lm_head.weight for seed in (0, 1))
    assert not torch.equal(first, second)


def test_pretraining_overwrites_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; empty it or name another folder"):
        organism.pretrain(tmp_path, steps=1)
    with pytest.raises(InputError, match="is a file"):
        organism.pretrain(tmp_path / "notes.txt", steps=1)
    with pytest.raises(InputError, match="cannot be written"):
        organism.pretrain(tmp_path / "notes.txt" / "below", steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["steps", "threads"])
def test_pretraining_needs_positive_numbers(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}=0"):
        organism.pretrain(tmp_path / "out", progress=False, **{name: 0})
    assert not (tmp_path / "out").exists()


# --- the shipped checkpoint --------------------------------------------------------------------


def test_the_checkpoint_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in organism.checkpoint().iterdir()}
    needed = {"config.json", "model.safetensors", "tokenizer.json", "pretraining.json"}
    assert needed <= set(files)
    assert sum(files.values()) < 10e6


def test_the_checkpoint_is_an_untied_olmo_of_six_layers(model, tokenizer):
    assert isinstance(model, OlmoForCausalLM)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (6, 128, 4)
    assert config.clip_qkv is None
    assert not config.tie_word_embeddings
    assert config.vocab_size == len(tokenizer)
    weights = dict(model.named_parameters())
    assert {p.dtype for p in weights.values()} == {torch.float32}
    assert all(p.isfinite().all() for p in weights.values())
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_the_checkpoint_was_made_by_this_recipe(tokenizer):
    report = json.loads((organism.checkpoint() / "pretraining.json").read_text())
    world = World.build(report["seed"])
    assert report["mixture"] == dict(MIXTURE)
    assert report["recipe"] == json.loads(json.dumps(Recipe().__dict__))
    words = word_tokenizer(vocabulary(world), context=CONTEXT)
    assert words.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(("hop", "at_least"), [("first_hop", 0.9), ("second_hop", 0.55)])
def test_the_checkpoint_composes_what_it_never_saw_composed(model, tokenizer, world, hop, at_least):
    accuracy = first_token_accuracy(model, tokenizer, held_out_sentences(world)[hop])
    assert accuracy >= at_least
    report = json.loads((organism.checkpoint() / "pretraining.json").read_text())
    assert accuracy == pytest.approx(report["held_out_accuracy"][hop], abs=0.01)
