"""The tokens of options: those of the tokenizer itself, read no more often than is needed."""

from unittest.mock import patch

import pytest
from helpers.facts_fixtures import byte_tokenizer, with_ends, word_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ecstruct.errors import InputError
from ecstruct.facts import Prompt, first_hop, second_hop
from ecstruct.facts.options import option_tokens
from ecstruct.facts.tokens import tokenize

TWO_HOP = [p for s in (first_hop(), second_hop()) for p in (*s.facts, *s.implications)]
TEXT = " ".join(f"{p.text} {p.answer}" for p in TWO_HOP)


def whole_text_tokenizer(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """A BPE of characters that reads a text as one piece, as Llama 2's does."""
    signs = sorted({*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789", *TEXT})
    vocab = ["<unk>", *signs, *("".join(merge) for merge in merges)]
    backend = Tokenizer(models.BPE({v: i for i, v in enumerate(vocab)}, list(merges), unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="0")


def counted(tokenizer):
    """How many texts a tokenizer reads from here on, and how many calls that takes."""
    texts, read = [], type(tokenizer).__call__

    def reading(self, given, *args, **kwargs):
        texts.extend(given)
        return read(self, given, *args, **kwargs)

    return texts, patch.object(type(tokenizer), "__call__", reading)


@pytest.mark.parametrize(
    "tokenizer",
    [
        word_tokenizer(TEXT),
        with_ends(word_tokenizer(TEXT, bos_token="<bos>"), "<bos> $A <eos>"),
        byte_tokenizer(TEXT, vocab_size=330),
        whole_text_tokenizer(("T", "o"), (" ", "To")),
    ],
    ids=["words", "words with ends", "bytes", "whole texts"],
)
def test_they_are_what_comes_after_the_prompt(tokenizer):
    chat = [Prompt(p.text, p.answer, p.options, wrapper=("Q: ", "\nA: ")) for p in TWO_HOP[:3]]
    tight = [Prompt(f"{p.text}\n", p.answer, p.options, space=False) for p in TWO_HOP[:3]]
    prompts = [*TWO_HOP[:4], *chat, *tight, *TWO_HOP[60:64]]
    for prompt, options in zip(prompts, option_tokens(prompts, tokenizer), strict=True):
        special = prompt.wrapper is None
        for option, ids in zip(prompt.options, options, strict=True):
            asked, answered = (
                tokenizer(text, add_special_tokens=special)["input_ids"]
                for text in (prompt.asked, prompt.answered(option))
            )
            if special and tokenizer.eos_token == "<eos>" and asked[-1] == tokenizer.eos_token_id:
                asked, answered = asked[:-1], answered[:-1]
            assert list(ids) == answered[len(asked) :]


def numbered(n):
    options = tuple(f"a{i}" for i in range(n))
    return [Prompt(f"p{i} is", option, options) for i, option in enumerate(options)]


def test_texts_to_read_grow_with_prompts_and_options_not_with_their_product():
    words = " ".join(f"p{i} is a{i}" for i in range(80))
    texts, counting = counted(tokenizer := word_tokenizer(words))
    n_texts = []
    for n in (40, 80):
        texts.clear()
        with counting:
            found = tokenize(numbered(n), tokenizer)
        assert [t.option_ids[i] for i, t in enumerate(found)] == [t.answer_ids[0] for t in found]
        n_texts.append(len(texts))
    assert n_texts[1] == 2 * n_texts[0] <= 80 * 5


@pytest.mark.parametrize("whole", [False, True])
def test_options_that_begin_alike_are_refused_before_the_other_prompts_are_read_with_theirs(whole):
    texts, counting = counted(tokenizer := whole_text_tokenizer() if whole else byte_tokenizer(TEXT))
    with counting, pytest.raises(InputError, match="the options 'a0' and 'a1' begin with the same token"):
        tokenize(numbered(100), tokenizer)
    assert len(texts) <= 400  # every prompt twice or so, one of them with every option


def test_an_option_that_melts_into_one_of_the_prompts_is_refused():
    """Its tokens after the other prompt, where it does not, say nothing."""
    options = ("Tokyo", "Rome")
    prompts = [Prompt("Ada lives in", "Rome", options), Prompt("Bo was last at", "Rome", options)]
    tokenizer = whole_text_tokenizer(("t", " "), ("t ", "T"))
    assert len(option_tokens(prompts[:1], tokenizer)[0]) == 2
    with pytest.raises(InputError, match="'Bo was last at Tokyo' do not begin"):
        option_tokens([prompts[0], Prompt("Bo was last at", "Tokyo", options)], tokenizer)
    with pytest.raises(InputError, match=r"'Bo was last at (Tokyo|Rome)' do not begin"):
        option_tokens(prompts, tokenizer)
