"""What an ablated component writes: its mean over a reference set, or zero.

For a head it is the mean of its z, for an MLP the mean of what it writes before any post-norm. Means are
over all tokens of all prompts, without padding. A subnetwork is a mask together with these values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor

from ecstruct.engine.forward import embed, traces
from ecstruct.engine.session import Model, Session
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch
from ecstruct.models.finite import finite

Ablation = Literal["mean", "zero"]


@dataclass(frozen=True)
class Reference:
    """The values that replace what ablated components write."""

    heads: Float[Tensor, "layer head d_head"]
    mlp: Float[Tensor, "layer d_model"]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Reference":
        return Reference(self.heads.to(device, dtype), self.mlp.to(device, dtype))


def reference_values(model: Model, prompts: PromptsLike, *, ablation: Ablation = "mean") -> Reference:
    """Return the means over these prompts, in float64 on the CPU. With ablation="zero", return zeros of the
    same shape, whatever the prompts.

    Raises:
        InputError: no prompts, one that cannot be read, an unknown ablation, or means that are not finite.
    """
    if ablation not in get_args(Ablation):
        raise InputError(f"ablation={ablation!r} is unknown: it is 'mean' or 'zero'.")
    session = Session.of(model)
    view = session.view
    sizes = {"attn.o": view.n_heads * view.d_head, "mlp.out": view.model.cfg.d_model}
    means = {name: torch.zeros(view.n_layers, size, dtype=torch.float64) for name, size in sizes.items()}
    if ablation == "mean":
        if isinstance(prompts, Sequence) and not len(prompts):
            raise InputError(
                "the reference set is empty, so there is no mean to ablate with: give prompts as "
                "reference=, or ablation='zero'."
            )
        tokenized = session.tokenize(prompts, with_options=False)
        n_tokens = sum(len(t.ids) for t in tokenized)

        def add(_rows: list[int], batch: Batch) -> None:
            for name, total in _sums(session, batch).items():
                means[name] += total / n_tokens

        session.each_batch(tokenized, add)
    heads, mlp = (finite(values, "the means of what components write") for values in means.values())
    return Reference(rearrange(heads, "layer (head d_head) -> layer head d_head", head=view.n_heads), mlp)


def _sums(session: Session, batch: Batch) -> dict[str, Float64[Tensor, "layer width"]]:
    """Return the z of all heads and what the MLP writes, of every layer, summed over tokens."""
    embedded, real = embed(session, batch), batch.mask.bool()
    found: dict[str, list[Tensor]] = {"attn.o": [], "mlp.out": []}
    for trace in traces(session, embedded.calls, embedded.resid):
        for name, value in (
            ("attn.o", trace.taps["attn.o"].input),
            ("mlp.out", trace.taps["mlp.out"].output),
        ):
            found[name].append(value[real].double().sum(0).cpu())
    return {name: torch.stack(of_layers) for name, of_layers in found.items()}
