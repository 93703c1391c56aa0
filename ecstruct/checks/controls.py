"""Controls: which scores does a model have that has not learnt what the prompts ask for?

A score can be large for a reason that has nothing to do with the facts that were learnt. Each control takes
away one thing and keeps the others:

* **random change**: dW is replaced by Gaussian noise of the same norm in every tensor; the size of the
  change stays, what was learnt goes;
* **shuffled facts**: the model is finetuned on the same prompts with each other's answers; that it was
  finetuned stays, that the prompts' answers follow goes;
* **unrelated prompts**: the real change is scored on prompts about something else.

What a component has above all of them is due to the facts. The test is that of
`ecstruct.scores.permutation`; how much *finetunings* differ, it cannot tell: that takes several seeds.
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
from ecstruct.plots.bars import grouped_bars
from ecstruct.plots.style import reward_title
from ecstruct.scores.assemble import SCORES
from ecstruct.scores.components import PLURALS
from ecstruct.scores.engine import ScoreEngine, score
from ecstruct.scores.pair import ModelAfter, ModelBefore
from ecstruct.scores.permutation import above_control
from ecstruct.scores.result import ExtractiveScores

_RUNS = 6
"""What scoring a prompt costs, in runs forward or backward of the model on one."""

_NO_MATTER = ("facts", "evaluate", "progress", "checkpoint", "checkpoint_every")
"""Options of finetuning that decide about no number, or that are told apart by a checksum."""


@dataclass(frozen=True)
class Controls:
    """`scores` are those of the real change on the prompts; `controls` those of each control, by name."""

    scores: ExtractiveScores
    controls: Mapping[str, ExtractiveScores]

    @bounded
    def above(self, score: str, *, permutations: int = 10_000, seed: int = 0) -> pd.DataFrame:
        """One score of every component, tested against every control.

        The rows are those of `ecstruct.scores.permutation.above_control`, whose arguments these are, with a
        first column `against`: the name of the control whose mean is in the column `control`.
        """
        tested = {
            name: above_control(self.scores, control, score, permutations=permutations, seed=seed)
            for name, control in self.controls.items()
        }
        return pd.concat(tested, names=["against"]).reset_index("against").reset_index(drop=True)

    def totals(self) -> pd.DataFrame:
        """The positive scores of all components of a kind, summed: by (score, kind), a column for the
        finetuned model and for each control, in the unit of the reward. Negative ones are left out, as
        components that raise and that lower the reward would cancel."""
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
    """The scores of prompts, and those of up to three controls: "random change", always; "shuffled facts"
    and "unrelated prompts" when `facts` and `unrelated` are given.

    Args:
        before, after, prompts: as for `ecstruct.score`.
        facts: what `after` was finetuned on; `before` is finetuned on `facts.shuffled(seed)`.
        unrelated: prompts to which the facts are of no use, as those about other people.
        seed: of the noise and of the new answers.
        tune: options of `ecstruct.finetune`, those that `after` was finetuned with: `Finetuned.config`, or
            some of them.
        folder: where finished scores, and how far finetuning has come, are kept; what is there already is
            not computed again. Delete it when the result is safe.
        progress: show a progress bar.
        options: all further options are those of `ecstruct.score`.

    Raises:
        InputError: facts whose answers cannot be dealt out anew, options without facts or that `finetune`
            does not have, a folder with a part of another run, or with a function as the reward; and as
            `ecstruct.score` and `ecstruct.finetune`.
    """
    if tune is not None and facts is None:
        raise InputError("tune= is how to finetune on shuffled facts: give the facts as well, as facts=.")
    if unknown := [name for name in tune or () if name not in signature(finetune).parameters]:
        raise InputError(
            f"tune= has {unknown[0]!r}, which is no option of ecstruct.finetune: leave it out."
        )
    if unknown := [name for name in options if name not in signature(ScoreEngine).parameters]:
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
