"""Controls: which scores does a model get that has not learnt what the prompts ask for?

A score can be large for reasons unrelated to the facts that were learnt. Each control removes one reason
and keeps the others:

* **random change**: dW is replaced by Gaussian noise of the same norm in every tensor, which keeps the
  size of the change and removes what was learnt;
* **shuffled facts**: the model is finetuned on the same prompts with each other's answers, which keeps the
  finetuning, but the prompts' answers no longer follow from it;
* **unrelated prompts**: the real change is scored on prompts about something else;
* **preserved prompts**: the real change is scored on what the model knew before and should still know, such
  as facts about others: their reward, their ranks and their scores should not change;
* **steering**: a constant vector replaces the finetuning, see `ecstruct.checks.constant_steering`.

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

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from ecstruct.checks.constant_steering import Steering, check_steerable, steering_of
from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.finetuning import discard, finetune, finetune_across
from ecstruct.io.distributed import Ranks
from ecstruct.io.store import FinishedPieces, stepping
from ecstruct.io.values import bounded, check_numbers, checksum
from ecstruct.models.delta import WeightDelta
from ecstruct.options import ScoreOptions, types_of
from ecstruct.plots.bars import grouped_bars
from ecstruct.plots.style import reward_title
from ecstruct.scores.assemble import SCORES
from ecstruct.scores.components import PLURALS
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.pair import ModelAfter, ModelBefore
from ecstruct.scores.permutation import above_control
from ecstruct.scores.ranks import rankable, with_ranks
from ecstruct.scores.result import ExtractiveScores, component_totals

_RUNS = 8
"""The cost of scoring and ranking a prompt, in forward or backward passes of the model on it."""

PRESERVED, STEERING = "preserved prompts", "steering"

_NO_MATTER = ("facts", "evaluate", "progress", "checkpoint", "checkpoint_every")
"""Options of finetuning that do not affect results, or that a checksum identifies."""


@dataclass(frozen=True)
class Controls:
    """The `scores` of the real change on the prompts, those of each control, by name, and what a constant
    vector does in place of the change, if that was asked for. Scores have the coordinate `rank` (prompt,
    state) if their prompts have options."""

    scores: ExtractiveScores
    controls: Mapping[str, ExtractiveScores]
    steering: Steering | None = None

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

    def changes(self) -> pd.DataFrame:
        """Compare what changed: by name, the finetuned model, each control, and the constant vector at each
        position, after the layer where it regains most.

        Columns are the mean `reward` and `rank` before and after; the `share` that the change of the reward
        is of that of the finetuned model; and for each score its absolute value, the mean over prompts and
        components, in the unit of the reward. NaN stands for numbers that there are not.
        """
        measured = {"finetuned": self.scores, **self.controls}
        rows = {name: _changes(scores) for name, scores in measured.items()}
        if self.steering is not None:
            before = {name: rows["finetuned"][name] for name in ("reward before", "rank before")}
            for best in self.steering.best().to_dict("records"):
                after = {f"{name} after": best[name] for name in ("reward", "rank")}
                rows[f"steering, {best['position']}, layer {best['layer']}"] = before | after
        frame = pd.DataFrame.from_dict(rows, orient="index")
        change = frame["reward after"] - frame["reward before"]
        frame.insert(2, "share", change / (change["finetuned"] or np.nan))
        return frame

    def conclusion(self) -> str:
        """Say how far informative scores are above those of the controls, what became of the preserved
        prompts, and what a constant vector regains."""
        sums, changes = self.totals().loc["informative"].sum(), self.changes()
        largest = sums.drop("finetuned").idxmax()
        said = [
            f"Positive informative scores sum to {sums['finetuned']:.3g}, and to {sums[largest]:.3g} in "
            f"the largest control, {largest}."
        ]
        if PRESERVED in self.controls:
            row = changes.loc[PRESERVED].map("{:.3g}".format)
            asked = changes.loc["finetuned", "informative"]
            ranks = f" and their mean rank from {row['rank before']} to {row['rank after']}"
            said.append(
                f"Finetuning took the mean reward of the preserved prompts from {row['reward before']} to "
                f"{row['reward after']}{'' if row['rank after'] == 'nan' else ranks}; their mean absolute "
                f"informative score is {row['informative']}, that of the prompts {asked:.3g}."
            )
        if self.steering is not None:
            best = self.steering.best().sort_values("share", ascending=False).iloc[0]
            said.append(
                "Finetuning did not change the mean reward, so steering has nothing to regain."
                if np.isnan(best["share"])
                else f"A constant steering vector regains at most {best['share']:.0%} of the change of the "
                f"reward, at the position {best['position']!r} after layer {best['layer']}."
            )
        return " ".join(said)

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
    preserved: PromptsLike | None = None,
    steering: bool = False,
    seed: int = 0,
    tune: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Controls:
    """Score prompts, and up to four controls: always "random change"; "shuffled facts" if `facts` are
    given, "unrelated prompts" if `unrelated` and "preserved prompts" if `preserved` are given.

    Args:
        before, after, prompts: as for `ecstruct.score`.
        facts: what `after` was finetuned on; `before` is finetuned on `facts.shuffled(seed)`.
        unrelated: prompts for which the facts are irrelevant, such as prompts about other people.
        preserved: prompts that `before` answers and `after` still should, such as `FactSet.known`.
        steering: also run the prompts with a constant vector in place of the change, see
            `ecstruct.checks.constant_steering`; this takes about n_layers runs of the model.
        seed: the seed of the noise and of the shuffled answers.
        tune: the options of `ecstruct.finetune` that `after` was finetuned with: `Finetuned.config`, or
            some of it.
        folder: where finished scores and checkpoints of the finetuning are kept; what is found there is
            not computed again. Delete it once the result is safe.
        progress: show a progress bar.
        options: all further options are those of `ecstruct.score`.

    Raises:
        InputError: answers cannot be shuffled, `tune` is given without facts or has unknown options, a
            prompt has no other one to take its steering vector from, `offload` is combined with what needs
            a model in memory, or the folder holds parts of another run or is combined with a function as
            the reward; also as `ecstruct.score` and `ecstruct.finetune`.
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
    if steering and options.get("offload"):
        raise InputError("offload=True leaves no model to run with steering=True: leave out one of them.")
    check_numbers(tune or {}, "tune=")
    shuffled = None if facts is None else facts.shuffled(seed).facts
    prompts = as_prompts(prompts)  # they are read several times
    given = {"unrelated prompts": unrelated, PRESERVED: preserved}
    asked = {name: as_prompts(others) for name, others in given.items() if others is not None}
    if steering:
        check_steerable(prompts)

    options |= {"progress": False}
    engine = ScoreEngine(before, after, **options)
    if folder is not None:
        engine.reward.check_is_known_by_name()
    for others in asked.values():
        engine.pair.tokenize(others, engine.reward)  # so that bad prompts are refused before any work
    model = engine.pair.view.model
    original = before if options.get("offload") else model

    def of_random_change() -> xr.Dataset:
        sources = {state: str(source["source"]) for state, source in engine.pair.sources.items()}
        change = WeightDelta.from_weights(engine.pair.before, engine.pair.after, sources)
        return _measured(ScoreEngine(original, change.random_like(seed), **options), prompts)

    parts = {
        "finetuned": (partial(_measured, engine, prompts), _RUNS * len(prompts)),
        "random change": (of_random_change, _RUNS * len(prompts)),
    }
    how = {**(tune or {}), "facts": shuffled, "evaluate": None, "progress": False}
    if folder is not None:
        how["checkpoint"] = folder / "finetuning"
    if shuffled is not None:

        def of_shuffled_facts() -> xr.Dataset:
            tuned = finetune_across(Ranks(), model, **how)
            assert tuned is not None  # a process on its own is the first rank
            return _measured(ScoreEngine(model, tuned.model, **options), prompts)

        epochs = how.get("epochs", signature(finetune).parameters["epochs"].default)
        parts["shuffled facts"] = of_shuffled_facts, _RUNS * len(prompts) + 2 * epochs * len(shuffled)
    for name, others in asked.items():
        parts[name] = partial(_measured, engine, others), _RUNS * len(others)
    if steering:
        runs = engine.pair.view.n_layers * len(prompts)
        parts[STEERING] = partial(steering_of, engine.pair, prompts, engine.reward), runs

    identity = {
        **engine.identity(prompts),
        "seed": str(seed),
        "the shuffled facts": checksum(shuffled),
        **{f"the {name}": checksum(asked.get(name)) for name in given},
        **{f"the {name} of finetuning": str(how[name]) for name in how if name not in _NO_MATTER},
    }
    found, total = {}, sum(runs for _, runs in parts.values())
    with stepping(progress, total, "controls", FinishedPieces(folder, identity)) as steps:
        for name, (measure, runs) in parts.items():
            steps.bar.phase(f"running: {name}" if name == STEERING else f"scoring: {name}")
            found[name] = steps.take(name, measure, runs)
    if shuffled is not None and how.get("checkpoint") is not None:
        discard(how["checkpoint"])
    steered = found.pop(STEERING, None)
    scores = {name: ExtractiveScores(dataset) for name, dataset in found.items()}
    finetuned = scores.pop("finetuned")
    return Controls(finetuned, scores, None if steered is None else Steering(steered, finetuned.reward))


def _measured(engine: ScoreEngine, prompts: PromptsLike) -> xr.Dataset:
    """Return the scores and ranks of prompts."""
    tokenized = rankable(engine.pair, prompts)
    return with_ranks(engine.score(prompts), engine.pair, tokenized, engine.options.batch_size).dataset


def _changes(scores: ExtractiveScores) -> dict[str, float]:
    """Return the mean reward and rank before and after, and the mean absolute scores."""
    found = {}
    for name, of in (("reward", scores.reward), ("rank", scores.dataset.get("rank"))):
        for state in ("before", "after"):
            found[f"{name} {state}"] = np.nan if of is None else float(of.sel(state=state).mean())
    return found | {score: float(np.nanmean(np.abs(component_totals(scores, score)))) for score in SCORES}
