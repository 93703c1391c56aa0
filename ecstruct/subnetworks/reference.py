"""What an ablated component writes: its mean over a reference set, or zero.

For a head it is the mean of its z, for an MLP the mean of what it writes before any post-norm. Means are
over all tokens of all prompts, without padding. A subnetwork is a mask together with these values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch, pad_id_of, tokenize
from ecstruct.models.bridge import eval_mode
from ecstruct.models.finite import check_weights, finite
from ecstruct.models.hooked import HookedView
from ecstruct.models.provenance import source_of, tokenizer_of
from ecstruct.models.sites import Weights
from ecstruct.scores.batching import TOKENS_PER_BATCH, cut

Ablation = Literal["mean", "zero"]


@dataclass(frozen=True)
class Reference:
    """The values that replace what ablated components write."""

    heads: Float[Tensor, "layer head d_head"]
    mlp: Float[Tensor, "layer d_model"]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Reference":
        return Reference(self.heads.to(device, dtype), self.mlp.to(device, dtype))


def reference_values(
    model: TransformerBridge, prompts: PromptsLike, *, ablation: Ablation = "mean"
) -> Reference:
    """Return the means over these prompts, in float64 on the CPU. With ablation="zero", return zeros of the
    same shape, whatever the prompts.

    Raises:
        InputError: no prompts, one that cannot be read, an unknown ablation, or means that are not finite.
    """
    if ablation not in get_args(Ablation):
        raise InputError(f"ablation={ablation!r} is unknown: it is 'mean' or 'zero'.")
    view, tokenizer = HookedView(model), tokenizer_of(model)
    if ablation == "zero":
        of_heads, of_mlp = (view.n_heads, view.d_head), (model.cfg.d_model,)
        return Reference(
            *(torch.zeros(view.n_layers, *sizes, dtype=torch.float64) for sizes in (of_heads, of_mlp))
        )
    if isinstance(prompts, Sequence) and not len(prompts):
        raise InputError(
            "the reference set is empty, so there is no mean to ablate with: give prompts as reference=, "
            "or ablation='zero'."
        )
    tokenized = tokenize(prompts, tokenizer, n_ctx=model.cfg.n_ctx, with_options=False)
    at_once = max(1, TOKENS_PER_BATCH // max(len(t.ids) for t in tokenized))
    batches = cut(tokenized, at_once, view.device, pad_id_of(tokenizer), False).batches
    n_tokens = sum(len(t.ids) for t in tokenized)
    heads: list[Tensor] = [torch.zeros(())] * view.n_layers
    mlp = list(heads)
    with torch.no_grad(), eval_mode(model):
        weights = view.weights()
        check_weights(source_of(model), weights)
        for batch in batches:
            for layer, (z, y) in enumerate(_summed(view, weights, batch)):
                heads[layer] = heads[layer] + z.cpu() / n_tokens
                mlp[layer] = mlp[layer] + y.cpu() / n_tokens
    means = [finite(torch.stack(values), "the means of what components write") for values in (heads, mlp)]
    return Reference(means[0].unflatten(1, (view.n_heads, -1)), means[1])


def _summed(view: HookedView, weights: Weights, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Return the z of all heads and what the MLP writes, of every layer, summed over tokens in float64."""
    trace, calls = view.embed(weights, batch.ids, batch.mask)
    resid, real, found = trace.output, batch.mask.bool(), []
    for layer in range(view.n_layers):
        trace = view.block(layer, weights, calls[layer], resid)
        seen = (trace.taps["attn.o"].input, trace.taps["mlp.out"].output)
        z, y = (value[real].double().sum(0) for value in seen)
        found.append((z, y))
        resid = trace.output
    return found
