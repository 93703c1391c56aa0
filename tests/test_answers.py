"""Answers of many tokens, by any name, in any script, under tokenizers of all habits.

The oracle is the plain Hugging Face model, one unpadded text at a time.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.facts_fixtures import byte_tokenizer, hugging_face, with_ends, word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import ecstruct
from ecstruct.errors import InputError
from ecstruct.evaluate import ranks
from ecstruct.facts import Prompt, as_prompts
from ecstruct.facts.tokens import tokenize
from ecstruct.models.loading import load

SCRIPTS = [
    ("東京の人々が話す言語は", "日本語", ("日本語", "フランス語", "中国語")),
    ("Столица Италии —", "Рим", ("Рим", "Рига", "Римини")),
    ("عاصمة مصر هي", "القاهرة", ("القاهرة", "القدس", "الرياض")),
    ("भारत की राजधानी है", "नई दिल्ली", ("नई दिल्ली", "नई मुंबई", "पटना")),
    ("She went home by 🚲 and", "🏡", ("🏡", "🏢", "🚲")),
    ("In a village far away, " * 9 + "Mia lives in", "Sao Paulo", ("Sao Paulo", "Sao Tome", "Rome")),
]
"""From 5 to 60 words, most options beginning with the same bytes."""
PROMPTS = [Prompt(*row) for row in SCRIPTS]
CORPUS = " ".join(f"{text} {' '.join(options)}" for text, _, options in SCRIPTS)
N_CTX = 400


def kinds():
    plain = byte_tokenizer(CORPUS, 600)
    assert plain.pad_token is None and plain.bos_token is None
    with_bos = byte_tokenizer(CORPUS, 600)
    with_bos.add_special_tokens({"bos_token": "<s>"})
    words = word_tokenizer(CORPUS)
    words_bos = word_tokenizer(CORPUS, bos_token="<bos>")
    return {
        "bytes, no pad token": plain,
        "bytes, with BOS": with_ends(with_bos, "<s> $A"),
        "words, with BOS and EOS": with_ends(words_bos, "<bos> $A <eos>"),
        "words, with padding on the left": _padded_left(words),
    }


def _padded_left(tokenizer):
    tokenizer.padding_side = "left"
    return tokenizer


KINDS = (
    "bytes, no pad token",
    "bytes, with BOS",
    "words, with BOS and EOS",
    "words, with padding on the left",
)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    tokenizer, folder = kinds()[request.param], tmp_path_factory.mktemp("answers")
    for seed, name in enumerate(("before", "after")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=N_CTX,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.5,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load(folder / "before", device="cpu")


@pytest.fixture(scope="module")
def hf(folder):
    return hugging_face(folder / "before")


def ids_of(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def logprob(hf, tokenizer, text, answer):
    """Of all tokens of an answer, by the chain rule."""
    whole, n = ids_of(tokenizer, f"{text} {answer}"), len(ids_of(tokenizer, text))
    with torch.no_grad():
        logprobs = hf(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(logprobs[i - 1, whole[i]].item() for i in range(n, len(whole)))


def first_logit(hf, tokenizer, text, answer):
    ids = ids_of(tokenizer, text)
    with torch.no_grad():
        logits = hf(torch.tensor([ids])).logits[0, -1]
    return logits[ids_of(tokenizer, f"{text} {answer}")[len(ids)]].item()


def rank(value, prompt):
    """By any value of an answer, the best of its names."""
    best = max(value(name) for name in (prompt.answer, *prompt.aliases))
    return sum(value(option) > best for option in prompt.options if option != prompt.answer)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_ranks_of_whole_answers(model, hf, batch_size):
    # Every option as the answer: all ranks occur, and with aliases that are better, equal or worse.
    asked = [replace(p, answer=o) for p in PROMPTS for o in p.options]
    asked += [replace(p, options=p.options[:2], aliases=(p.options[2],)) for p in PROMPTS]
    expected = [rank(lambda name, p=p: logprob(hf, model.tokenizer, p.text, name), p) for p in asked]
    assert set(expected) == {0, 1, 2}
    assert ranks(model, asked, answer_tokens="all", batch_size=batch_size).tolist() == expected


def test_whole_answers_of_one_token_are_first_tokens(model, hf):
    tokenizer = model.tokenizer
    words = [
        t
        for t in ("Mia", "lives", "in", "far", "away,", "went")
        if len(ids_of(tokenizer, f"She {t}")) == 1 + len(ids_of(tokenizer, "She"))
    ]
    asked = [Prompt("She", word, words) for word in words]
    assert len(words) > 2
    assert ranks(model, asked).tolist() == ranks(model, asked, answer_tokens="all").tolist()
    assert sorted(ranks(model, asked)) == list(range(len(words)))


def test_options_that_begin_alike_need_whole_answers(model):
    with pytest.raises(InputError, match=r"begin with the same token .* answer_tokens=\"all\""):
        ranks(model, PROMPTS)
    with pytest.raises(InputError, match="answer_tokens is 'first' or 'all'"):
        ranks(model, PROMPTS, answer_tokens="last")
    with pytest.raises(InputError, match="at least two with options="):
        ranks(model, [("Mia lives in", "Rome")], answer_tokens="all")
    with pytest.raises(InputError, match="batch_size=0"):
        ranks(model, PROMPTS, answer_tokens="all", batch_size=0)


def test_an_option_may_be_too_long(model):
    long = " ".join(["village"] * N_CTX)
    with pytest.raises(InputError, match=f"an option are .* the model's context has {N_CTX}"):
        ranks(model, [Prompt("Mia lives in", "Rome", ("Rome", long))], answer_tokens="all")


def test_the_best_of_several_names_counts(model, hf):
    tokenizer = model.tokenizer
    words = ("lives", "far", "home", "Rome", "went", "Mia")
    for answer, *others in (words, words[::-1], (*words[2:], *words[:2])):
        for n in range(3):
            prompt = Prompt("In a village", answer, (answer, *others[n:]), aliases=others[:n])
            expected = rank(lambda name: first_logit(hf, tokenizer, "In a village", name), prompt)
            assert ranks(model, [prompt]).tolist() == [expected]
    # Named by its aliases only, an answer is as good as the best of them.
    best = min(words, key=lambda w: ranks(model, [Prompt("In a village", w, words)])[0])
    others = [w for w in words if w != best]
    assert ranks(model, [Prompt("In a village", others[0], others, aliases=[best])]).tolist() == [0]


def test_an_alias_that_begins_like_another_option_says_nothing(model):
    words = ("lives", "far", "home", "Rome", "went", "Mia", "village")
    without = [Prompt(f"In a {w}", word, (word, "Sao Paulo")) for w in words for word in words]
    found = ranks(model, without)
    assert set(found) == {0, 1}  # so that it would be seen
    assert (ranks(model, [replace(p, aliases=("Sao Tome",)) for p in without]) == found).all()


def test_scores_are_about_the_answer_itself(folder, model):
    """As whole answers, under both models, whatever other names it has."""
    after = load(folder / "after", device="cpu")
    named = [replace(p, options=p.options[:2], aliases=(p.options[2],)) for p in PROMPTS]
    found = [
        ecstruct.score(
            model, after, prompts, reward="logprob", answer_tokens="all", baseline="mean", progress=False
        )
        for prompts in (PROMPTS, named)
    ]
    for i, name in enumerate(("before", "after")):
        hf = hugging_face(folder / name)
        expected = [logprob(hf, model.tokenizer, p.text, p.answer) for p in PROMPTS]
        for scores in found:
            np.testing.assert_allclose(scores.reward.values[:, i], expected, rtol=1e-4)
    np.testing.assert_array_equal(found[0].mlp.values, found[1].mlp.values)


def test_names_that_a_tokenizer_cannot_read_say_nothing():
    tokenizer = word_tokenizer()
    prompt = Prompt(
        "Mia lives in", "Rome", ("Rome", "Cairo"), aliases=("Roma", "Paris", "\U0001f1ee\U0001f1f9")
    )
    (read,) = tokenize([prompt], tokenizer)
    assert read.alias_ids == ((tokenizer.convert_tokens_to_ids("Paris"),),)


def test_entities_are_found_in_any_script():
    tokenizer = byte_tokenizer(CORPUS, 600)
    prompts = [
        Prompt(f"{city}の人々が話す言語は", "a", ("a", "b"), city, "t")
        for city in ("東京", "ローマ", "パリ")
    ]
    for t in tokenize(prompts, tokenizer):
        start, end = t.entity
        assert t.prompt.subject in tokenizer.decode(t.ids[start:end])


# Aliases as part of prompts


def test_aliases_are_a_part_of_records():
    prompt = Prompt("Mia lives in", "Rome", ["Rome", "Oslo"], aliases=["Roma"])
    assert prompt.aliases == ("Roma",) and Prompt.from_record(prompt.to_record()) == prompt
    assert prompt.to_record()["aliases"] == ["Roma"]
    assert "aliases" not in Prompt("a b", "c").to_record()
    assert Prompt.from_record({"prompt": "a b", "answer": "c", "aliases": None}) == Prompt("a b", "c")


def test_an_answer_of_the_set_is_no_option_beside_its_own_alias():
    prompts = as_prompts([Prompt("a b", "UK", aliases=["Britain"]), ("c d", "Britain"), ("e f", "Italy")])
    assert [p.options for p in prompts] == [
        ("UK", "Italy"),
        ("UK", "Britain", "Italy"),
        ("UK", "Britain", "Italy"),
    ]


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ("Roma", "must be a list of strings"),
        (7, "must be a list of strings"),
        ([3], "an alias .* of type int"),
        ([" Roma"], "begins or ends with whitespace"),
        (["Rome"], "'Rome' .* or the answer itself"),
        (["Oslo"], "'Oslo' .* is one of its options"),
        (["Roma", "Roma"], "'Roma' .* is there twice"),
    ],
)
def test_unusable_aliases(aliases, message):
    with pytest.raises(InputError, match=message):
        Prompt.from_record(
            {"prompt": "Mia lives in", "answer": "Rome", "options": ["Rome", "Oslo"], "aliases": aliases}
        )


def test_errors_do_not_repeat_whole_books():
    for record in (
        {"prompt": "a " * 10**6},
        {"prompt": "a", "answer": " b" * 10**6},
        {"prompt": ["a"] * 10**5},
    ):
        with pytest.raises(InputError) as error:
            Prompt.from_record({"answer": "c", **record})
        assert len(str(error.value)) < 1000
