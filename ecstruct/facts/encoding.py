"""Encode the texts of prompts: their token ids, and the characters that each token stands for."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from transformers import BatchEncoding, PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.facts.alignment import Span
from ecstruct.facts.prompt import Prompt
from ecstruct.models.labels import Labels

WORDS = "write it in words the tokenizer knows"
"""The advice in errors about a text without tokens."""


def encode(
    prompts: Sequence[Prompt], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """Return the token ids of each text; `prompts[i]`, whose text it is, decides about special tokens."""
    return [tuple(found["input_ids"][row]) for found, row in _encoded(prompts, texts, tokenizer)]


def encode_for(
    labels: Labels, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """Return the token ids of what a classifier reads of each prompt, both texts of a pair together."""
    found = []
    for batch, row in _encoded(prompts, [prompt.text for prompt in prompts], tokenizer):
        ids = batch["input_ids"][row]
        if labels.second_from is not None and "token_type_ids" in batch:
            types = batch["token_type_ids"][row]
            ids = [token + labels.second_from * of for token, of in zip(ids, types, strict=True)]
        while ids and ids[-1] == labels.skipped:
            ids = ids[:-1]
        found.append(tuple(ids))
    return found


class InPieces(NamedTuple):
    """The token ids of a text, and for each token the piece of the text, often a word, that the tokenizer
    read by itself (`None` for special tokens). Slow tokenizers do not tell the pieces: all are piece 0."""

    ids: tuple[int, ...]
    pieces: tuple[int | None, ...]


def encode_in_pieces(
    prompts: Sequence[Prompt], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[InPieces]:
    """Return what `encode` does, with the pieces."""
    found = []
    for batch, row in _encoded(prompts, texts, tokenizer):
        ids = tuple(batch["input_ids"][row])
        found.append(InPieces(ids, tuple(batch.word_ids(row)) if batch.is_fast else (0,) * len(ids)))
    return found


def _encoded(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    offsets: bool = False,
) -> list[tuple[BatchEncoding, int]]:
    """Return the encoding of every text, with the second text of its prompt if there is one: a batch and
    its row in it. Wrapped texts get no special tokens."""
    found: list[Any] = [None] * len(texts)
    kinds = [(prompt.wrapper is not None, prompt.second is not None) for prompt in prompts]
    for kind in dict.fromkeys(kinds):
        wrapped, paired = kind
        rows = [i for i, its in enumerate(kinds) if its == kind]
        batch = tokenizer(
            [texts[i] for i in rows],
            [prompts[i].second or "" for i in rows] if paired else None,
            add_special_tokens=not wrapped,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            return_token_type_ids=None if paired else False,  # whatever the tokenizer does
            verbose=False,
        )
        for k, i in enumerate(rows):
            found[i] = batch, k
    return found


def split(
    prompt: Prompt,
    answer: str,
    ids: tuple[int, ...],
    whole: tuple[int, ...],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens of a prompt's text and of its answer, given those of the text and of `whole`."""
    eos = tokenizer.eos_token_id
    # If both end with an EOS, the tokenizer appended it: had the user's text ended with one, the answer
    # would follow it.
    if eos is not None and ids[-1:] == whole[-1:] == (eos,):
        ids, whole = ids[:-1], whole[:-1]
    if not ids:
        raise InputError(f"the prompt {prompt.text!r} has no tokens: {WORDS}.")
    last = ids[-1]
    if last == whole[-1] and last in tokenizer.all_special_ids and whole[: len(ids) - 1] == ids[:-1]:
        raise InputError(
            f"the tokenizer ends every text with {tokenizer.convert_ids_to_tokens(last)!r}, which is not "
            f"its eos_token ({tokenizer.eos_token!r}), so that no answer can follow: make it that, "
            "or take it out of the post_processor of tokenizer.json."
        )
    if whole[: len(ids)] != ids:
        raise InputError(
            f"the tokens of {prompt.answered(answer)!r} do not begin with those of {prompt.asked!r}, so "
            "that the answer has no tokens of its own: end the prompt at a border between words."
        )
    if len(whole) == len(ids):
        raise InputError(f"the answer {answer!r} to {prompt.text!r} has no tokens: {WORDS}.")
    return ids, whole[len(ids) :]


def offsets(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[Span]]:
    """Yield, for each prompt, the characters of its text that each token stands for, including an EOS that
    the tokenizer appends. Characters of the wrapper are below 0 or beyond the text; a second text stands
    for none."""
    found = _encoded(prompts, [p.asked for p in prompts], tokenizer, offsets=True)
    for prompt, (batch, row) in zip(prompts, found, strict=True):
        n_before = len(prompt.wrapper[0]) if prompt.wrapper else 0
        spans = zip(batch["offset_mapping"][row], batch.sequence_ids(row), strict=True)
        yield [(0, 0) if of == 1 else (start - n_before, end - n_before) for (start, end), of in spans]


def check_known(answer: str, ids: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `InputError` if an answer has unknown tokens."""
    if has_unknown(answer, ids, tokenizer):
        raise InputError(
            f"{answer!r} is not in the vocabulary of this tokenizer, which reads "
            f"{tokenizer.unk_token} for it: use an answer that it knows."
        )


def has_unknown(text: str, ids: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    unknown = tokenizer.unk_token_id
    # Some tokenizers never need an unknown token, and give that name to one with another use.
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        return False
    return any(token == unknown for token in ids) and str(tokenizer.unk_token) not in text


def readable(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return tokens as readable strings: without the marker of a leading space, and with bytes decoded."""
    found = []
    for token in tokenizer.convert_ids_to_tokens(list(ids)):
        text = tokenizer.convert_tokens_to_string([token]).strip()
        # A token of spaces, or of a part of a character, is shown as the tokenizer writes it.
        found.append(text if text and "\ufffd" not in text else token)
    return found
