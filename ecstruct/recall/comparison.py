"""How a model recalls facts, and whether finetuning changes that: before against after.

`dissect` runs every part of the method on one model, `compare` on two. Then `compare` asks whether
extractive scores agree with recall, in the model after finetuning:

* Are MLPs that are *informative* at the subject's tokens those that enrich the subject, by how much the
  attributes rate rises in their layer, or falls without them?
* Are heads that are *downstream* at the last token those whose weights map subjects to attributes, and are
  their layers those in which attention extracts the prediction?

Agreement is Spearman's rank correlation over layers or heads, with the share of random pairings that agree
at least as much. Few layers give little evidence: with six, a perfect order has one chance in 360.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ecstruct.cost import Bar
from ecstruct.engine.session import Model
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.io.distributed import Ranks
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.dissection import Dissection, Work
from ecstruct.recall.extraction_events import PLAIN
from ecstruct.recall.groups import positions
from ecstruct.recall.runs import TokenKind, read
from ecstruct.recall.vocabulary import Onto
from ecstruct.scores import ExtractiveScores, ScoreEngine
from ecstruct.scores.components import component_frame, component_names
from ecstruct.scores.pair import Pair
from ecstruct.scores.permutation import rank_correlation

PAIRINGS = 10_000


@dataclass(frozen=True)
class Comparison:
    """Two models on the same prompts, and their extractive scores."""

    before: Dissection
    after: Dissection
    scores: ExtractiveScores
    joined: Mapping[str, pd.DataFrame]
    """A frame per question with a row per layer or head: `x` from the scores, `y` from recall after
    finetuning, and the `name` and `layer` of the component."""

    def difference(self) -> dict[str, xr.DataArray | xr.Dataset]:
        """Return after minus before of every part, prompt by prompt. An event is 1 where it is new and -1
        where it is gone. The tokens that heads map to are those of after."""
        before = self.before.parts()
        return {name: _difference(part, before[name]) for name, part in self.after.parts().items()}

    def agreement(self) -> pd.DataFrame:
        """Return, for every question, Spearman's `rho` between scores and recall over layers or heads, the
        `chance` (the share of random pairings with at least the same |rho|), and their number `n`."""
        rows = []
        for question, frame in self.joined.items():
            known = frame.dropna()
            rho, chance = float("nan"), float("nan")
            if len(known) >= 3:  # two are always in order
                rho, chance = rank_correlation(
                    known["x"].to_numpy(), known["y"].to_numpy(), PAIRINGS, seed=0
                )
            # Rounded because a perfect order gives not quite 1; + 0.0 turns -0 into 0.
            row = {"question": question, "rho": round(rho, 12) + 0.0, "chance": chance, "n": len(known)}
            rows.append(row)
        return pd.DataFrame(rows)


def compare(
    before: Model,
    after: Model,
    prompts: PromptsLike,
    attributes: Attributes | None = None,
    *,
    window: int | None = None,
    token: TokenKind = "answer",
    onto: Onto = "unembedding",
    normed: bool = False,
    folder: Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Dissect two models on the same prompts, and compare the results with their extractive scores.

    The arguments are those of `dissect`. The scores are those of `ecstruct.score` with `baseline="mean"`,
    for the logit difference if all prompts have options and for the log-probability otherwise. By default,
    both models are asked for the answer. With `token="predicted"`, each is asked for its own prediction,
    and a difference may then be between two tokens.

    Raises:
        InputError: as `dissect` and `ecstruct.score`.
    """
    prompts = as_prompts(prompts)
    options = {"window": window, "token": token, "onto": onto, "normed": normed}
    pair = Pair.of(before, after)
    works = [
        Work(
            *(session, read(session, prompts), attributes, options),
            folder=folder and folder / state,
            name=f"{state} finetuning: ",
        )
        for session, state in zip(pair.sessions, ("before", "after"), strict=True)
    ]
    with Bar(sum(work.steps for work in works), "recall", unit="step", disable=not progress) as bar:
        of_after = works[1].run(bar, None)
        at_layer = None if of_after.sublayers is None else of_after.sublayers.attrs["options"]["at_layer"]
        of_before = works[0].run(bar, at_layer)
    reward = "logit_diff" if all(prompt.options for prompt in prompts) else "logprob"
    engine = ScoreEngine(pair, reward=reward, baseline="mean", progress=progress)
    scores = engine.score_across(prompts, Ranks(), folder and folder / "scores")
    assert scores is not None  # a single process is the first rank
    subjects = [positions(prompt, "subject") for prompt in works[0].prompts]
    return Comparison(of_before, of_after, scores, _joined(scores, of_after, subjects))


def _joined(
    scores: ExtractiveScores, found: Dissection, subjects: Sequence[Sequence[int]]
) -> dict[str, pd.DataFrame]:
    """Return a frame per question with the two quantities that it compares, `x` (a score, a mean over
    prompts) and `y` (a measure of recall), by layer or by head. `subjects` are the positions of the
    subject in each prompt."""
    informative = scores.mlp.sel(score="informative").values
    at_subject = np.array([of.T[its].sum(0) for of, its in zip(informative, subjects, strict=True)])
    last = xr.DataArray(scores.dataset["length"].values - 1, dims="prompt")
    downstream = scores.heads.sel(score="downstream").isel(token=last).mean("prompt")
    attention = 100 * found.extraction["attention"].sel(condition=PLAIN).mean("prompt")
    joined = {
        "downstream attention and extraction": _layers(downstream.sum("head").values, attention.values)
    }
    if found.rate is None or found.sublayers is None or found.heads is None:
        return joined
    rate = found.rate.sel(position="subject-last")
    # There is no rate of the embedding, so the rise in layer 0 is unknown.
    rise = np.append(np.nan, rate.diff("layer").mean("prompt").values)
    fall = -found.sublayers.sel(part="mlp").mean("prompt").values
    fall = np.append(fall, np.full(len(rise) - len(fall), np.nan))  # later layers cannot change the rate
    components = component_frame(downstream["layer"].values, downstream["head"].values)
    of_heads = components.loc[components["kind"] == "head"]
    heads = {
        "x": downstream.values.ravel(),
        "y": found.heads["share"].transpose("layer", "head").values.ravel(),
        "name": component_names(of_heads),
        "layer": of_heads["layer"].to_numpy(),
    }
    return {
        "informative MLPs and rising attributes": _layers(at_subject.mean(0), rise),
        "informative MLPs and attributes lost without them": _layers(at_subject.mean(0), fall),
        **joined,
        "downstream heads and heads that map to attributes": pd.DataFrame(heads),
    }


def _layers(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    layers = range(len(x))
    return pd.DataFrame({"x": x, "y": y, "name": [f"layer {n}" for n in layers], "layer": layers})


def _difference(after: Any, before: Any) -> Any:
    if isinstance(after, xr.DataArray):
        with xr.set_options(keep_attrs=False):
            # A coordinate that both have is not that of the difference.
            return (after - before).drop_vars("embedding", errors="ignore")
    numbers = [name for name, variable in after.data_vars.items() if variable.dtype.kind in "bif"]
    differences = {name: after[name].astype(float) - before[name].astype(float) for name in numbers}
    return after.assign(differences).assign_attrs(difference=[after.attrs, before.attrs])
