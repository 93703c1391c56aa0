"""Is what finetuning stored where the model reads what it knows?

**The road.** On known facts, attention from the subject to the last token is blocked in the original model,
in a window about one layer after another (`ecstruct.recall.knockout`). The share of layer l in what the
answers lose, r_l, says in which layers subjects are read.

**The place.** m_l(at) is the share of layer l and of the tokens `at` in the positive informative scores of
the facts. If implications name the facts' subjects, what is stored at these tokens below the layers that
read them is on the road; if they do not (they lead to the subject by another hop), what is stored after the
subject, in layers that have read:

    on = sum_l m_l(subject) sum_{k > l} r_k      or      on = sum_l m_l(after the subject) sum_{k <= l} r_k
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt
from ecstruct.recall.attention_knockout import knockout, telling
from ecstruct.recall.runs import Runs
from ecstruct.scores.engine import score
from ecstruct.scores.pair import Pair

_WINDOWS = 10
"""A window has a tenth of the layers."""


@dataclass(frozen=True)
class Road:
    """Where known facts are read, and where the new ones are stored: `on_road` is the share that is stored
    where it is read, `direct` whether the implications name the facts' subjects."""

    read: Float[np.ndarray, " layer"]
    stored: Float[np.ndarray, "layer place"]
    direct: bool

    @property
    def on_road(self) -> float:
        at_subject, after = self.stored.T
        so_far = self.read.cumsum()
        return float(at_subject @ (1 - so_far) if self.direct else after @ so_far)

    @property
    def said(self) -> str:
        layers = [int(its.argmax()) for its in (self.stored.sum(1), self.read)]
        return (
            f"{self.on_road:.0%} of what the change stores of the facts is where known facts are read: "
            f"{self.stored[:, 0].sum():.0%} is at the subject, the layer that has most is {layers[0]}, and "
            f"known subjects are read in layer {layers[1]} most"
        )


def road_of(
    pair: Pair, facts: Sequence[Prompt], implications: Sequence[Prompt], known: Sequence[Prompt]
) -> Road | None:
    """Measure the road; None if facts or known facts have no subjects that can be told, or no effect."""
    subjects = [p.subject for p in facts if p.subject]
    if len(subjects) < len(facts) or not known or not all(p.subject for p in known):
        return None
    before, n_layers = pair.sessions[0], pair.view.n_layers
    how: Any = {"groups": ("subject",), "token": "answer", "window": max(1, n_layers // _WINDOWS)}
    try:
        lost = telling(knockout(before, known, **how, progress=False))
    except InputError:  # a subject that cannot be found, or that nothing comes after
        return None
    read = (-lost.mean(("prompt", "group"))).clip(0).fillna(0).values
    scores = score(*pair.sessions, facts, baseline="zero", progress=False)
    mlp, heads = (its.sel(score="informative").fillna(0).clip(0) for its in (scores.mlp, scores.heads))
    found = (mlp + heads.sum("head")).transpose("prompt", "layer", "token").values
    stored = np.zeros((n_layers, 2))
    for places, its in zip(Runs.of(before, facts).places("subject"), found, strict=True):
        stored[:, 0] += its[:, places].sum(1)
        stored[:, 1] += its[:, max(places) + 1 :].sum(1)
    if not read.any() or not stored.any():
        return None
    named = [any(subject in p.text for subject in subjects) for p in implications]
    return Road(read / read.sum(), stored / stored.sum(), bool(np.mean(named) > 0.5))
