"""A model whose components are partly ablated, with many subnetworks in one batch.

Every head and every MLP has a gate g: it writes ybar + g (y - ybar), with ybar from a reference set. At g =
1 this is y and at g = 0 it is ybar, bit for bit; in between it has a gradient. Every row of a batch has its
own gates, so that prompts can run under many subnetworks at once.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.facts.tokens import Batch
from ecstruct.models.calls import BlockCall
from ecstruct.models.edits import Edit, editing
from ecstruct.models.finite import check_weights
from ecstruct.models.hooked import HookedView
from ecstruct.models.provenance import source_of
from ecstruct.subnetworks.reference import Reference


@dataclass(frozen=True)
class Gates:
    """The gates of every row of a batch."""

    heads: Float[Tensor, "row layer head"]
    mlp: Float[Tensor, "row layer"]

    def each(self, times: int) -> "Gates":
        """Repeat the gates of every row: turn gates of subnetworks into gates for `times` prompts each."""
        return Gates(self.heads.repeat_interleave(times, 0), self.mlp.repeat_interleave(times, 0))


@dataclass(frozen=True)
class Embedded:
    """A batch that is ready for the blocks: what enters the first block, the call of each block, and the
    position of every row's last token."""

    resid: Float[Tensor, "row pos d_model"]
    calls: list[BlockCall]
    last: Tensor


class GatedModel:
    """A model with frozen weights, and what its components write where they are ablated.

    The model itself is not changed. It runs in the mode that it is in: see `eval_mode`.

    Raises:
        InputError: weights that are NaN or infinite; values of a model with other layers, heads or widths.
    """

    def __init__(self, model: TransformerBridge, reference: Reference) -> None:
        self.view = HookedView(model)
        self.weights = self.view.weights()
        check_weights(source_of(model), self.weights)
        self.reference = reference.to(self.view.device, self.view.dtype)
        found = (*reference.heads.shape, reference.mlp.shape[-1])
        wanted = (self.view.n_layers, self.view.n_heads, self.view.d_head, model.cfg.d_model)
        if found != wanted:
            raise InputError(
                "the reference values are of a model with (layers, heads, d_head, d_model) = "
                f"{found}, and this one has {wanted}: compute them with this model."
            )

    def embed(self, batch: Batch) -> Embedded:
        with torch.no_grad():
            trace, calls = self.view.embed(self.weights, batch.ids, batch.mask)
        return Embedded(trace.output.detach(), calls, batch.last)

    def logits(self, embedded: Embedded, gates: Gates | None = None) -> Float[Tensor, "row d_vocab"]:
        """Return the logits at every row's last token, with a gradient in the gates, or without gates."""
        return self.view.logits_at(self.weights, self.resid(embedded, gates), embedded.last)

    def resid(self, embedded: Embedded, gates: Gates | None = None) -> Float[Tensor, "row pos d_model"]:
        """Return what leaves the last block."""
        resid = embedded.resid
        for layer, call in enumerate(embedded.calls):
            inputs, outputs = ({}, {}) if gates is None else self.edits(layer, gates)
            with editing(self.view.block_sites[layer], inputs, outputs):
                resid = self.view.through(layer, self.weights, call, resid)
        return resid

    def edits(self, layer: int, gates: Gates) -> tuple[dict[str, Edit], dict[str, Edit]]:
        """Return the edits by which the gates act on one block, for `ecstruct.models.edits.editing`."""
        means, mean = self.reference.heads[layer], self.reference.mlp[layer]

        def gated_heads(z: Tensor) -> Tensor:
            by_head = z.unflatten(-1, means.shape)
            # Unlike ybar + g (y - ybar), `lerp` is exact at both ends.
            return torch.lerp(means, by_head, gates.heads[:, layer][:, None, :, None]).flatten(-2)

        def gated_mlp(y: Tensor) -> Tensor:
            gate = gates.mlp[:, layer].reshape(-1, *[1] * (y.ndim - 1))
            return torch.lerp(mean, y, gate)

        return {"attn.o": gated_heads}, {"mlp.out": gated_mlp}
