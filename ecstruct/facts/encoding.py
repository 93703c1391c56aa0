"""What a tokenizer makes of the texts of prompts: ids, and the characters that each stands for."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from transformers import BatchEncoding, PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.facts.alignment import Span
from ecstruct.facts.prompt import Prompt

WORDS = "write it in words the tokenizer knows"
"""The way out of a text without tokens."""


def encode(
    prompts: Sequence[Prompt], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """The ids of texts, each of the prompt at its place."""
    return [tuple(found["input_ids"][row]) for found, row in _encoded(prompts, texts, tokenizer)]


class InPieces(NamedTuple):
    """The ids of a text, and which piece of it each is of. A tokenizer cuts a text into pieces, often
    words, and reads each by itself. Of those that do not tell where, all is one piece; special tokens are
    of none."""

    ids: tuple[int, ...]
    pieces: tuple[int | None, ...]


def encode_in_pieces(
    prompts: Sequence[Prompt], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[InPieces]:
    """The same, with the pieces."""
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
    """What the tokenizer made of every text: that of a batch, and the row in it."""
    found: list[Any] = [None] * len(texts)
    for wrapped in (False, True):
        rows = [i for i, prompt in enumerate(prompts) if (prompt.wrapper is not None) == wrapped]
        if rows:
            batch = tokenizer(
                [texts[i] for i in rows],
                add_special_tokens=not wrapped,
                return_offsets_mapping=offsets,
                return_attention_mask=False,
                return_token_type_ids=False,
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
    eos = tokenizer.eos_token_id
    # An EOS at the end of both was put there by the tokenizer: a text that the user ended with one
    # would be followed by the answer.
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
    """The characters of its prompt's text that each token stands for, those of a wrapper outside of it; an
    EOS that the tokenizer appends included."""
    found = _encoded(prompts, [p.asked for p in prompts], tokenizer, offsets=True)
    for prompt, (batch, row) in zip(prompts, found, strict=True):
        n_before = len(prompt.wrapper[0]) if prompt.wrapper else 0
        yield [(start - n_before, end - n_before) for start, end in batch["offset_mapping"][row]]


def check_known(answer: str, ids: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `InputError` if an answer has tokens that stand for what the tokenizer does not know."""
    if has_unknown(answer, ids, tokenizer):
        raise InputError(
            f"{answer!r} is not in the vocabulary of this tokenizer, which reads "
            f"{tokenizer.unk_token} for it: use an answer that it knows."
        )


def has_unknown(text: str, ids: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    unknown = tokenizer.unk_token_id
    # Some tokenizers name as "unknown" a token that they never need and use for something else.
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        return False
    return any(token == unknown for token in ids) and str(tokenizer.unk_token) not in text


def readable(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Token strings as one would print them: no marker of a leading space, bytes decoded."""
    found = []
    for token in tokenizer.convert_ids_to_tokens(list(ids)):
        text = tokenizer.convert_tokens_to_string([token]).strip()
        # A token of spaces, or of a part of a character, is shown as the tokenizer writes it.
        found.append(text if text and "\ufffd" not in text else token)
    return found
