"""Convert prompts to token ids.

The ids of a prompt are `tokenizer(text)` by the tokenizer's own defaults, special tokens included;
the ids of an answer are those that `tokenizer(text + " " + answer)` has beyond them. An EOS that
the tokenizer appends to every text is stripped from both. A prompt in the wrapper of a chat template
already has its special tokens, and gets no others. Options are distinguished by their first tokens, which
must then differ, or by all of their tokens, see `ecstruct.facts.options`.

A classifier reads `tokenizer(text)`, or `tokenizer(text, second)` of a pair, whole. The ids of its answers
are those of labels, see `ecstruct.facts.labels`.

A `Batch` has tokenised prompts as right-padded tensors.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.facts.alignment import Span, entity_spans, subject_span
from ecstruct.facts.encoding import (
    WORDS,
    check_known,
    encode,
    encode_for,
    has_unknown,
    offsets,
    readable,
    split,
)
from ecstruct.facts.labels import check_readable, label_ids
from ecstruct.facts.options import first_tokens
from ecstruct.facts.prompt import Prompt, PromptsLike, as_prompts
from ecstruct.io.values import shortened
from ecstruct.models.labels import Labels, labels_of

MISSING = -1
"""The padding of `answer_ids` and `option_ids` in a `Batch`, where a prompt has fewer than another."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt and its tokens.

    `ids`: the tokens of the text. `answer_ids`: all tokens of the answer. `option_ids`: the first token of
    every option, in the order of the options; empty if options were not requested. `tokens`: the text's
    tokens as readable strings. `template`: the prompt's label, "" without one. `entity`: the span
    (start, end) of `ids` that is not shared with the template's other prompts, see
    `ecstruct.facts.alignment`. `alias_ids`: all tokens of every alias that the tokenizer can read.
    `wrapper`: how many of the first and of the last ids belong to a chat template alone. `at_start`:
    whether the answer is predicted at the first token and not at the last one, as encoders do.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    option_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    template: str
    entity: Span
    alias_ids: tuple[tuple[int, ...], ...] = ()
    wrapper: tuple[int, int] = (0, 0)
    at_start: bool = False

    @property
    def text_span(self) -> Span:
        """The span (start, end) of `ids` without the wrapper."""
        return self.wrapper[0], len(self.ids) - self.wrapper[1]


def tokenize(
    prompts: PromptsLike,
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_ctx: int | None = None,
    with_options: bool = True,
) -> list[TokenizedPrompt]:
    """Tokenise prompts, in their order.

    `n_ctx` is the most tokens that the model can read. `with_options=False` skips the options, for
    uses that need the answer only: then there may be none, and they may share their first token.

    Raises:
        InputError: A token spans the border of a prompt and its answer, an answer has no tokens or
            unknown ones, a prompt with its answer is longer than `n_ctx`, or, with options, there are
            fewer than two or two begin with the same token. For a classifier: an answer or an option is
            no label. For a language model: a prompt is a pair of texts.
    """
    prompts = as_prompts(prompts)
    check_readable(prompts, labels := labels_of(tokenizer))
    if labels is not None:
        return _tokenize_for(labels, prompts, tokenizer, n_ctx)
    encoded = encode(prompts, [prompt.asked for prompt in prompts], tokenizer)
    wholes = encode(prompts, [prompt.answered(prompt.answer) for prompt in prompts], tokenizer)
    options: Sequence[tuple[int, ...]] = [()] * len(prompts)
    if with_options:
        options = first_tokens(prompts, encoded, tokenizer)
    tokenized = []
    for prompt, text_ids, whole, option_ids in zip(prompts, encoded, wholes, options, strict=True):
        ids, answer_ids = split(prompt, prompt.answer, text_ids, whole, tokenizer)
        check_known(prompt.answer, answer_ids, tokenizer)
        # The last answer token is predicted, never read.
        _check_length(prompt, len(ids) + len(answer_ids) - 1, n_ctx, "its answer")
        tokens = tuple(readable(ids, tokenizer))
        label, everything = prompt.template or "", (0, len(ids))
        alias_ids = _alias_ids(prompt, text_ids, tokenizer)
        tokenized.append(
            TokenizedPrompt(prompt, ids, answer_ids, option_ids, tokens, label, everything, alias_ids)
        )
    _warn_of_unknown_words(tokenized, tokenizer)
    return _with_entities(tokenized, tokenizer)


def _tokenize_for(
    labels: Labels, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, n_ctx: int | None
) -> list[TokenizedPrompt]:
    """Tokenise prompts for a classifier."""
    answers, options = label_ids(prompts, labels)
    tokenized = []
    for prompt, ids, answer, option_ids in zip(
        prompts, encode_for(labels, prompts, tokenizer), answers, options, strict=True
    ):
        if not ids:
            raise InputError(f"the prompt {prompt.text!r} has no tokens: {WORDS}.")
        _check_length(prompt, len(ids), n_ctx, "its second text" if prompt.second else "its ends")
        plain = ids if labels.second_from is None else [token % labels.second_from for token in ids]
        tokens, whole = tuple(readable(plain, tokenizer)), (0, len(ids))
        label = prompt.template or ""
        tokenized.append(
            TokenizedPrompt(
                *(prompt, ids, (answer,), option_ids, tokens, label, whole), at_start=labels.at_start
            )
        )
    _warn_of_unknown_words(tokenized, tokenizer)
    return _with_entities(tokenized, tokenizer)


def _check_length(prompt: Prompt, n_read: int, n_ctx: int | None, other: str) -> None:
    if n_ctx is not None and n_read > n_ctx:
        raise InputError(
            f"the prompt {shortened(prompt.text)!r} and {other} are {n_read} tokens to read, but the "
            f"model's context has {n_ctx}: shorten them."
        )


@dataclass(frozen=True)
class Batch:
    """Tokenised prompts as tensors.

    `ids` is right padded, `lengths` are the numbers of real tokens; `answer_ids` and `option_ids`
    are padded with `MISSING`. `at_start`: whether answers are predicted at the first token.
    """

    ids: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    answer_ids: Int[Tensor, "batch n_answer"]
    option_ids: Int[Tensor, "batch n_options"]
    at_start: bool = False

    @property
    def mask(self) -> Int[Tensor, "batch pos"]:
        """The attention mask: 1 at real tokens, 0 at padding."""
        positions = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (positions < self.lengths[:, None]).long()

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """The position of every prompt's last token."""
        return self.lengths - 1

    @property
    def read(self) -> Int[Tensor, " batch"]:
        """The position at which every prompt's answer is predicted: the last token, or the first one."""
        return torch.zeros_like(self.lengths) if self.at_start else self.last

    def repeat(self, copies: int) -> "Batch":
        """Return a batch with several copies of this one, copy after copy."""
        return Batch(
            ids=self.ids.repeat(copies, 1),
            lengths=self.lengths.repeat(copies),
            answer_ids=self.answer_ids.repeat(copies, 1),
            option_ids=self.option_ids.repeat(copies, 1),
            at_start=self.at_start,
        )


def collate(tokenized: Sequence[TokenizedPrompt], device: torch.device | str, pad_id: int) -> Batch:
    """Collect prompts into one batch on a device, padded with `pad_id` (see `pad_id_of`)."""
    lengths = torch.tensor([len(t.ids) for t in tokenized], dtype=torch.long, device=device)
    return Batch(
        ids=padded([t.ids for t in tokenized], pad_id, device),
        lengths=lengths,
        answer_ids=padded([t.answer_ids for t in tokenized], MISSING, device),
        option_ids=padded([t.option_ids for t in tokenized], MISSING, device),
        at_start=tokenized[0].at_start,
    )


def padded(
    rows: Sequence[Sequence[int]], fill: int, device: torch.device | str
) -> Int[Tensor, "batch width"]:
    """Return rows of different lengths as one tensor, padded on the right with `fill`."""
    width = max(map(len, rows))
    filled = [[*row, *[fill] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long, device=device).reshape(len(rows), width)


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to pad with. Any id would do, since padding is masked and comes last."""
    pad_id = tokenizer.pad_token_id
    return pad_id if isinstance(pad_id, int) else 0


def _alias_ids(
    prompt: Prompt, text_ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of a prompt's aliases, without those in characters that the tokenizer lacks."""
    if not prompt.aliases:
        return ()
    texts = [prompt.answered(alias) for alias in prompt.aliases]
    wholes = encode([prompt] * len(texts), texts, tokenizer)
    read = []
    for alias, whole in zip(prompt.aliases, wholes, strict=True):
        with suppress(InputError):
            ids = split(prompt, alias, text_ids, whole, tokenizer)[1]
            check_known(alias, ids, tokenizer)
            read.append(ids)
    return tuple(read)


def _warn_of_unknown_words(
    tokenized: Sequence[TokenizedPrompt], tokenizer: PreTrainedTokenizerBase
) -> None:
    unknown = [t.prompt.text for t in tokenized if has_unknown(t.prompt.text, t.ids, tokenizer)]
    if unknown:
        _log.warning(
            "%d of %d prompts have words that are not in the vocabulary of this tokenizer, among "
            "them %r: the model reads %s for each.",
            len(unknown),
            len(tokenized),
            shortened(unknown[0]),
            tokenizer.unk_token,
        )


def _with_entities(
    tokenized: Sequence[TokenizedPrompt], tokenizer: PreTrainedTokenizerBase
) -> list[TokenizedPrompt]:
    """Find the wrapper and the entity of every prompt. A slow tokenizer does not tell which characters a
    token stands for: then subjects are not looked for, and prompts in a wrapper are refused."""
    found = list(tokenized)
    subjects: list[Span | None] = [None] * len(found)
    prompts = [t.prompt for t in tokenized]
    if not tokenizer.is_fast and any(prompt.wrapper for prompt in prompts):
        raise InputError(
            f"a {type(tokenizer).__name__} does not tell which tokens are a chat template's: use the fast "
            "tokenizer of the checkpoint, or the prompts without a chat template."
        )
    marked = [i for i, prompt in enumerate(prompts) if prompt.wrapper or prompt.subject]
    marked = marked if tokenizer.is_fast else []
    for i, characters in zip(marked, offsets([prompts[i] for i in marked], tokenizer), strict=True):
        if prompts[i].wrapper:
            found[i] = replace(found[i], wrapper=_wrapper_size(prompts[i], characters))
        if subject := prompts[i].subject:
            subjects[i] = subject_span(prompts[i].text, subject, characters[: len(found[i].ids)])
    by_template: dict[str, list[int]] = {}
    for i, t in enumerate(found):
        by_template.setdefault(t.template, []).append(i)
    for members in by_template.values():
        texts = [found[i].text_span for i in members]
        spans = entity_spans([found[i].ids for i in members], [subjects[i] for i in members], texts)
        for i, span in zip(members, spans, strict=True):
            found[i] = replace(found[i], entity=span)
    return found


def _wrapper_size(prompt: Prompt, characters: Sequence[Span]) -> tuple[int, int]:
    """Return how many tokens at the start and at the end are the wrapper's, given the `characters` of the
    text that each token stands for. Spaces before a text are its own: they belong to its first token, or
    are a token by themselves."""
    before, _ = prompt.wrapper or ("", "")
    left, right = len(before.rstrip(" ")) - len(before), len(prompt.text)
    in_text = [k for k, (start, end) in enumerate(characters) if start < right and end > left]
    if not in_text:
        raise InputError(f"the prompt {prompt.text!r} has no tokens: {WORDS}.")
    return in_text[0], len(characters) - 1 - in_text[-1]
