"""A model whose components are partly ablated, with many subnetworks in one batch.

Every head and every MLP has a gate g: it writes ybar + g (y - ybar), with ybar from a reference set. At g =
1 this is y and at g = 0 it is ybar, bit for bit; in between it has a gradient. Every row of a batch has its
own gates, so that prompts can run under many subnetworks at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from ecstruct.engine.forward import Embedded, Intervention, Step, embed, logits_of, nothing
from ecstruct.engine.session import Model, Session
from ecstruct.errors import InputError
from ecstruct.facts.tokens import Batch
from ecstruct.subnetworks.masks import Masks
from ecstruct.subnetworks.reference import Reference

Kind = Literal["heads", "mlp"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gates:
    """The gates of every row of a batch."""

    heads: Float[Tensor, "row layer head"]
    mlp: Float[Tensor, "row layer"]

    def each(self, times: int) -> Gates:
        """Repeat the gates of every row: turn gates of subnetworks into gates for `times` prompts each."""
        return Gates(
            repeat(self.heads, "row layer head -> (row times) layer head", times=times),
            repeat(self.mlp, "row layer -> (row times) layer", times=times),
        )


class GatedModel:
    """A model with frozen weights, and what its components write where they are ablated.

    The model itself is not changed. It runs in the mode that it is in: see `Session.still`.

    Raises:
        InputError: weights that are NaN or infinite; values of a model with other layers, heads or widths.
    """

    def __init__(self, model: Model, reference: Reference) -> None:
        self.session = Session.of(model)
        self.view = self.session.view
        self.reference = reference.to(self.view.device, self.view.dtype)
        found = (*reference.heads.shape, reference.mlp.shape[-1])
        wanted = (self.view.n_layers, self.view.n_heads, self.view.d_head, self.view.model.cfg.d_model)
        if found != wanted:
            raise InputError(
                "the reference values are of a model with (layers, heads, d_head, d_model) = "
                f"{found}, and this one has {wanted}: compute them with this model."
            )

    @classmethod
    def of(cls, model: Model, masks: Masks) -> GatedModel:
        """Return the model with the reference values of its masks; warn in the log if these were found in
        another model.

        Raises:
            InputError: masks that did not converge, have no reference values, or do not fit the model.
        """
        masks.check_converged()
        if (reference := masks.reference) is None:
            raise InputError(
                "these masks do not say what takes the place of ablated components: prune anew, or give "
                "Masks.of(..., reference=reference_values(model, prompts))."
            )
        gated = cls(model, reference)
        pruned = masks.attrs.get("model", {}).get("fingerprint")
        if pruned is not None and pruned != gated.session.described["fingerprint"]:
            _log.warning("this is not the model that was pruned: its weights differ.")
        return gated

    def embed(self, batch: Batch) -> Embedded:
        return embed(self.session, batch)

    @property
    def shapes(self) -> dict[Kind, tuple[int, ...]]:
        """The shape of one subnetwork's gates, by kind of component."""
        return {"heads": (self.view.n_layers, self.view.n_heads), "mlp": (self.view.n_layers,)}

    def gates(
        self, heads: Bool[np.ndarray, "seed layer head"], mlp: Bool[np.ndarray, "seed layer"]
    ) -> Gates:
        """Return gates that are 1 for the components that a subnetwork keeps, and 0 for all others."""
        parts = (torch.from_numpy(part).to(self.view.device, self.view.dtype) for part in (heads, mlp))
        return Gates(*parts)

    def logits(self, embedded: Embedded, gates: Gates | None = None) -> Float[Tensor, "row d_vocab"]:
        """Return the logits at the position of every row where its answer is predicted, with a gradient in
        the gates; without gates, those of the full model."""
        return logits_of(self.session, embedded, nothing if gates is None else self.gating(gates))

    def gating(self, gates: Gates) -> Intervention:
        """Return the intervention by which the gates act on every block."""

        def gated(step: Step) -> Step:
            means, mean = self.reference.heads[step.layer], self.reference.mlp[step.layer]
            of_heads, of_mlp = gates.heads[:, step.layer], gates.mlp[:, step.layer]

            def heads(z: Float[Tensor, "row pos width"]) -> Float[Tensor, "row pos width"]:
                by_head = rearrange(z, "row pos (head d_head) -> row pos head d_head", head=len(means))
                # Unlike ybar + g (y - ybar), `lerp` is exact at both ends.
                moved = torch.lerp(means, by_head, rearrange(of_heads, "row head -> row 1 head 1"))
                return rearrange(moved, "row pos head d_head -> row pos (head d_head)")

            def mlp(y: Tensor) -> Tensor:
                return torch.lerp(mean, y, of_mlp.reshape(-1, *[1] * (y.ndim - 1)))

            return replace(step, inputs={"attn.o": heads}, outputs={"mlp.out": mlp})

        return gated
