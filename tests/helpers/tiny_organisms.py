"""Organisms that pretrain in a second, on so few sentences that they know nothing."""

import pytest

from ecstruct.organism import sentences

KEPT = 20
"""The number of sentences of each category."""


def few_sentences(patch: pytest.MonkeyPatch) -> None:
    """Let pretraining and the held-out accuracy see only a few sentences of each category."""

    def cut(made):
        return lambda *args: {name: some[:KEPT] for name, some in made(*args).items()}

    for name in ("training_sentences", "held_out_sentences"):
        patch.setattr(f"ecstruct.organism.training.{name}", cut(getattr(sentences, name)))
