"""The tokens of options, by which a prompt's answers are distinguished.

Prompts often share hundreds of options, and encoding every prompt with every option takes minutes. The
tokens of an option depend on the prompt only if the tokenizer reads the end of the prompt and the option as
one piece. Otherwise the option has the same tokens after every such prompt, and is encoded once.
"""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.facts.encoding import InPieces, check_known, encode, encode_in_pieces, readable, split
from ecstruct.facts.prompt import Prompt

_Tokens = tuple[int, ...]


def first_tokens(
    prompts: Sequence[Prompt], encoded: Sequence[_Tokens], tokenizer: PreTrainedTokenizerBase
) -> list[_Tokens]:
    """Return the first token of every option of every prompt; `encoded` has the ids of the prompts' texts.

    Raises:
        InputError: There are fewer than two options, one has no tokens of its own or begins with an unknown
            one, or two begin with the same token.
    """
    found = []
    for prompt, options in zip(prompts, _options(prompts, encoded, tokenizer), strict=True):
        firsts = tuple(ids[0] for ids in options)
        if tokenizer.unk_token_id in firsts:
            for option, first in zip(prompt.options or (), firsts, strict=True):
                check_known(option, (first,), tokenizer)
        if len(set(firsts)) < len(firsts):
            raise _alike(prompt, firsts, tokenizer)
        found.append(firsts)
    return found


def option_tokens(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[_Tokens, ...]]:
    """Return all tokens of every option of every prompt. Options may begin with the same token.

    Raises:
        InputError: There are fewer than two options, or one has unknown tokens or none of its own.
    """
    encoded = encode(prompts, [prompt.asked for prompt in prompts], tokenizer)
    found = []
    for prompt, options in zip(prompts, _options(prompts, encoded, tokenizer), strict=True):
        for option, ids in zip(prompt.options or (), options, strict=True):
            if tokenizer.unk_token_id in ids:
                check_known(option, ids, tokenizer)
        found.append(options)
    return found


def _options(
    prompts: Sequence[Prompt], encoded: Sequence[_Tokens], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[_Tokens, ...]]:
    """Yield all tokens of every option, prompt by prompt, so that a prompt with options that cannot be used
    is reported before the next ones are encoded."""
    for prompt in prompts:
        if prompt.options is None:
            raise InputError(
                f"the prompt {prompt.text!r} has no other option than its answer {prompt.answer!r}: "
                "pass at least two with options=."
            )
    known: dict[tuple[str, str], _Tokens] = {}
    wholes = encode_in_pieces(prompts, [p.answered(p.answer) for p in prompts], tokenizer)
    for prompt, ids, whole in zip(prompts, encoded, wholes, strict=True):
        _, apart = _answer_tokens(prompt, prompt.answer, ids, whole, tokenizer)
        own, between = dict[str, _Tokens](), prompt.between
        options = prompt.options or ()
        unread = [o for o in options if not apart or (o, between) not in known]
        texts = [prompt.answered(option) for option in unread]
        read = encode_in_pieces([prompt] * len(texts), texts, tokenizer)
        for option, found in zip(unread, read, strict=True):
            own[option], option_apart = _answer_tokens(prompt, option, ids, found, tokenizer)
            if apart and option_apart:
                known[option, between] = own[option]
        yield tuple(own[o] if o in own else known[o, between] for o in options)


def _answer_tokens(
    prompt: Prompt, answer: str, ids: _Tokens, whole: InPieces, tokenizer: PreTrainedTokenizerBase
) -> tuple[_Tokens, bool]:
    """Return the tokens of an answer, and whether they begin with a piece of their own."""
    before, answer_ids = split(prompt, answer, ids, whole.ids, tokenizer)
    left, right = whole.pieces[len(before) - 1 : len(before) + 1]
    return answer_ids, left is not None and right is not None and left != right


def _alike(prompt: Prompt, firsts: _Tokens, tokenizer: PreTrainedTokenizerBase) -> InputError:
    """Return the error that names two options that begin with the same token."""
    owner: dict[int, str] = {}
    for option, first in zip(prompt.options or (), firsts, strict=True):
        if (other := owner.setdefault(first, option)) != option:
            return InputError(
                f"the options {other!r} and {option!r} begin with the same token "
                f"{readable((first,), tokenizer)[0]!r}, by which they cannot be told apart: leave one "
                'out, reword them, or take whole answers with answer_tokens="all" (--answer-tokens all; in '
                'scores with the reward "logprob" only).'
            )
    raise AssertionError("every option begins with another token")
