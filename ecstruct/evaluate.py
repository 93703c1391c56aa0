"""Does a model know an answer? The rank of the answer among its options.

The rank is 0-indexed: the number of options whose first token has a higher logit than the answer's
first token, at the last token of the prompt, with ties counted half. 0 is right, and with n options
a model that knows nothing has (n - 1) / 2 on average.

With `answer_tokens="all"` whole answers are compared, by the sum of the log-probabilities of all their
tokens. For an answer with aliases the best one counts; when first tokens are compared, an alias that shares
its first token with another option is ignored.

With `among="vocabulary"` every token is an option: rank 0 means that the model predicts the answer's first
token, which makes a fact known in Geva et al. (2023). Prompts then need no options.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, TypeVar, get_args, overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.engine.plan import each_batch
from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.options import option_tokens
from ecstruct.facts.prompt import Prompt, PromptsLike, as_prompts
from ecstruct.facts.tokens import Batch, TokenizedPrompt, pad_id_of, tokenize
from ecstruct.io.values import bounded
from ecstruct.models.bridge import eval_mode, logits_at
from ecstruct.models.labels import labels_of
from ecstruct.models.provenance import tokenizer_of

AnswerTokens = Literal["first", "all"]
Among = Literal["options", "vocabulary"]


@bounded
def ranks(
    model: TransformerBridge,
    prompts: PromptsLike,
    *,
    batch_size: int = 64,
    answer_tokens: AnswerTokens = "first",
    among: Among = "options",
) -> Float[np.ndarray, " prompt"]:
    """The rank of every prompt's answer among its options, from 0 to n_options - 1, or among all
    tokens of the vocabulary.

    The model is run without gradients and in eval mode, and comes back in the mode it was in.
    `batch_size` (texts read at a time, halved when memory runs out) decides about speed and memory only.
    With `answer_tokens="all"` options may begin with the same token, and every option is a text of its own
    to read.

    Raises:
        InputError: a prompt that cannot be used (see `ecstruct.facts.tokens.tokenize`), a batch
            size below 1, unknown answer tokens, whole answers among the vocabulary, or logits that are NaN.
    """
    if answer_tokens not in get_args(AnswerTokens):
        raise InputError(f"answer_tokens is 'first' or 'all', not {answer_tokens!r}.")
    if among not in get_args(Among):
        raise InputError(f"among is 'options' or 'vocabulary', not {among!r}.")
    tokenizer = tokenizer_of(model)
    first = answer_tokens == "first" or labels_of(tokenizer) is not None  # a label is one token
    if among == "vocabulary" and not first:
        raise InputError("among='vocabulary' compares single tokens: leave answer_tokens='first'.")
    with_options = first and among == "options"
    tokenized = tokenize(prompts, tokenizer, n_ctx=model.cfg.n_ctx, with_options=with_options)
    if first:
        return ranks_of_tokenized(model, tokenized, batch_size=batch_size)
    return _ranks_of_whole_answers(
        model, tokenized, option_tokens([t.prompt for t in tokenized], tokenizer), batch_size
    )


def mean_rank(
    model: TransformerBridge,
    prompts: PromptsLike,
    *,
    batch_size: int = 64,
    answer_tokens: AnswerTokens = "first",
) -> float:
    """The mean of `ranks` over the prompts."""
    return float(ranks(model, prompts, batch_size=batch_size, answer_tokens=answer_tokens).mean())


Data = TypeVar("Data", FactSet, tuple[Prompt, ...])


@dataclass(frozen=True)
class KeptFacts(Generic[Data]):
    """The facts that are `kept` because a model knows them; those that it does not know are `dropped`, with
    their `ranks`."""

    kept: Data
    dropped: tuple[Prompt, ...]
    ranks: tuple[float, ...]


@overload
def keep_known(
    model: TransformerBridge,
    data: FactSet,
    *,
    batch_size: int = 64,
    answer_tokens: AnswerTokens = "first",
    among: Among = "options",
) -> KeptFacts[FactSet]: ...


@overload
def keep_known(
    model: TransformerBridge,
    data: PromptsLike,
    *,
    batch_size: int = 64,
    answer_tokens: AnswerTokens = "first",
    among: Among = "options",
) -> KeptFacts[tuple[Prompt, ...]]: ...


def keep_known(
    model: TransformerBridge,
    data: FactSet | PromptsLike,
    *,
    batch_size: int = 64,
    answer_tokens: AnswerTokens = "first",
    among: Among = "options",
) -> KeptFacts[FactSet] | KeptFacts[tuple[Prompt, ...]]:
    """Keep only what a model knows before it is finetuned, that is, answers with rank 0 among their options
    or `among` the whole vocabulary.

    For prompts, keep those. For a fact set, keep implications whose known facts all have rank 0, with the
    facts that they follow from: implications that need a hop which the model does not know are no evidence.

    Raises:
        InputError: the model knows none of the facts, a fact set does not say what its implications follow
            from, or prompts cannot be ranked (see `ranks`).
    """
    whole = isinstance(data, FactSet)
    if whole and not data.known:
        raise InputError(
            f"the fact set {data.name!r} has no known facts: give them as known= with derivations, as "
            "ecstruct.facts.read and compose do."
        )
    asked = as_prompts(data.known if whole else data)
    found = ranks(model, asked, batch_size=batch_size, answer_tokens=answer_tokens, among=among)
    unknown = {i for i, rank in enumerate(found) if rank > 0}
    if len(unknown) == len(asked):
        raise InputError(
            f"the model knows none of {len(asked)} facts, as {asked[0].text!r}: use others that it does."
        )
    dropped = tuple(asked[i] for i in sorted(unknown))
    of_dropped = tuple(float(found[i]) for i in sorted(unknown))
    if not whole:
        return KeptFacts(tuple(p for i, p in enumerate(asked) if i not in unknown), dropped, of_dropped)
    kept = data.subset(i for i, d in enumerate(data.derivations) if unknown.isdisjoint(d.known))
    return KeptFacts(kept, dropped, of_dropped)


def check_rankable(model: TransformerBridge, prompts: PromptsLike) -> None:
    """Raise the errors that `ranks` would raise about prompts, before any work is done.

    Raises:
        InputError: a prompt cannot be used, or the tokenizer cannot tell options apart.
    """
    tokenize(prompts, tokenizer_of(model), n_ctx=model.cfg.n_ctx)


def ranks_of_tokenized(
    model: TransformerBridge, tokenized: Sequence[TokenizedPrompt], *, batch_size: int = 64
) -> Float[np.ndarray, " prompt"]:
    """Compute `ranks` for prompts that are already tokenized, with their options."""
    _check_batch_size(batch_size)
    pad_id, device = pad_id_of(tokenizer_of(model)), next(model.parameters()).device
    with eval_mode(model):
        return ranks_by(partial(logits_at, model), tokenized, pad_id, device, batch_size=batch_size)


def ranks_by(
    logits_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    tokenized: Sequence[TokenizedPrompt],
    pad_id: int,
    device: torch.device,
    *,
    batch_size: int = 64,
) -> Float[np.ndarray, " prompt"]:
    """Compute `ranks` with a function from the positions to read, ids and mask, [batch, pos], to logits,
    [read, d_vocab]."""
    result = np.empty(len(tokenized))

    def rank(rows: list[int], batch: Batch) -> None:
        read = one_hot(batch.read, batch.ids.shape[1]).bool()
        logits = logits_of(read, batch.ids, batch.mask).cpu()
        result[rows] = [rank_of(tokenized[i], of_prompt) for i, of_prompt in zip(rows, logits, strict=True)]

    with torch.no_grad():
        each_batch(tokenized, batch_size, device, pad_id, rank)
    return result


def rank_summary(
    tokenized: Sequence[TokenizedPrompt], found: Mapping[str, Float[np.ndarray, " prompt"]]
) -> pd.DataFrame:
    """Return mean rank and accuracy (the share of rank 0) for ranks by name, and for chance."""
    n_options = np.array([len(t.option_ids) for t in tokenized])
    rows = [
        {"model": name, "mean rank": float(of.mean()), "accuracy": float((of == 0).mean())}
        for name, of in found.items()
    ]
    chance = {"mean rank": float((n_options - 1).mean() / 2), "accuracy": float((1 / n_options).mean())}
    return pd.DataFrame([*rows, {"model": "chance", **chance}])


def _ranks_of_whole_answers(
    model: TransformerBridge,
    tokenized: Sequence[TokenizedPrompt],
    options: Sequence[Sequence[tuple[int, ...]]],
    batch_size: int,
) -> Float[np.ndarray, " prompt"]:
    _check_batch_size(batch_size)
    # The right ones first: the answer and its aliases, then the other options.
    answers = [
        (
            t.answer_ids,
            *t.alias_ids,
            *(ids for o, ids in zip(t.prompt.options or (), its, strict=True) if o != t.prompt.answer),
        )
        for t, its in zip(tokenized, options, strict=True)
    ]
    texts = [
        replace(t, ids=t.ids + ids[:-1], answer_ids=ids)
        for t, of_prompt in zip(tokenized, answers, strict=True)
        for ids in of_prompt
    ]
    longest, n_ctx = max(texts, key=lambda t: len(t.ids)), model.cfg.n_ctx
    if len(longest.ids) > n_ctx:
        raise InputError(
            f"the prompt {longest.prompt.text[:60]!r} and an option are {len(longest.ids)} tokens to read, "
            f"but the model's context has {n_ctx}: shorten them."
        )
    logprobs = _logprobs(model, texts, batch_size).split([len(of_prompt) for of_prompt in answers])
    n_right = [1 + len(t.alias_ids) for t in tokenized]
    return np.array(
        [
            _rank_among(t, found[:n], found[n:])
            for t, found, n in zip(tokenized, logprobs, n_right, strict=True)
        ]
    )


def _logprobs(
    model: TransformerBridge, texts: Sequence[TokenizedPrompt], batch_size: int
) -> Float[Tensor, " text"]:
    """Return the log-probability of the whole answer of each text, in nats: the sum over its tokens.

    The ids of `texts` end with the answer, but for its last token, which no other token needs. Results are
    float64, so that equal answers tie exactly."""
    pad_id, device = pad_id_of(tokenizer_of(model)), next(model.parameters()).device
    result = torch.empty(len(texts), dtype=torch.float64)

    def measure(rows: list[int], batch: Batch) -> None:
        answers = [torch.tensor(texts[i].answer_ids) for i in rows]
        lengths = [len(answer) for answer in answers]
        after = torch.arange(batch.ids.shape[1], device=device) - batch.last[:, None]
        read = (after <= 0) & (after > -torch.tensor(lengths, device=device)[:, None])
        logits = logits_at(model, read, batch.ids, batch.mask).double().cpu().split(lengths)
        for i, answer, of_text in zip(rows, answers, logits, strict=True):
            result[i] = of_text.log_softmax(-1).gather(1, answer[:, None]).sum()

    with torch.no_grad(), eval_mode(model):
        each_batch(texts, batch_size, device, pad_id, measure)
    return result


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is no number of prompts: use 1 or more.")


def rank_of(t: TokenizedPrompt, logits: Float[Tensor, " d_vocab"]) -> float:
    """Return the rank of the answer by the logits after a prompt, by first tokens: among the options, or
    among all tokens if the prompt was tokenized without options.

    Raises:
        InputError: the logits are NaN.
    """
    right, names = t.answer_ids[0], {ids[0] for ids in (t.answer_ids, *t.alias_ids)}
    if not t.option_ids:
        others = torch.ones_like(logits, dtype=torch.bool)
        others[[*names]] = False
        return _rank_among(t, logits[list(names)], logits[others])
    others = [token for token in t.option_ids if token != right]
    return _rank_among(t, logits[list(names.difference(others))], logits[others])


def _rank_among(
    t: TokenizedPrompt, right: Float[Tensor, " name"], others: Float[Tensor, " option"]
) -> float:
    """Return the rank of the best of the `right` answers among the `others`, by logits or
    log-probabilities: the number of others that are larger, with ties counted half. Raise `InputError` for
    NaN."""
    if right.isnan().any() or others.isnan().any():
        raise InputError(
            f"the model's logits after {t.prompt.text!r} are NaN: its weights or its precision are "
            "broken, load it anew in float32."
        )
    best = right.max()
    return (others > best).sum().item() + (others == best).sum().item() / 2
