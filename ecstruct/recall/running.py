"""Prompts run through a model block by block, with edits on the way: what the parts of recall share.

Nothing is differentiated, and the model is as it was afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch, pad_id_of
from ecstruct.models.bridge import still
from ecstruct.models.calls import BlockCall
from ecstruct.models.edits import Edit, editing
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.finite import check_weights
from ecstruct.models.hooked import HookedView, Trace
from ecstruct.models.provenance import provenance, source_of, tokenizer_of, versions
from ecstruct.models.sites import Weights
from ecstruct.recall.groups import RecallPrompt, Which, positions, read
from ecstruct.recall.masks import closing, is_closed, mask_of, with_mask
from ecstruct.scores.batching import cut, prompts_per_batch

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")

_MASKED = -1e30
"""Added to an attention score it leaves nothing of it, in any dtype that scores are computed in."""


@dataclass(frozen=True)
class Runs:
    """A model under its own weights, and prompts in batches; `rows` are the prompts of each batch."""

    view: HookedView
    weights: Weights
    prompts: list[RecallPrompt]
    rows: list[list[int]]
    batches: list[Batch]

    @classmethod
    def of(cls, model: TransformerBridge, prompts: PromptsLike) -> Runs:
        view = HookedView(model)
        weights = view.weights()
        check_weights(source_of(model), weights)
        tokenized = read(model, prompts)
        pad_id = pad_id_of(tokenizer_of(model))
        job = cut([*tokenized], prompts_per_batch(tokenized), view.device, pad_id, False)
        return cls(view, weights, tokenized, job.rows, job.batches)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Without dropout, gradients and TF32."""
        with still(self.view.model), torch.no_grad():
            yield

    def embed(self, b: int) -> tuple[Float[Tensor, "batch pos d_model"], list[BlockCall]]:
        """What enters block 0, and how the blocks are called, for batch `b`."""
        trace, calls = self.view.embed(self.weights, self.batches[b].ids, self.batches[b].mask)
        return trace.output, calls

    def block(
        self,
        layer: int,
        call: BlockCall,
        resid: Float[Tensor, "batch pos d_model"],
        inputs: Mapping[str, Edit] | None = None,
        outputs: Mapping[str, Edit] | None = None,
    ) -> Trace:
        """One block, with edits of the inputs and outputs of its sites."""
        with editing(self.view.block_sites[layer], inputs or {}, outputs or {}):
            return self.view.block(layer, self.weights, call, resid)

    def written_by(self, layer: int, part: Part) -> str:
        """The site whose output attention or MLP adds to the residual stream: its post-norm if it has one,
        its output projection otherwise."""
        post, projection = ("ln1_post", "attn.o") if part == "attention" else ("ln2_post", "mlp.out")
        return post if post in self.view.block_sites[layer] else projection

    def places(self, which: Which, *, may_be_empty: bool = False) -> list[list[int]]:
        """The positions of a group, prompt by prompt."""
        return [positions(prompt, which, may_be_empty=may_be_empty) for prompt in self.prompts]

    def where(self, b: int, places: Sequence[Sequence[int]]) -> Bool[Tensor, "batch pos"]:
        """Whether a token of batch `b` is in its prompt's places."""
        return is_in(places, self.rows[b], self.batches[b])

    def coordinates(self) -> dict[str, Any]:
        """What is known of every prompt, as labels."""
        return {
            "prompt": np.arange(len(self.prompts)),
            "text": ("prompt", [p.prompt.text for p in self.prompts]),
            "answer": ("prompt", [p.prompt.answer for p in self.prompts]),
            "subject": ("prompt", [p.prompt.subject or "" for p in self.prompts]),
            "template": ("prompt", [p.template for p in self.prompts]),
        }

    def attrs(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """What it takes to compute a result again: model, options, versions."""
        return {
            "method": method,
            "model": {
                **provenance(self.view.model).described,
                "fingerprint": fingerprint(self.view.named_weights),
            },
            "options": dict(options),
            "versions": versions(),
        }


def is_in(places: Sequence[Sequence[int]], rows: Sequence[int], batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Whether a token is in the places of its prompt, the prompts of the batch being `rows`."""
    found = torch.zeros_like(batch.ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        found[i, list(places[row])] = True
    return found


def silenced(where: Bool[Tensor, "batch pos"]) -> Edit:
    """An edit that puts zeros at these tokens."""
    return lambda written: written.masked_fill(where[..., None], 0)


def edges_blocked(
    call: BlockCall, to: Bool[Tensor, "batch pos"], of: Bool[Tensor, "batch pos"]
) -> BlockCall:
    """The call with the attention edges into the tokens `to` from the tokens `of` masked before the
    softmax, beside those that the model masks itself."""
    return with_mask(call, closing(mask_of(call, len(to)), to[:, :, None] & of[:, None, :]))


def edges_alike(call: BlockCall, batch: int) -> BlockCall:
    """The call with every edge masked, and those that the model masks itself masked more: so that each
    token sees all tokens that it may see alike."""
    mask = mask_of(call, batch)
    if mask.dtype == torch.bool:
        raise InputError(
            "the blocks of this model are called with a boolean mask, under which no edges are masked more "
            "than others: use mode='zero'."
        )
    lowest = torch.finfo(mask.dtype).min
    return with_mask(call, torch.full_like(mask, _MASKED).masked_fill(is_closed(mask)[:, None], lowest))
