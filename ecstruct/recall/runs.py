"""Prompts that a session runs for recall: tokenised with the tokens of their subjects, a batch at a
time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from ecstruct.engine.forward import Embedded, embed
from ecstruct.engine.session import Model, Session
from ecstruct.errors import InputError
from ecstruct.facts.alignment import Span, subject_span
from ecstruct.facts.encoding import offsets
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch, TokenizedPrompt
from ecstruct.models.hooked import HookedView
from ecstruct.models.labels import labels_of
from ecstruct.models.provenance import versions
from ecstruct.recall.groups import RecallPrompt, Which, positions

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")
TokenKind = Literal["predicted", "answer"]

Prompts = PromptsLike | list[RecallPrompt]
"""Prompts as everywhere in ecstruct, or those that `read` returned."""

Places = Sequence[Sequence[int]]
"""Positions of each prompt."""


def read(session: Session, prompts: Prompts) -> list[RecallPrompt]:
    """Tokenise prompts with the model's own tokenizer, and find the tokens of their subjects. Prompts that
    were read already are returned as they are.

    Raises:
        InputError: a prompt that cannot be used, see `ecstruct.facts.tokens.tokenize`, or a classifier.
    """
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], RecallPrompt):
        return cast(list[RecallPrompt], prompts)
    if labels_of(session.tokenizer):
        raise InputError(
            "recall is of words that a language model predicts, and this is a classifier, which predicts "
            "labels: give the language model."
        )
    return with_subjects(session, session.tokenize(cast(PromptsLike, prompts), with_options=False))


def with_subjects(session: Session, found: Sequence[TokenizedPrompt]) -> list[RecallPrompt]:
    """Find the tokens of the subjects of prompts. A classifier's prompts have none."""
    # Slow tokenizers do not tell which characters belong to a token.
    if not session.tokenizer.is_fast or labels_of(session.tokenizer):
        return [RecallPrompt(**vars(t)) for t in found]
    characters = offsets([t.prompt for t in found], session.tokenizer)
    return [
        RecallPrompt(**vars(t), subject=_subject_of(t, spans[: len(t.ids)]))
        for t, spans in zip(found, characters, strict=True)
    ]


def _subject_of(read: TokenizedPrompt, characters: Sequence[Span]) -> Span | None:
    subject = read.prompt.subject
    return None if subject is None else subject_span(read.prompt.text, subject, characters)


@dataclass(frozen=True)
class Runs:
    """A session and the prompts that it runs."""

    session: Session
    prompts: list[RecallPrompt]

    @classmethod
    def of(cls, model: Model, prompts: Prompts) -> Runs:
        session = Session.of(model)
        return cls(session, read(session, prompts))

    @property
    def view(self) -> HookedView:
        return self.session.view

    def each(
        self, measure: Callable[[Run], object], name: str, progress: bool, size: int | None = None
    ) -> None:
        """Call `measure` on every batch of at most `size` prompts, under a bar of this name; see
        `Session.each_batch`."""
        with tqdm(total=len(self.prompts), desc=name, unit="prompt", disable=not progress) as bar:

            def run(rows: list[int], batch: Batch) -> None:
                measure(Run(self, rows, batch))
                bar.update(len(rows))

            self.session.each_batch(self.prompts, run, size)

    def written_by(self, layer: int, part: Part) -> str:
        """Return the site whose output attention or MLP adds to the residual stream: its post-norm if there
        is one, its output projection otherwise."""
        post, projection = ("ln1_post", "attn.o") if part == "attention" else ("ln2_post", "mlp.out")
        return post if post in self.view.block_sites[layer] else projection

    def places(self, which: Which, *, may_be_empty: bool = False) -> list[list[int]]:
        """Return the positions of a group of tokens, such as "subject", in each prompt; see
        `ecstruct.recall.groups.positions`."""
        return [positions(prompt, which, may_be_empty=may_be_empty) for prompt in self.prompts]

    def coordinates(self) -> dict[str, Any]:
        """Return the coordinates that describe the prompts, for an xarray result. `subject_at` is the
        position of the subject's first token, -1 if it is not known."""
        return {
            "prompt": np.arange(len(self.prompts)),
            "text": ("prompt", [p.prompt.text for p in self.prompts]),
            "answer": ("prompt", [p.prompt.answer for p in self.prompts]),
            "subject": ("prompt", [p.prompt.subject or "" for p in self.prompts]),
            "subject_at": ("prompt", [-1 if p.subject is None else p.subject[0] for p in self.prompts]),
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


@dataclass(frozen=True)
class Run:
    """A batch of the prompts of `runs`; `rows` are their indices."""

    runs: Runs
    rows: list[int]
    batch: Batch

    @property
    def session(self) -> Session:
        return self.runs.session

    def embed(self) -> Embedded:
        return embed(self.session, self.batch)

    def where(self, places: Places) -> Bool[Tensor, "batch pos"]:
        """Return which tokens are in the places of their prompt."""
        found = torch.zeros_like(self.batch.ids, dtype=torch.bool)
        for i, row in enumerate(self.rows):
            found[i, list(places[row])] = True
        return found
