"""What is analysed: a model that is hooked, checked and fingerprinted once, whatever is measured of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from ecstruct.engine.plan import each_batch, rows_at_once
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch, TokenizedPrompt, pad_id_of, tokenize
from ecstruct.models.bridge import still
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.finite import check_weights
from ecstruct.models.hooked import HookedView
from ecstruct.models.loading import load
from ecstruct.models.provenance import provenance, source_of, tokenizer_of
from ecstruct.models.sites import Weights


@dataclass(frozen=True, eq=False)
class Session:
    """A hooked model under one set of weights. Functions that take a `Model` accept a session in its place,
    so that several calls share the work of loading, hooking and fingerprinting it.

    `origin` says where the weights come from, with their fingerprint if it is known already.
    """

    view: HookedView
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    origin: Mapping[str, Any]

    @classmethod
    def of(cls, model: Model) -> Session:
        """Return the session of a model; load a source first, and return a session as it is.

        Raises:
            InputError: a model that cannot be loaded or hooked, or weights that are NaN or infinite.
        """
        if isinstance(model, Session):
            return model
        if isinstance(model, str | Path):
            model = load(model)
        view = HookedView(model)
        weights = view.weights()
        check_weights(source_of(model), weights)
        return cls(view, weights, tokenizer_of(model), provenance(model).described)

    @cached_property
    def described(self) -> Mapping[str, Any]:
        """The origin of the weights, with their fingerprint."""
        if "fingerprint" in self.origin:
            return self.origin
        return {**self.origin, "fingerprint": fingerprint(self.view.named_weights)}

    @property
    def pad_id(self) -> int:
        return pad_id_of(self.tokenizer)

    def tokenize(self, prompts: PromptsLike, *, with_options: bool = True) -> list[TokenizedPrompt]:
        """Tokenise prompts with the model's own tokenizer; see `ecstruct.facts.tokens.tokenize`."""
        n_ctx = self.view.model.cfg.n_ctx
        return tokenize(prompts, self.tokenizer, n_ctx=n_ctx, with_options=with_options)

    def each_batch(
        self,
        prompts: Sequence[TokenizedPrompt],
        run: Callable[[list[int], Batch], object],
        size: int | None = None,
    ) -> None:
        """Call `run` on the indices and the batch of at most `size` prompts at a time, without gradients.

        By default, `size` is as many as are efficient; see `ecstruct.engine.plan.each_batch`."""
        size = size or rows_at_once(self.view, max(len(p.ids) for p in prompts))
        with self.still():
            each_batch(prompts, size, self.view.device, self.pad_id, run)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Turn off dropout, gradients, TF32 and autocast in this context."""
        with still(self.view.model), torch.no_grad():
            yield


Model = TransformerBridge | Session | str | Path
"""A model from `ecstruct.load`, a source for it, or a session of a model."""
