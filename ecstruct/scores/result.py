"""The scores of every component, with everything needed to interpret them later.

There is one labelled array per kind of component. Each number says how much finetuning made a component
raise the reward of a prompt, in the unit of the reward (logits for "logit_diff", nats for "logprob"):
**positive raises the reward**, in all three scores.

* informative: the component's own weights changed; they store the fact;
* upstream: its unchanged output is used by later weights that changed;
* downstream: its unchanged weights decode an input that changed.

Summed over tokens, a component's informative scores are its share of the first-order change of
the reward; with `rest` (all weights outside MLPs and heads) they sum to that change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from jaxtyping import Float64

from ecstruct.bootstrap import Bootstrap
from ecstruct.errors import InputError
from ecstruct.io.saved import SavedDataset
from ecstruct.io.values import bounded
from ecstruct.plots.scores import head_map, heatmap
from ecstruct.scores.aggregate import aggregate_dataset, prompt_slots
from ecstruct.scores.assemble import require_same_labels
from ecstruct.scores.components import both_kinds, component_frame
from ecstruct.scores.projections import Projections
from ecstruct.scores.slots import SlotScores
from ecstruct.scores.summary import agree, summary_html

_DIMS = {"mlp": ("score", "prompt", "layer"), "heads": ("score", "prompt", "layer", "head")}


@dataclass(frozen=True, eq=False)
class ExtractiveScores(SavedDataset):
    """The scores of every MLP and attention head on every prompt; `ecstruct.score` returns one.

    It wraps one `xarray.Dataset`, accessible as `.dataset`. Its variables are the properties below;
    its coordinates name scores, layers, heads and states ("before", "after" finetuning), and give
    each prompt's `text`, `answer`, `template`, `length`, entity span (`entity_start`,
    `entity_end`) and `token_text`. Positions past a prompt's end are NaN.
    """

    format = "ecstruct scores 1"
    contents = "scores"

    def __post_init__(self) -> None:
        for name, dims in _DIMS.items():
            if name not in self.dataset.data_vars:
                raise InputError(f"this is no dataset of scores: it has no variable {name!r}")
            if missing := [dim for dim in dims if dim not in self.dataset[name].dims]:
                raise InputError(f"this is no dataset of scores: {name!r} has no dimension {missing[0]!r}")

    @property
    def mlp(self) -> xr.DataArray:
        """Scores of the MLPs (score, prompt, layer, token)."""
        return self.dataset["mlp"]

    @property
    def heads(self) -> xr.DataArray:
        """Scores of the attention heads (score, prompt, layer, head, token)."""
        return self.dataset["heads"]

    @property
    def rest(self) -> xr.DataArray:
        """Informative scores of the weights outside MLPs and heads (prompt, group)."""
        return self._variable("rest")

    @property
    def reward(self) -> xr.DataArray:
        """The reward under both states (prompt, state)."""
        return self._variable("reward")

    @property
    def completeness(self) -> xr.DataArray:
        """The error of the informative scores as shares of the change of the reward (prompt): the sum of
        all of them and of `rest`, minus R(W') - R(W). With more `path_steps` it goes to 0."""
        rest = self.rest.astype("float64").sum("group")
        informative = self.dataset[["mlp", "heads"]].sel(score="informative").astype("float64")
        summed = sum(
            part.sum([dim for dim in part.dims if dim != "prompt"]) for part in informative.values()
        )
        change = self.reward.sel(state="after") - self.reward.sel(state="before")
        left = summed + rest - change.astype("float64")
        return left.drop_vars(["score", "state"], errors="ignore").rename("completeness")

    @property
    def projections(self) -> Projections:
        """Informative scores by projection.

        Raises:
            InputError: these scores were computed without `projections=True`.
        """
        return Projections.of(self.dataset)

    @property
    def attribution(self) -> xr.Dataset:
        """Grad-CAM attributions g . (y - y*) under both states: `mlp` (state, prompt, layer, token) and
        `heads` (state, prompt, layer, head, token). Under W' they need a backward pass that only
        `upstream="surrogate"` makes, and are NaN otherwise. With `propagation="gradient"` too, their change
        from "before" to "after" is the sum of the three scores, to first order."""
        return xr.Dataset(
            {
                "mlp": self._variable("attribution_mlp"),
                "heads": self._variable("attribution_heads"),
            }
        )

    @property
    def interventions(self) -> ExtractiveScores | None:
        """The causal scores of the components that were verified, NaN for the others: `mlp` (score, prompt,
        layer) and `heads` (score, prompt, layer, head); `None` if no component was verified."""
        if "causal_mlp" not in self.dataset:
            return None
        causal = self.dataset[["causal_mlp", "causal_heads"]]
        return ExtractiveScores(causal.rename(causal_mlp="mlp", causal_heads="heads"))

    def verified(self, causal: ExtractiveScores) -> ExtractiveScores:
        """Return these scores together with causal scores of some or all of the components.

        `components` and `top`, tables, reports and the texts of figures then show both numbers.

        Raises:
            InputError: the causal scores have other prompts or components.
        """
        require_same_labels(self.dataset, causal.dataset, ("layer", "head", "text", "answer"))
        added = {}
        for name in ("mlp", "heads"):
            values = causal.dataset[name].reindex(score=self.dataset["score"].values)
            summed = values.sum("token", min_count=1) if "token" in values.dims else values
            added[f"causal_{name}"] = (summed.dims, summed.values)
        return ExtractiveScores(self.dataset.assign(added))

    def _variable(self, name: str) -> xr.DataArray:
        if name not in self.dataset.data_vars:
            raise InputError(f"these scores were computed without {name!r}")
        return self.dataset[name]

    @bounded
    def aggregate(
        self,
        fold: bool = False,
        like: Literal["reference"] | None = None,
        template: str | None = None,
        *,
        ci: float | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> SlotScores:
        """Average a template's prompts at each of its slots.

        Slots are the prefix tokens, the last two entity tokens ("X", "Y") and the suffix tokens.
        A one-token entity fills "Y" and leaves "X" out; `count` says how many prompts are behind
        each slot. Tokens of the answer are in no slot.

        Args:
            fold: Add the entity's surplus leading tokens to "X", which keeps the sums over
                tokens, instead of dropping them.
            like: "reference" follows the published code: a one-token entity fills "X" and "Y",
                surplus tokens are dropped.
            template: The template whose prompts to average; None if there is only one.
            ci: The level of intervals about the means, such as 0.95; they become the result's `low` and
                `high`, and `ecstruct.bootstrap` says what they mean. None for no intervals.
            resamples: How often the bootstrap draws prompts for the intervals.
            seed: The same seed gives the same intervals.

        Raises:
            InputError: there are several templates and `template` is None, the template is unknown,
                prompts do not line up, or scores have no tokens; with `ci`, also for a level outside of
                (0, 1) or a single prompt.
        """
        return aggregate_dataset(
            self.dataset, fold=fold, like=like, template=template, ci=ci, resamples=resamples, seed=seed
        )

    def slots(self, prompt: int | None = None, template: str | None = None) -> SlotScores:
        """Return what figures show: one prompt's scores by its tokens, counted from 0, or the means of a
        template's prompts. Of scores on a single prompt, that one is shown."""
        if prompt is None and self.dataset.sizes["prompt"] == 1:
            prompt = 0
        if prompt is None:
            return self.aggregate(template=template)
        if template is not None:
            raise InputError("prompt= is one prompt; leave template= out")
        return prompt_slots(self.dataset, prompt)

    def top(self, n: int, score: str, kind: Literal["mlp", "head"] | None = None) -> pd.DataFrame:
        """Return the `n` components that raise the reward most by one score, the largest first.

        Columns: `kind` ("mlp" or "head"), `layer`, `head` (missing for an MLP) and `value`: the
        mean over prompts of the sum over tokens, in the unit of the reward. If components were verified,
        also `causal`, the mean over prompts of the causal score, and `agrees`: whether that has the sign
        of `value` and at least a tenth of its size; both are missing for components not verified.
        """
        if kind not in (None, "mlp", "head"):
            raise InputError(f"kind={kind!r} is unknown; it is 'mlp', 'head' or None for both")
        if n < 1:
            raise InputError(f"n={n} components cannot be listed; give 1 or more")
        frame = self.components(score).sort_values("value", ascending=False, kind="stable")
        shown = frame["value"].notna() & (True if kind is None else frame["kind"] == kind)
        return frame.loc[shown].head(n).reset_index(drop=True)

    @bounded
    def components(
        self, score: str, *, ci: float | None = None, resamples: int = 1000, seed: int = 0
    ) -> pd.DataFrame:
        """Return all components with one score, MLPs first, layer by layer; columns as in `top`.

        With `ci`, such as 0.95, there are also `low` and `high`, the interval about `value`; the arguments
        are those of `aggregate`, but the bootstrap draws from all prompts, whatever their template.
        """
        totals = component_totals(self, score)
        frame = component_frame(self.dataset["layer"].values, self.dataset["head"].values)
        frame = frame.assign(value=totals.mean(axis=0))
        if self.interventions:
            frame["causal"] = component_totals(self.interventions, score).mean(axis=0)
            agrees = [*map(agree, frame["value"], frame["causal"])]
            frame["agrees"] = pd.array(agrees, "boolean")
            frame["agrees"] = frame["agrees"].mask(frame["causal"].isna())
        if ci is not None:
            bootstrap = Bootstrap(len(totals), ci=ci, resamples=resamples, seed=seed)
            frame["low"], frame["high"] = bootstrap.interval(totals)
        return frame

    def check_of(self, n_layers: int, n_heads: int) -> None:
        """Raise `InputError` if these are not the scores of a model of this size."""
        sizes = self.heads.sizes
        if (sizes["layer"], sizes["head"]) != (n_layers, n_heads):
            raise InputError(
                f"the scores are of {sizes['layer']} layers of {sizes['head']} heads, but this model has "
                f"{n_layers} of {n_heads}: give scores of the same model."
            )

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per score, prompt, component and token of the prompt, with the token's text."""
        frame = both_kinds(
            self.mlp.rename("value").to_dataframe().reset_index(),
            self.heads.rename("value").to_dataframe().reset_index(),
        )
        columns = ["score", "prompt", "text", "answer", "template", "kind", "layer", "head"]
        if "token" in frame:
            frame = frame.loc[frame["token"] < frame["length"]]
            columns += ["token", "token_text"]
        return frame.reindex(columns=[*columns, "value"]).reset_index(drop=True)

    def heatmap(self, **options: Any) -> go.Figure:
        """Plot layer by token, one row per score; see `ecstruct.plots.heatmap`."""
        return heatmap(self, **options)

    def head_map(self, slot: int | str = -1, **options: Any) -> go.Figure:
        """Plot layer by head at one token; see `ecstruct.plots.head_map`."""
        return head_map(self, slot, **options)

    def mean(self, *others: ExtractiveScores) -> ExtractiveScores:
        """Average these and other scores, for example over seeds: `a.mean(b)`.

        Raises:
            InputError: they are not of the same components and prompts.
        """
        return self._combine("mean", others, lambda values: np.add.reduce(values) / len(values))

    def __sub__(self, other: ExtractiveScores) -> ExtractiveScores:
        if not isinstance(other, ExtractiveScores):
            return NotImplemented
        return self._combine("difference", (other,), lambda values: values[0] - values[1])

    def _combine(
        self,
        how: str,
        others: tuple[ExtractiveScores, ...],
        combine: Callable[[list[np.ndarray]], np.ndarray],
    ) -> ExtractiveScores:
        for other in others:
            if different := set(self.dataset.data_vars) ^ set(other.dataset.data_vars):
                raise InputError(f"only one of the two scores has {sorted(map(str, different))[0]!r}")
            require_same_labels(self.dataset, other.dataset)
        datasets = [self.dataset, *(other.dataset for other in others)]
        combined = self.dataset.copy()
        for name in self.dataset.data_vars:
            aligned = [dataset[name].transpose(*self.dataset[name].dims) for dataset in datasets]
            values = combine([variable.values for variable in aligned])
            combined[name] = self.dataset[name].copy(data=values)
        combined.attrs = {how: [copy.deepcopy(dataset.attrs) for dataset in datasets]}
        return ExtractiveScores(combined)

    def __repr__(self) -> str:
        sizes = self.heads.sizes
        scores = ", ".join(str(name) for name in self.dataset["score"].values)
        return (
            f"<ExtractiveScores ({scores}) of {sizes['layer']} MLPs and {sizes['layer']} x "
            f"{sizes['head']} heads on {sizes['prompt']} prompts>"
        )

    def _repr_html_(self) -> str:
        return summary_html(self.dataset, repr(self)[1:-1], self.top)


def component_totals(scores: ExtractiveScores, score: str) -> Float64[np.ndarray, "prompt component"]:
    """Return one score summed over tokens, with components ordered as in `ExtractiveScores.components`."""
    known = [str(name) for name in scores.dataset["score"].values]
    if score not in known:
        raise InputError(f"score={score!r} is not among these scores; they have {known}")
    totals = []
    for values in (scores.mlp, scores.heads):
        values = values.sel(score=score).astype("float64")
        if "token" in values.dims:
            values = values.sum("token", min_count=1)  # positions past a prompt's end are NaN
        ordered = values.transpose("prompt", "layer", "head", missing_dims="ignore").values
        totals.append(ordered.reshape(len(ordered), -1))
    return np.concatenate(totals, axis=1)
