"""What a tokenizer makes of the texts of prompts: ids, and the characters that each stands for."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.facts.alignment import Span
from ecstruct.facts.prompt import Prompt

WORDS = "write it in words the tokenizer knows"
"""The way out of a text without tokens."""


def encode(
    prompts: Sequence[Prompt], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """The ids of texts, each of the prompt at its place."""
    return [tuple(ids) for ids in _tokenizer_output("input_ids", prompts, texts, tokenizer)]


def _tokenizer_output(
    name: str, prompts: Sequence[Prompt], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[Any]:
    found: list[Any] = [None] * len(texts)
    for wrapped in (False, True):
        rows = [i for i, prompt in enumerate(prompts) if (prompt.wrapper is not None) == wrapped]
        if rows:
            encoded = tokenizer(
                [texts[i] for i in rows],
                add_special_tokens=not wrapped,
                return_offsets_mapping=name == "offset_mapping",
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            for i, value in zip(rows, encoded[name], strict=True):
                found[i] = value
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
    found = _tokenizer_output("offset_mapping", prompts, [p.asked for p in prompts], tokenizer)
    for prompt, of_prompt in zip(prompts, found, strict=True):
        n_before = len(prompt.wrapper[0]) if prompt.wrapper else 0
        yield [(start - n_before, end - n_before) for start, end in of_prompt]
