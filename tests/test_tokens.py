"""Prompts as tokens, which of them are the entity, and batches."""

import logging
from dataclasses import replace
from itertools import takewhile

import pytest
import torch
from helpers.facts_fixtures import FACTS, byte_tokenizer, with_ends, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from ecstruct.errors import InputError
from ecstruct.facts import Prompt, first_hop, second_hop
from ecstruct.facts.alignment import common_ends, entity_spans, subject_span
from ecstruct.facts.tokens import MISSING, collate, pad_id_of, tokenize

TWO_HOP = [p for s in (first_hop(), second_hop()) for p in (*s.facts, *s.implications)]


@pytest.fixture(scope="module")
def bytes_bpe():
    # Few enough merges that names and cities are cut into pieces.
    text = " ".join(f"{p.text} {p.answer}" for p in TWO_HOP[:20])
    return byte_tokenizer(text, vocab_size=330)


@pytest.fixture(scope="module")
def words():
    return word_tokenizer(" ".join(f"{p.text} {p.answer}" for p in TWO_HOP))


@pytest.mark.parametrize("prompts", [TWO_HOP[:20], TWO_HOP[60:]], ids=["cities", "names"])
def test_ids_are_the_tokenizers_own_and_answers_what_comes_after(bytes_bpe, prompts):
    tokenized = tokenize(prompts, bytes_bpe, with_options=False)
    assert any(len(t.answer_ids) > 1 for t in tokenized)
    for t, prompt in zip(tokenized, prompts, strict=True):
        assert t.prompt == prompt
        assert list(t.ids) == bytes_bpe(prompt.text)["input_ids"]
        assert bytes_bpe.decode(t.answer_ids) == f" {prompt.answer}"
        whole = bytes_bpe.decode([*t.ids, *t.answer_ids])
        assert whole == f"{prompt.text} {prompt.answer}"


def test_option_ids_are_the_first_tokens_in_the_order_of_the_options(words):
    for t in tokenize(TWO_HOP, words):
        first_words = [option.split()[0] for option in t.prompt.options]
        assert words.convert_ids_to_tokens(t.option_ids) == first_words
        assert t.answer_ids[0] == t.option_ids[t.prompt.options.index(t.prompt.answer)]


@pytest.mark.parametrize("ends", ["<bos> $A", "$A <eos>", "<bos> $A <eos>"])
def test_special_tokens_stay_except_for_a_trailing_eos(ends):
    plain = tokenize(FACTS, word_tokenizer(bos_token="<bos>"))
    tokenizer = with_ends(word_tokenizer(bos_token="<bos>"), ends)
    bos = (tokenizer.bos_token_id,) if ends.startswith("<bos>") else ()
    for with_special, without in zip(tokenize(FACTS, tokenizer), plain, strict=True):
        assert with_special.ids == bos + without.ids
        assert with_special.answer_ids == without.answer_ids
        assert with_special.option_ids == without.option_ids


def test_an_eos_that_the_user_wrote_stays():
    [t] = tokenize([Prompt("Mia lives in <eos>", "Tokyo", ("Tokyo", "Paris"))], word_tokenizer())
    assert t.tokens == ("Mia", "lives", "in", "<eos>")
    tokenizer = with_ends(word_tokenizer(), "$A <eos>")
    assert tokenize([t.prompt], tokenizer)[0].ids == t.ids


def test_tokens_are_readable():
    tokenizer = byte_tokenizer("The café is in Tokyo.\nis\nis " * 9)
    assert "Ã" in "".join(tokenizer.tokenize("The café"))
    [t] = tokenize([("The café\nis in", "Tokyo")], tokenizer, with_options=False)
    assert t.tokens == ("The", "café", "Ċ", "is", "in")


def test_options_are_not_needed_where_the_answer_is_enough(words):
    clash = [Prompt("Mia lives in", "Grace Miller", ("Grace Miller", "Grace Parker"))]
    assert tokenize(clash, words, with_options=False)[0].option_ids == ()
    assert tokenize([("Mia lives in", "Tokyo")], words, with_options=False)[0].option_ids == ()


def without_snowmen() -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("☃", "")
    return tokenizer


def across_spaces() -> PreTrainedTokenizerFast:
    """A tokenizer with no border between words: "in T" is one token."""
    vocab = {token: i for i, token in enumerate(["i", "n", " ", "T", "R", "n ", "n T", "in T"])}
    merges = [("n", " "), ("n ", "T"), ("i", "n T")]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, merges)))


@pytest.mark.parametrize(
    ("tokenizer", "prompts", "message"),
    [
        (
            word_tokenizer(),
            [Prompt("Mia lives in", "Grace Parker", ("Ethan Parker", "Grace Miller", "Grace Parker"))],
            "options 'Grace Miller' and 'Grace Parker' begin with the same token 'Grace'",
        ),
        (word_tokenizer(), [("Mia lives in", "Tokyo")], "at least two with options="),
        (without_snowmen(), [("Mia lives in", "☃"), *FACTS], "answer '☃' to .* has no tokens"),
        (without_snowmen(), [("☃", "Tokyo"), *FACTS], "prompt '☃' has no tokens"),
        (across_spaces(), [("in", "T"), ("in", "R")], "tokens of 'in T' do not begin with those"),
        (word_tokenizer(), [("Mia lives in", "Oslo"), *FACTS], "'Oslo' is not in the vocabulary"),
        (
            word_tokenizer(),
            [Prompt("Mia lives in", "Tokyo", ("Tokyo", "Oslo"))],
            "'Oslo' is not in the vocabulary .* reads <unk>",
        ),
        (
            word_tokenizer(),
            [Prompt("Mia lives in", "Addis Oslo", ("Addis Oslo", "Paris"))],
            "'Addis Oslo' is not in the vocabulary",
        ),
        (word_tokenizer(), [], "list of prompts is empty"),
    ],
)
def test_prompts_that_cannot_be_told_apart_or_read_are_refused(tokenizer, prompts, message):
    with pytest.raises(InputError, match=message):
        tokenize(prompts, tokenizer)


def test_the_longest_prompt_that_fits_and_the_next(words):
    prompt = Prompt("Mia lives in", "Addis Ababa", ("Addis Ababa", "Paris"))
    # "Ababa" is predicted from the fourth token, and itself never read.
    assert len(tokenize([prompt], words, n_ctx=4)[0].ids) == 3
    with pytest.raises(InputError, match="are 4 tokens to read, but the model's context has 3"):
        tokenize([prompt], words, n_ctx=3)


def test_unknown_words_in_a_prompt_are_logged_but_not_those_of_the_user(words, caplog):
    with caplog.at_level(logging.WARNING, logger="ecstruct"):
        tokenize([("Mia <unk> in", "Tokyo"), ("Noah lives in", "Paris")], words)
        assert not caplog.records
        tokenize([("Mia snores in", "Tokyo"), ("Noah lives in", "Paris")], words)
    assert "1 of 2 prompts" in caplog.text and "'Mia snores in'" in caplog.text


@pytest.mark.parametrize("which", range(4), ids=["fact1", "implication1", "fact2", "implication2"])
def test_entities_of_the_papers_prompts_are_their_subjects(words, which):
    for t in tokenize(TWO_HOP, words)[20 * which : 20 * which + 20]:
        assert " ".join(t.tokens[slice(*t.entity)]) == t.prompt.subject
        assert t.template == t.prompt.template


def test_entities_in_pieces_of_words_are_the_subjects_too(bytes_bpe):
    for t in tokenize(TWO_HOP[20:40], bytes_bpe, with_options=False):
        assert bytes_bpe.decode(t.ids[slice(*t.entity)]).strip() == t.prompt.subject


def entities(prompts, tokenizer):
    tokenized = tokenize(prompts, tokenizer, with_options=False)
    return [" ".join(t.tokens[slice(*t.entity)]) for t in tokenized]


def test_a_subject_is_the_entity_also_where_prompts_have_a_part_of_it_in_common(words):
    names = ["Grace Miller", "Grace Parker"]
    prompts = [Prompt(f"{name} lives in", "Rome", subject=name) for name in names]
    assert entities(prompts, words) == names
    without_one = [prompts[0], Prompt("Grace Parker lives in", "Rome")]
    assert entities(without_one, words) == ["Miller", "Parker"]


def test_a_subject_that_is_not_all_that_differs_is_not_the_entity(words):
    prompts = [
        Prompt("The mayor of Mia is", "Rome", subject="Mia"),
        Prompt("The people of Noah is", "Rome", subject="Noah"),
    ]
    assert entities(prompts, words) == ["Mia", "Noah"]  # of two templates
    one = [replace(prompt, template="one") for prompt in prompts]
    assert entities(one, words) == ["mayor of Mia", "people of Noah"]


def test_templates_are_aligned_each_for_itself(words):
    mixed = [TWO_HOP[0], TWO_HOP[20], TWO_HOP[1], TWO_HOP[21]]
    bare = [Prompt(p.text, p.answer, p.options, None, p.template) for p in mixed]
    assert entities(bare, words) == [p.subject for p in mixed]
    unlabelled = [Prompt(p.text, p.answer, p.options) for p in mixed]
    assert entities(unlabelled, words) == [p.text for p in mixed]


def test_subjects_are_found_as_whole_words_first():
    assert subject_span("Romeo in Rome", "Rome", [(0, 5), (5, 8), (8, 13)]) == (2, 3)
    assert subject_span("Romeo in it", "Rome", [(0, 5), (5, 8), (8, 11)]) == (0, 1)
    # Special tokens stand for no characters.
    assert subject_span("Rome", "Rome", [(0, 0), (0, 4), (0, 0)]) == (1, 2)


def shared_at_start(rows):
    return len(list(takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))))


sequences = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), min_size=1, max_size=4)


@settings(deadline=None)
@given(sequences, sequences.map(lambda s: s[0]), sequences.map(lambda s: s[0]))
def test_the_entity_is_what_is_left_between_the_longest_common_ends(middles, prefix, suffix):
    ids = [[*prefix, *middle, *suffix] for middle in middles]
    spans = entity_spans(ids, [None] * len(ids))
    n_prefix, n_suffix = common_ends(ids)
    assert spans == [(n_prefix, len(tokens) - n_suffix) for tokens in ids]
    if all(tokens == ids[0] for tokens in ids):
        assert (n_prefix, n_suffix) == (0, 0)
        return
    assert all(start < end for start, end in spans)
    longest_prefix = shared_at_start(ids)
    rests = [tokens[longest_prefix:][::-1] for tokens in ids]
    longest_suffix = shared_at_start(rests)
    if min(map(len, rests)) > longest_suffix:
        assert (n_prefix, n_suffix) == (longest_prefix, longest_suffix)
    elif longest_prefix:
        assert (n_prefix, n_suffix) == (longest_prefix - 1, longest_suffix)
    else:
        assert (n_prefix, n_suffix) == (0, longest_suffix - 1)


def test_every_prompt_keeps_an_entity_token():
    assert entity_spans([[1, 2, 8, 9], [1, 2, 5, 8, 9]], [None, None]) == [(1, 2), (1, 3)]
    assert entity_spans([[8, 9], [5, 8, 9]], [None, None]) == [(0, 1), (0, 2)]
    assert entity_spans([[1, 2, 3]], [None]) == [(0, 3)]


def test_batches_are_padded_on_the_right(words):
    tokenized = tokenize(FACTS[:4], words)
    tokenized[0] = tokenize([Prompt(*FACTS[0], ("Tokyo", "Paris"))], words)[0]
    batch = collate(tokenized, "cpu", pad_id_of(words))
    assert batch.ids.dtype == batch.lengths.dtype == batch.mask.dtype == torch.long
    assert batch.lengths.tolist() == [4, 4, 3, 4]
    assert batch.last.tolist() == [3, 3, 2, 3]
    for row, t in enumerate(tokenized):
        n = len(t.ids)
        assert batch.ids[row, :n].tolist() == list(t.ids)
        assert (batch.ids[row, n:] == words.pad_token_id).all()
        assert batch.mask[row].tolist() == [1] * n + [0] * (4 - n)
        filled = [*t.option_ids, MISSING, MISSING][: batch.option_ids.shape[1]]
        assert batch.option_ids[row].tolist() == filled
    one, two = tokenized[0].answer_ids, tokenized[3].answer_ids
    assert batch.answer_ids[0].tolist() == [*one, MISSING]
    assert batch.answer_ids[3].tolist() == list(two)


def test_batches_without_options(words):
    tokenized = tokenize(FACTS, words, with_options=False)
    assert collate(tokenized, "cpu", 0).option_ids.shape == (len(FACTS), 0)


def test_a_tokenizer_without_padding_pads_with_any_token(bytes_bpe):
    assert bytes_bpe.pad_token_id is None
    assert pad_id_of(bytes_bpe) == 0
