"""Ranks against a loop over single prompts with the plain Hugging Face model."""

import math

import numpy as np
import pytest
import torch
from helpers.facts_fixtures import FACTS, hugging_face, save_tiny

from ecstruct.errors import InputError
from ecstruct.evaluate import keep_known, mean_rank, ranks
from ecstruct.facts import Prompt
from ecstruct.models.bridge import named_weights
from ecstruct.models.loading import load


@pytest.fixture(scope="module", params=["llama", "gpt2", "neox"])
def folder(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def model(folder):
    return load(folder, device="cpu")


def first_token(model, word):
    return model.tokenizer.convert_tokens_to_ids(word.split()[0])


def brute_force(hf, tokenizer, text, answer, options):
    """Sort the options by their logit and look where the answer is."""
    with torch.no_grad():
        logits = hf(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    ids = tokenizer.convert_tokens_to_ids([option.split()[0] for option in options])
    by_logit = [options[i] for i in logits[ids].argsort(descending=True)]
    return by_logit.index(answer)


def test_ranks_are_those_of_single_prompts_one_by_one(model, folder):
    hf = hugging_face(folder)
    options = list(dict.fromkeys(answer for _, answer in FACTS))
    # Every option as the answer of every prompt: all ranks occur.
    asked = [Prompt(text, answer, options) for text, _ in FACTS for answer in options]
    expected = [brute_force(hf, model.tokenizer, p.text, p.answer, options) for p in asked]
    assert sorted(set(expected)) == list(range(len(options)))
    found = ranks(model, asked)
    assert found.tolist() == expected
    assert mean_rank(model, asked) == np.mean(expected)


def test_ranks_among_the_whole_vocabulary(model, folder):
    hf, tokenizer = hugging_face(folder), model.tokenizer
    words = [word for word in tokenizer.get_vocab() if not word.startswith("<")]
    asked = [Prompt(text, word) for text, _ in FACTS for word in words]
    expected = []
    for prompt in asked:
        with torch.no_grad():
            logits = hf(torch.tensor([tokenizer(prompt.text)["input_ids"]])).logits[0, -1]
        order = logits.argsort(descending=True).tolist()
        expected.append(order.index(first_token(model, prompt.answer)))
    assert 0 in expected
    assert ranks(model, asked, among="vocabulary").tolist() == expected
    kept = keep_known(model, asked, among="vocabulary")
    known = [(p.text, p.answer) for p, rank in zip(asked, expected, strict=True) if rank == 0]
    assert [(p.text, p.answer) for p in kept.kept] == known
    # The better name counts: with the alias that is predicted, the answer is known.
    right, wrong = asked[expected.index(0)], asked[expected.index(1)].answer
    assert ranks(model, [Prompt(right.text, wrong, aliases=(right.answer,))], among="vocabulary") == 0
    for options in ({"among": "words"}, {"among": "vocabulary", "answer_tokens": "all"}):
        with pytest.raises(InputError, match="among"):
            ranks(model, asked, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batch_size_and_order_change_nothing(model, batch_size):
    asked = [*FACTS, *FACTS[::-1]]
    found = ranks(model, asked, batch_size=batch_size)
    assert found.tolist() == [*ranks(model, FACTS), *ranks(model, FACTS)[::-1]]


def test_ties_count_half(model):
    unembedding = named_weights(model)["unembed.weight"]
    options = ["Tokyo", "Paris", "Rome", "Cairo"]
    prompt = Prompt("Mia lives in", "Tokyo", options)
    tokyo, paris, rome, cairo = (first_token(model, word) for word in options)
    with torch.no_grad():
        unembedding[[tokyo, paris, rome]] = 0.0  # logit 0 for the three
        logits = model(torch.tensor([model.tokenizer(prompt.text)["input_ids"]]))[0, -1]
        if logits[cairo] < 0:
            unembedding[cairo] *= -1
    assert ranks(model, [prompt]).tolist() == [1 + 2 / 2]
    assert ranks(model, [Prompt(prompt.text, "Cairo", options)]).tolist() == [0.0]


def test_nan_logits_are_refused(model):
    with torch.no_grad():
        named_weights(model)["ln_final.weight"][3] = math.nan
    with pytest.raises(InputError, match="logits after 'Mia lives in' are NaN"):
        ranks(model, [Prompt("Mia lives in", "Tokyo", ["Tokyo", "Rome"])])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_as_it_was(model, training):
    expected = ranks(model, FACTS).tolist()
    model.train(training)
    list(model.original_model.modules())[-1].eval()  # not all in the same mode
    parts = [*model.modules(), *model.original_model.modules()]
    modes = [part.training for part in parts]
    before = {name: p.clone() for name, p in named_weights(model).items()}
    assert ranks(model, FACTS).tolist() == expected  # without dropout
    assert [part.training for part in parts] == modes
    for name, p in named_weights(model).items():
        assert torch.equal(p, before[name]) and p.grad is None
    with pytest.raises(InputError):
        ranks(model, [("Mia lives in", "Oslo"), *FACTS])
    assert [part.training for part in parts] == modes


def test_bad_input(model):
    with pytest.raises(InputError, match="batch_size=0"):
        ranks(model, FACTS, batch_size=0)
    with pytest.raises(InputError, match="list of prompts is empty"):
        mean_rank(model, [])
    with pytest.raises(InputError, match="at least two with options="):
        ranks(model, [("Mia lives in", "Tokyo")])
    with pytest.raises(InputError, match="the model's context has 24"):
        ranks(model, [("Mia " * 24 + "Mia", "Tokyo"), *FACTS])
