"""A model whose components are ablated by degrees, many subnetworks in one batch.

Every head and every MLP has a gate g: what it writes is ybar + g (y - ybar), with ybar from a reference
set. At g = 1 that is y and at g = 0 it is ybar, bit for bit; in between it has a gradient. Every row of a
batch has gates of its own, so that prompts can be run under many subnetworks at once.
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
    """The gates of every row."""

    heads: Float[Tensor, "row layer head"]
    mlp: Float[Tensor, "row layer"]

    def each(self, times: int) -> "Gates":
        """Those of every row, several times in a row: of subnetworks, for that many prompts."""
        return Gates(self.heads.repeat_interleave(times, 0), self.mlp.repeat_interleave(times, 0))


@dataclass(frozen=True)
class Embedded:
    """A batch that is ready for the blocks: what enters the first, how each is called, and the position
    of every row's last token."""

    resid: Float[Tensor, "row pos d_model"]
    calls: list[BlockCall]
    last: Tensor


class GatedModel:
    """A model with frozen weights, and what its components write where they are ablated.

    Nothing of the model is changed. It is run in the mode it is in: see `eval_mode`.

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
        """The logits at every row's last token, in the graph of the gates; without gates, the model's."""
        return self.view.logits_at(self.weights, self.resid(embedded, gates), embedded.last)

    def resid(self, embedded: Embedded, gates: Gates | None = None) -> Float[Tensor, "row pos d_model"]:
        """What leaves the last block."""
        resid = embedded.resid
        for layer, call in enumerate(embedded.calls):
            inputs, outputs = ({}, {}) if gates is None else self.edits(layer, gates)
            with editing(self.view.block_sites[layer], inputs, outputs):
                resid = self.view.through(layer, self.weights, call, resid)
        return resid

    def edits(self, layer: int, gates: Gates) -> tuple[dict[str, Edit], dict[str, Edit]]:
        """What the gates make of one block, as `ecstruct.models.edits.editing` takes it."""
        means, mean = self.reference.heads[layer], self.reference.mlp[layer]

        def gated_heads(z: Tensor) -> Tensor:
            by_head = z.unflatten(-1, means.shape)
            # Unlike ybar + g (y - ybar), `lerp` is exact at both ends.
            return torch.lerp(means, by_head, gates.heads[:, layer][:, None, :, None]).flatten(-2)

        def gated_mlp(y: Tensor) -> Tensor:
            gate = gates.mlp[:, layer].reshape(-1, *[1] * (y.ndim - 1))
            return torch.lerp(mean, y, gate)

        return {"attn.o": gated_heads}, {"mlp.out": gated_mlp}
