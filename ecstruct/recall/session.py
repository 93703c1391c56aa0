"""What recall works on: a model, hooked and fingerprinted once, and prompts, tokenised once.

Prompts run block by block, with interventions on the way. Nothing is differentiated, and the model is
unchanged afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.facts.alignment import Span, subject_span
from ecstruct.facts.encoding import offsets
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch, TokenizedPrompt, pad_id_of, tokenize
from ecstruct.models.bridge import still
from ecstruct.models.calls import BlockCall
from ecstruct.models.edits import Edit, editing
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.finite import check_weights
from ecstruct.models.hooked import HookedView, Trace
from ecstruct.models.provenance import provenance, source_of, tokenizer_of, versions
from ecstruct.models.sites import Weights
from ecstruct.recall.groups import RecallPrompt, Which, positions
from ecstruct.recall.words import word_of
from ecstruct.scores.batching import cut, prompts_per_batch
from ecstruct.scores.pair import Pair

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")

Prompts = PromptsLike | list[RecallPrompt]
"""Prompts as everywhere in ecstruct, or those that a session has already read."""

Places = Sequence[Sequence[int]]
"""Positions of each prompt."""


@dataclass(frozen=True, eq=False)
class Session:
    """A hooked model under one set of weights. Every function of `ecstruct.recall` accepts a session in
    place of a model, so that several calls share the work of hooking and fingerprinting it.

    `described` says where the weights come from, with their fingerprint. The sessions of two models that
    are compared share their `pair` and its hooked model.
    """

    view: HookedView
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    described: Mapping[str, Any]
    pair: Pair | None = None

    @classmethod
    def of(cls, model: Model) -> Session:
        """Return the session of a model; a session is returned as it is.

        Raises:
            InputError: a model that cannot be hooked, or weights that are NaN or infinite.
        """
        if isinstance(model, Session):
            return model
        view = HookedView(model)
        weights = view.weights()
        check_weights(source_of(model), weights)
        described = {**provenance(model).described, "fingerprint": fingerprint(view.named_weights)}
        return cls(view, weights, tokenizer_of(model), described)

    @classmethod
    def both(cls, before: Model, after: Model) -> tuple[Session, Session]:
        """Return the sessions of two models of one architecture, each with its own tokenizer. Two sessions
        that this function made are returned as they are.

        Raises:
            InputError: a model that cannot be hooked, two that do not fit one another, or other sessions.
        """
        if isinstance(before, Session) and isinstance(after, Session):
            pair = before.pair
            if pair and before.weights is pair.before and after.weights is pair.after:
                return before, after
        if isinstance(before, Session) or isinstance(after, Session):
            raise InputError(
                "these are not the sessions of two models, before and after finetuning: give the models, "
                "or both sessions that Session.both made of them, in this order."
            )
        pair = Pair.of(before, after)
        own = tokenizer_of(pair.view.model)
        return (
            cls(pair.view, pair.before, own, pair.sources["before"], pair),
            cls(pair.view, pair.after, pair.tokenizer_after or own, pair.sources["after"], pair),
        )

    def read(self, prompts: Prompts) -> list[RecallPrompt]:
        """Tokenise prompts with the model's own tokenizer, and find the tokens of their subjects. Prompts
        that were read already are returned as they are.

        Raises:
            InputError: a prompt that cannot be used, see `ecstruct.facts.tokens.tokenize`.
        """
        if isinstance(prompts, list) and prompts and isinstance(prompts[0], RecallPrompt):
            return cast(list[RecallPrompt], prompts)
        n_ctx = self.view.model.cfg.n_ctx
        found = tokenize(cast(PromptsLike, prompts), self.tokenizer, n_ctx=n_ctx, with_options=False)
        if not self.tokenizer.is_fast:  # slow ones do not tell which characters belong to a token
            return [RecallPrompt(**vars(t)) for t in found]
        characters = offsets([t.prompt for t in found], self.tokenizer)
        return [
            RecallPrompt(**vars(t), subject=_subject_of(t, of_tokens[: len(t.ids)]))
            for t, of_tokens in zip(found, characters, strict=True)
        ]

    @cached_property
    def words(self) -> list[str]:
        """What every token spells (`ecstruct.recall.words`), by id; "" for special tokens and for ids
        without a token."""
        tokens = self.tokenizer.convert_ids_to_tokens([*range(len(self.tokenizer))])
        special = set(self.tokenizer.all_special_tokens)
        return ["" if t is None or t in special else word_of(t, self.tokenizer) for t in tokens]


Model = TransformerBridge | Session


def _subject_of(read: TokenizedPrompt, characters: Sequence[Span]) -> Span | None:
    subject = read.prompt.subject
    return None if subject is None else subject_span(read.prompt.text, subject, characters)


@dataclass(frozen=True)
class Step:
    """A block that is about to run on `resid`, with edits of the inputs and outputs of its sites."""

    layer: int
    call: BlockCall
    resid: Float[Tensor, "batch pos d_model"]
    inputs: Mapping[str, Edit] = field(default_factory=dict)
    outputs: Mapping[str, Edit] = field(default_factory=dict)


Intervention = Callable[[Step], Step]
"""A function that is applied to every step of a run before it is taken."""


def nothing(step: Step) -> Step:
    """Return the step unchanged: the intervention that does nothing."""
    return step


@dataclass(frozen=True)
class Runs:
    """The prompts of a session in batches; `rows` are the indices of the prompts of each batch."""

    session: Session
    prompts: list[RecallPrompt]
    rows: list[list[int]]
    batches: list[Batch]

    @classmethod
    def of(cls, model: Model, prompts: Prompts, batch_size: int | None = None) -> Runs:
        """Cut prompts into batches of `batch_size`, by default of the size that is fastest."""
        session = Session.of(model)
        read = session.read(prompts)
        size, pad_id = batch_size or prompts_per_batch(read), pad_id_of(session.tokenizer)
        job = cut([*read], size, session.view.device, pad_id, False)
        return cls(session, read, job.rows, job.batches)

    @property
    def view(self) -> HookedView:
        return self.session.view

    @property
    def weights(self) -> Weights:
        return self.session.weights

    @contextmanager
    def still(self) -> Iterator[None]:
        """Turn off dropout, gradients and TF32 in this context."""
        with still(self.view.model), torch.no_grad():
            yield

    def embed(self, batch: Batch) -> tuple[Float[Tensor, "batch pos d_model"], list[BlockCall]]:
        """Return what enters block 0, and the calls of all blocks."""
        trace, calls = self.view.embed(self.weights, batch.ids, batch.mask)
        return trace.output, calls

    def traces(
        self,
        calls: Sequence[BlockCall],
        resid: Float[Tensor, "batch pos d_model"],
        intervention: Intervention = nothing,
        start: int = 0,
    ) -> Iterator[Trace]:
        """Run the blocks from `start` on in order, the first on `resid`, and yield their traces."""
        for layer in range(start, len(calls)):
            step = intervention(Step(layer, calls[layer], resid))
            with editing(self.view.block_sites[layer], step.inputs, step.outputs):
                trace = self.view.block(layer, self.weights, step.call, step.resid)
            yield trace
            resid = trace.output

    def leaving(
        self,
        calls: Sequence[BlockCall],
        resid: Float[Tensor, "batch pos d_model"],
        intervention: Intervention = nothing,
        start: int = 0,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return what leaves the last of these blocks, when block `start` runs on `resid`."""
        for trace in self.traces(calls, resid, intervention, start):
            resid = trace.output
        return resid

    def written_by(self, layer: int, part: Part) -> str:
        """Return the site whose output attention or MLP adds to the residual stream: its post-norm if there
        is one, its output projection otherwise."""
        post, projection = ("ln1_post", "attn.o") if part == "attention" else ("ln2_post", "mlp.out")
        return post if post in self.view.block_sites[layer] else projection

    def places(self, which: Which, *, may_be_empty: bool = False) -> list[list[int]]:
        """Return the positions of a group in each prompt."""
        return [positions(prompt, which, may_be_empty=may_be_empty) for prompt in self.prompts]

    def where(self, b: int, places: Places) -> Bool[Tensor, "batch pos"]:
        """Return which tokens of batch `b` are in the places of their prompt."""
        found = torch.zeros_like(self.batches[b].ids, dtype=torch.bool)
        for i, row in enumerate(self.rows[b]):
            found[i, list(places[row])] = True
        return found

    def coordinates(self) -> dict[str, Any]:
        """Return the coordinates that describe the prompts, for an xarray result."""
        return {
            "prompt": np.arange(len(self.prompts)),
            "text": ("prompt", [p.prompt.text for p in self.prompts]),
            "answer": ("prompt", [p.prompt.answer for p in self.prompts]),
            "subject": ("prompt", [p.prompt.subject or "" for p in self.prompts]),
            "template": ("prompt", [p.template for p in self.prompts]),
        }

    def attrs(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is needed to compute a result again: model, options and versions."""
        return {
            "method": method,
            "model": dict(self.session.described),
            "options": dict(options),
            "versions": versions(),
        }
