"""Does a model know an answer? The rank of the answer among its options.

The rank is 0-indexed: the number of options whose first token has a higher logit than the answer's
first token, at the last token of the prompt, with ties counted half. 0 is right, and with n options
a model that knows nothing has (n - 1) / 2 on average.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import TokenizedPrompt, collate, pad_id_of, tokenize
from ecstruct.models.hooked import eval_mode
from ecstruct.models.provenance import tokenizer_of


def ranks(
    model: TransformerBridge, prompts: PromptsLike, *, batch_size: int = 64
) -> Float[np.ndarray, " prompt"]:
    """The rank of every prompt's answer among its options, from 0 to n_options - 1.

    The model is run without gradients and in eval mode, and comes back in the mode it was in.
    `batch_size` (prompts) decides about speed and memory only.

    Raises:
        InputError: a prompt that cannot be used (see `ecstruct.facts.tokens.tokenize`), a batch
            size below 1, or logits that are NaN.
    """
    tokenized = tokenize(prompts, tokenizer_of(model), n_ctx=model.cfg.n_ctx)
    return ranks_of_tokenized(model, tokenized, batch_size=batch_size)


def mean_rank(model: TransformerBridge, prompts: PromptsLike, *, batch_size: int = 64) -> float:
    """The mean of `ranks` over the prompts."""
    return float(ranks(model, prompts, batch_size=batch_size).mean())


def check_rankable(model: TransformerBridge, prompts: PromptsLike) -> None:
    """Raise what `ranks` would raise about prompts, before any work is done.

    Raises:
        InputError: a prompt that cannot be used, options that the tokenizer cannot tell apart.
    """
    tokenize(prompts, tokenizer_of(model), n_ctx=model.cfg.n_ctx)


def ranks_of_tokenized(
    model: TransformerBridge, tokenized: Sequence[TokenizedPrompt], *, batch_size: int = 64
) -> Float[np.ndarray, " prompt"]:
    """`ranks` of prompts that are tokenised already, with their options."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is no number of prompts: use 1 or more.")
    pad_id, device = pad_id_of(tokenizer_of(model)), next(model.parameters()).device
    # Prompts of similar length go together, so that little is spent on padding.
    order = sorted(range(len(tokenized)), key=lambda i: len(tokenized[i].ids))
    result = np.empty(len(tokenized))
    with torch.no_grad(), eval_mode(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            members = [tokenized[i] for i in chosen]
            batch = collate(members, device, pad_id)
            logits = model(batch.ids, attention_mask=batch.mask, return_type="logits")
            last = logits[torch.arange(len(chosen), device=device), batch.last].cpu()
            for i, t, of_prompt in zip(chosen, members, last, strict=True):
                result[i] = _rank(t, of_prompt)
    return result


def _rank(t: TokenizedPrompt, logits: Float[Tensor, " d_vocab"]) -> float:
    answer, options = logits[t.answer_ids[0]], logits[list(t.option_ids)]
    if options.isnan().any():
        raise InputError(
            f"the model's logits after {t.prompt.text!r} are NaN: its weights or its precision are "
            "broken, load it anew in float32."
        )
    # The answer is one of the options and ties with itself.
    ties = (options == answer).sum().item() - 1
    return (options > answer).sum().item() + ties / 2
