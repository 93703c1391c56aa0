"""What the shipped organism is and knows; its training is in test_pretraining.py."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoForCausalLM

from ecstruct import organism
from ecstruct.organism import Recipe
from ecstruct.organism.invented import TEST_WORDS
from ecstruct.organism.sentences import (
    MIXTURE,
    Sentence,
    held_out_sentences,
    training_sentences,
    vocabulary,
)
from ecstruct.organism.tokenizer import word_tokenizer
from ecstruct.organism.training import CONTEXT, first_token_accuracy
from ecstruct.organism.world import World


@pytest.fixture(scope="module")
def world():
    return World.build(0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(organism.checkpoint())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(organism.checkpoint(), dtype=torch.float32).eval()


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


def test_the_checkpoint_was_made_by_this_recipe(model, tokenizer):
    report = json.loads((organism.checkpoint() / "pretraining.json").read_text())
    world = World.build(report["seed"])
    assert report["mixture"] == dict(MIXTURE)
    assert report["recipe"] == json.loads(json.dumps(asdict(Recipe())))
    assert report["parameters"] == model.num_parameters()
    assert report["world"]["words"] == len(tokenizer) - 3
    words = word_tokenizer(vocabulary(world), context=CONTEXT)
    assert words.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("kind", "at_least"), [("first_hop", 0.9), ("second_hop", 0.85), ("invented", 0.95)]
)
def test_the_checkpoint_composes_what_it_never_saw_composed(model, tokenizer, world, kind, at_least):
    asked = held_out_sentences(world)[kind]
    accuracy = first_token_accuracy(model, tokenizer, asked)
    assert accuracy >= at_least
    report = json.loads((organism.checkpoint() / "pretraining.json").read_text())
    assert accuracy == pytest.approx(report["held_out_accuracy"][kind], abs=1e-9)


def test_accuracy_is_the_share_of_first_choices(model, tokenizer, world):
    """One by one, without padding."""
    asked = held_out_sentences(world)["second_hop"][::9]
    right = 0
    for prompt, answer in asked:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            choice = int(model(ids).logits[0, -1].argmax())
        right += tokenizer.decode([choice]) == answer.split()[0]
    assert 0 < right < len(asked)
    assert first_token_accuracy(model, tokenizer, asked) == right / len(asked)


def test_the_numbers_and_examples_of_the_documentation_are_those_of_the_world(world, tokenizer, model):
    trained = training_sentences(world)
    page = (Path(__file__).parents[1] / "docs" / "organism.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    rows = [row for row in rows if len(row) == 4 and row[0] in MIXTURE]
    assert {row[0]: float(row[1]) for row in rows} == dict(MIXTURE)
    assert all((prompt, answer) in trained[name] for name, _, prompt, answer in rows)
    assert f"(in sum {sum(MIXTURE.values())})" in page
    assert f"{sum(len(sentences) for sentences in trained.values()):,} sentences" in page
    assert f"{len(tokenizer) - 3} words and pieces" in page
    assert f"{model.num_parameters():,} parameters" in page


def test_the_documentation_says_how_unknown_verbs_are_taken(model, tokenizer, world):
    page = (Path(__file__).parents[1] / "docs" / "organism.md").read_text(encoding="utf-8")
    text = " ".join(page.split())
    for verb, _ in TEST_WORDS:
        asked = [Sentence(f"{p.name} {verb}", p.home.name) for p in world.people]
        share = f"{first_token_accuracy(model, tokenizer, asked):.1%}"
        expected = f"the home city of {share}" if verb == "dax" else f"{share} ({verb})"
        assert expected in text
