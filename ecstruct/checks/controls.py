"""Controls: which scores does a model get that has not learnt what the prompts ask for?

A score can be large for reasons unrelated to the facts that were learnt. Each control removes one reason
and keeps the others:

* **random change**: dW is replaced by Gaussian noise of the same norm in every tensor, which keeps the
  size of the change and removes what was learnt;
* **shuffled facts**: the model is finetuned on the same prompts with each other's answers, which keeps the
  finetuning, but the prompts' answers no longer follow from it;
* **unrelated prompts**: the real change is scored on prompts about something else.

The part of a score that exceeds all controls is due to the facts. The test is that of
`ecstruct.scores.permutation`; it does not cover variation between *finetunings*, which takes several seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import xxhash

from ecstruct.cost import Bar
from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.finetuning import discard, finetune, finetune_across
from ecstruct.io.distributed import Ranks
from ecstruct.io.store import Kept, Steps
from ecstruct.io.values import bounded, check_numbers
from ecstruct.models.delta import WeightDelta
from ecstruct.options import ScoreOptions, types_of
from ecstruct.plots.bars import grouped_bars
from ecstruct.plots.style import reward_title
from ecstruct.scores.assemble import SCORES
from ecstruct.scores.components import PLURALS
from ecstruct.scores.engine import ScoreEngine, score
from ecstruct.scores.pair import ModelAfter, ModelBefore
from ecstruct.scores.permutation import above_control
from ecstruct.scores.result import ExtractiveScores

_RUNS = 6
"""The cost of scoring a prompt, in forward or backward passes of the model on it."""

_NO_MATTER = ("facts", "evaluate", "progress", "checkpoint", "checkpoint_every")
"""Options of finetuning that do not affect results, or that a checksum identifies."""


@dataclass(frozen=True)
class Controls:
    """The `scores` of the real change on the prompts, and those of each control, by name."""

    scores: ExtractiveScores
    controls: Mapping[str, ExtractiveScores]

    @bounded
    def above(self, score: str, *, permutations: int = 10_000, seed: int = 0) -> pd.DataFrame:
        """Test one score of every component against every control.

        Arguments and rows are those of `ecstruct.scores.permutation.above_control`, with an additional
        first column `against`: the name of the control whose mean is in the column `control`.
        """
        tested = {
            name: above_control(self.scores, control, score, permutations=permutations, seed=seed)
            for name, control in self.controls.items()
        }
        return pd.concat(tested, names=["against"]).reset_index("against").reset_index(drop=True)

    def totals(self) -> pd.DataFrame:
        """Sum the positive scores of all components of a kind: by (score, kind), with a column for the
        finetuned model and for each control, in the unit of the reward. Negative scores are left out, as
        they would cancel positive ones."""
        return pd.DataFrame(
            {
                name: {
                    (score, shown): frame.loc[frame["kind"] == kind, "value"].clip(lower=0).sum()
                    for score in SCORES
                    for frame in [scores.components(score)]
                    for kind, shown in PLURALS.items()
                }
                for name, scores in {"finetuned": self.scores, **self.controls}.items()
            }
        ).rename_axis(["score", "kind"])

    @property
    def figure(self) -> go.Figure:
        """The totals as bars."""
        totals = self.totals()
        return grouped_bars(
            {
                f"{score}, {kind}": {name: [value] for name, value in row.items()}
                for (score, kind), row in zip(totals.index, totals.to_dict("records"), strict=True)
            },
            y=f"sum of positive scores: {reward_title(self.scores.attrs)}",
        )


@bounded
def controls(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    *,
    facts: FactSet | None = None,
    unrelated: PromptsLike | None = None,
    seed: int = 0,
    tune: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Controls:
    """Score prompts, and up to three controls: always "random change"; "shuffled facts" if `facts` are
    given, "unrelated prompts" if `unrelated` are given.

    Args:
        before, after, prompts: as for `ecstruct.score`.
        facts: what `after` was finetuned on; `before` is finetuned on `facts.shuffled(seed)`.
        unrelated: prompts for which the facts are irrelevant, such as prompts about other people.
        seed: the seed of the noise and of the shuffled answers.
        tune: the options of `ecstruct.finetune` that `after` was finetuned with: `Finetuned.config`, or
            some of it.
        folder: where finished scores and checkpoints of the finetuning are kept; what is found there is
            not computed again. Delete it once the result is safe.
        progress: show a progress bar.
        options: all further options are those of `ecstruct.score`.

    Raises:
        InputError: answers cannot be shuffled, `tune` is given without facts or has unknown options, or the
            folder holds parts of another run or is combined with a function as the reward; also as
            `ecstruct.score` and `ecstruct.finetune`.
    """
    if tune is not None and facts is None:
        raise InputError("tune= is how to finetune on shuffled facts: give the facts as well, as facts=.")
    if unknown := [name for name in tune or () if name not in signature(finetune).parameters]:
        raise InputError(
            f"tune= has {unknown[0]!r}, which is no option of ecstruct.finetune: leave it out."
        )
    if unknown := [name for name in options if name not in {*types_of(ScoreOptions), "device"}]:
        where = (
            f"put it into tune={{{unknown[0]!r}: ...}}"
            if unknown[0] in signature(finetune).parameters
            else ("leave it out")
        )
        raise InputError(f"{unknown[0]} is no option of ecstruct.score: {where}.")
    if facts is not None and options.get("offload"):
        raise InputError("offload=True leaves no model to finetune on facts=: leave out one of them.")
    check_numbers(tune or {}, "tune=")
    shuffled = None if facts is None else facts.shuffled(seed).facts
    prompts = as_prompts(prompts)  # they are read several times
    unrelated = None if unrelated is None else as_prompts(unrelated)

    options |= {"progress": False}
    engine = ScoreEngine(before, after, **options)
    if folder is not None:
        engine.reward.check_is_known_by_name()
    model = engine.pair.view.model
    original = before if options.get("offload") else model

    def of_random_change() -> ExtractiveScores:
        sources = {state: str(source["source"]) for state, source in engine.pair.sources.items()}
        change = WeightDelta.from_weights(engine.pair.before, engine.pair.after, sources)
        return score(original, change.random_like(seed), prompts, **options)

    parts = {
        "finetuned": (partial(engine.score, prompts), _RUNS * len(prompts)),
        "random change": (of_random_change, _RUNS * len(prompts)),
    }
    how = {**(tune or {}), "facts": shuffled, "evaluate": None, "progress": False}
    if folder is not None:
        how["checkpoint"] = folder / "finetuning"
    if shuffled is not None:

        def of_shuffled_facts() -> ExtractiveScores:
            tuned = finetune_across(Ranks(), model, **how)
            assert tuned is not None  # a process on its own is the first rank
            return score(model, tuned.model, prompts, **options)

        epochs = how.get("epochs", signature(finetune).parameters["epochs"].default)
        parts["shuffled facts"] = of_shuffled_facts, _RUNS * len(prompts) + 2 * epochs * len(shuffled)
    if unrelated is not None:
        parts["unrelated prompts"] = partial(engine.score, unrelated), _RUNS * len(unrelated)

    identity = {
        **engine.identity(prompts),
        "seed": str(seed),
        "the shuffled facts": xxhash.xxh3_64_hexdigest(repr(shuffled).encode()),
        "the unrelated prompts": xxhash.xxh3_64_hexdigest(repr(unrelated).encode()),
        **{f"the {name} of finetuning": str(how[name]) for name in how if name not in _NO_MATTER},
    }
    found = {}
    total = sum(runs for _, runs in parts.values())
    with Bar(total, "controls", unit="run", disable=not progress) as bar:
        steps = Steps(bar, Kept(folder, identity))
        for name, (measure, runs) in parts.items():
            bar.phase(f"scoring: {name}")
            found[name] = ExtractiveScores(steps.take(name, lambda of=measure: of().dataset, runs))
    if shuffled is not None and how.get("checkpoint") is not None:
        discard(how["checkpoint"])
    return Controls(found.pop("finetuned"), found)
