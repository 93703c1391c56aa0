"""Grafts of sets of weights at positions: where does which change of the weights have its effect?

The model runs with the weights W, but for a set S of components or projections and a group P of positions,
where it has W' (or, as the `complement`, the other way round). With the reward R of the grafted run,

    share = (R - R_before) / (R_after - R_before)

of means over prompts says how much of what finetuning did comes from S at P: 0 for nothing, 1 for all.

Two controls say which share is due to the facts. Random sets have as many MLPs and heads as S. A model that
was finetuned on something else, such as the same facts with shuffled answers, has its weights grafted in
the place of W'; R_after stays that of W', so that the share is 0 if that does nothing for the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from jaxtyping import Float
from tqdm.auto import tqdm

from ecstruct.bootstrap import Bootstrap
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.grafting.grafted_runs import Graft
from ecstruct.grafting.measured import MEASURES, STATES, GraftRuns
from ecstruct.grafting.weight_sets import Named, WeightSet, check_projections, named
from ecstruct.io.saved import SavedDataset
from ecstruct.io.values import bounded
from ecstruct.models.sites import WholeMLP
from ecstruct.plots.grids import value_grids
from ecstruct.recall.groups import Groups, as_json
from ecstruct.recall.groups import named as named_groups
from ecstruct.recall.runs import Runs, with_subjects
from ecstruct.scores.components import component_names
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import RewardLike

Sets = Named | Sequence[str] | Mapping[str, Named]
"""A set of weights by its names, several (a list, one set a string), or a mapping from labels to sets."""


@dataclass(frozen=True, eq=False)
class Grafted(SavedDataset):
    """What the model does with sets of weights grafted at positions; `ecstruct.graft` returns one.

    It wraps one `xarray.Dataset`, accessible as `.dataset`: `grafted` (measure, set, position, prompt) has
    the reward, the rank of the answer among its options (0 is best) and the probability of its first token;
    `ends` (measure, state, prompt) the same before and after finetuning; `random` (measure, seed, set,
    position, prompt) the same with random sets of as many MLPs and heads; `control` (measure, set,
    position, prompt) the same with the weights of another finetuning. `mlps` and `heads` count the
    components of each set.
    """

    format = "ecstruct grafted 1"
    contents = "grafts"

    def mean(self, measure: str = "reward") -> xr.DataArray:
        """Return the mean over prompts (set, position) of a measure."""
        return self.dataset["grafted"].sel(measure=measure).mean("prompt")

    def share(self, measure: str = "reward") -> xr.DataArray:
        """Return the share of the change from before to after finetuning (set, position)."""
        return self._share(self.dataset["grafted"], measure)

    def random_share(self, measure: str = "reward") -> xr.DataArray:
        """Return the same share of random sets (seed, set, position)."""
        return self._share(self.dataset["random"], measure)

    def control_share(self, measure: str = "reward") -> xr.DataArray:
        """Return the same share with the weights of the control (set, position)."""
        return self._share(self.dataset["control"], measure)

    @bounded
    def interval(
        self, measure: str = "reward", *, ci: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> xr.DataArray:
        """Return the ends (end, set, position) of the interval of the share over draws of prompts; see
        `ecstruct.bootstrap`.

        Raises:
            InputError: `ci` is no share, there are no draws, or there is a single prompt.
        """
        weights = Bootstrap(self.dataset.sizes["prompt"], ci=ci, resamples=resamples, seed=seed).weights
        draws = xr.DataArray(weights / weights.sum(1, keepdims=True), dims=("draw", "prompt"))
        shares = self._share(self.dataset["grafted"], measure, draws)
        ends = shares.quantile([(1 - ci) / 2, (1 + ci) / 2], "draw")
        return ends.rename(quantile="end").assign_coords(end=["low", "high"])

    def table(self, *, ci: float = 0.95) -> pd.DataFrame:
        """Return a row per set and position: how many components the set has, the means of the measures,
        the share of the reward's change with its interval over prompts; if sets were drawn, the mean share
        of random sets of the same kinds, with their range; and, if there is one, that of the control."""
        dataset = self.dataset
        columns = {"MLPs": dataset["mlps"], "heads": dataset["heads"]}
        columns |= {measure: self.mean(measure) for measure in MEASURES} | {"share": self.share()}
        if dataset.sizes["prompt"] > 1:
            ends = self.interval(ci=ci)
            columns |= {end: ends.sel(end=end) for end in ("low", "high")}
        if "random" in dataset:
            drawn = self.random_share()
            columns |= {"random": drawn.mean("seed"), "least": drawn.min("seed"), "most": drawn.max("seed")}
        if "control" in dataset:
            columns["control"] = self.control_share()
        table = xr.Dataset({name: its.reset_coords(drop=True) for name, its in columns.items()})
        return table.to_dataframe(["set", "position"]).reset_index()

    @property
    def figure(self) -> go.Figure:
        """Draw the share of the reward's change as a table of sets by positions, and those of random sets
        and of the control beside it."""
        panels = {"the sets": self.share()}
        if "random" in self.dataset:
            panels["random sets of the same kinds"] = self.random_share().mean("seed")
        if "control" in self.dataset:
            panels["the control"] = self.control_share()
        frames: dict[str, Any] = {
            title: its.transpose("set", "position").to_pandas() for title, its in panels.items()
        }
        return value_grids(frames, x="positions", y="set of weights", value="share of the change of reward")

    def conclusion(self) -> str:
        """Say what share of the change of reward every set has at every group of positions."""
        (start, end), share = self.dataset["ends"].sel(measure="reward").mean("prompt").values, self.share()
        how = "except" if self.attrs["options"]["complement"] else "only"
        sentences = [
            f"Finetuning takes the reward from {start:.2f} to {end:.2f}. Shares of that with the finetuned "
            f"weights {how}:"
        ]
        for name in share["set"].values:
            of_set = share.sel(set=name)
            listed = [f"{float(of_set.sel(position=p)):.2f} at {p}" for p in share["position"].values]
            sentences.append(f"{name}: {', '.join(listed)}.")
        return " ".join(sentences)

    def _share(self, values: xr.DataArray, measure: str, draws: xr.DataArray | None = None) -> xr.DataArray:
        """Return the share of the change, of means over prompts or over `draws` of them."""
        n = self.dataset.sizes["prompt"]
        weights = xr.DataArray(np.full(n, 1 / n), dims="prompt") if draws is None else draws
        mean, ends = ((its.sel(measure=measure) @ weights) for its in (values, self.dataset["ends"]))
        start, end = (ends.sel(state=state, drop=True) for state in STATES)
        return ((mean - start) / (end - start)).drop_vars("measure")


@bounded
def graft(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    components: Sets = None,
    *,
    positions: Groups = "all",
    projections: Sequence[str] | None = None,
    complement: bool = False,
    scores: ExtractiveScores | None = None,
    random_seeds: int = 0,
    control: ModelAfter | None = None,
    reward: RewardLike = "logit_diff",
    progress: bool = True,
) -> Grafted:
    """Run prompts with the finetuned weights in sets of components, at chosen positions only.

    Args:
        before, after: as for `ecstruct.score`. Neither is changed.
        prompts: the prompts, as for `ecstruct.score`; with their subject, for positions that are named
            after it.
        components: the sets, each on its own: names as in `ecstruct.grafting.weight_sets.named` ("mlps",
            "heads 20-29", "mlp 4 + head 5.2", "informative top 8"), or a mapping from labels to such names,
            lists of them or frames of components. All components by default.
        positions: groups of positions, each on its own, as for `ecstruct.recall.knockout`.
        projections: only these projections of the components: "q", "k", "v", "o", "in", "gate", "out" and
            "norm". A key or value has new weights at the token that is attended to.
        complement: everything but the set at the positions has the finetuned weights, those that belong to
            no component too.
        scores: scores of these models, for sets such as "informative top 8".
        random_seeds: how often every set is replaced by a random one of as many MLPs and heads.
        control: a model that was finetuned on something else, as on `FactSet.shuffled`, in whatever form
            `after` may have; its weights are grafted in the same sets and positions.
        reward: R, as for `ecstruct.score`, from the answer's first token.
        progress: show a progress bar.

    Raises:
        InputError: a set, position or projection that the model or a prompt does not have, or a set that is
            empty; also as `ecstruct.score`.
    """
    pair = Pair.of(before, after)
    check_projections(projections)
    sets = {label: _set(its, pair, projections, scores) for label, its in _labelled(components).items()}
    groups = named_groups(positions)
    if random_seeds < 0:
        raise InputError(f"random_seeds={random_seeds} cannot be drawn: use 0 or more.")
    ran = GraftRuns.of(pair, prompts, reward)
    runs = Runs(pair.sessions[0], with_subjects(pair.sessions[0], ran.prompts))
    places = {label: runs.places(which) for label, which in groups.items()}
    drawn = [np.random.default_rng(seed) for seed in range(random_seeds)]
    every = [sets, *({label: chosen.drawn(rng) for label, chosen in sets.items()} for rng in drawn)]
    grafts = {
        (seed, name, label): Graft(chosen, places[label])
        for seed, of_seed in enumerate(every)
        for name, chosen in of_seed.items()
        for label in places
    }
    n = len(ran.prompts)
    others = None if control is None else replace(ran, pair=Pair.of(pair.view.model, control))
    alone = {which: its for which, its in grafts.items() if which[0] == 0}
    total = n * (len(grafts) + len(alone) * (control is not None))
    with tqdm(total=total, desc="grafts", unit="run", disable=not progress) as bar:
        found = ran.measured(grafts, complement=complement, tick=bar.update)
        of_control = others and others.measured(alone, complement=complement, tick=bar.update)
    dims = ("measure", "set", "position", "prompt")

    def whole(of: Mapping[Any, xr.DataArray]) -> Float[np.ndarray, "measure seed set position prompt"]:
        stacked = np.stack([*of.values()]).reshape(-1, len(sets), len(places), len(MEASURES), n)
        return np.moveaxis(stacked, 3, 0)

    variables = {
        "grafted": (dims, whole(found)[:, 0]),
        "ends": ran.ends(),
        "mlps": ("set", [chosen.components[0] for chosen in sets.values()]),
        "heads": ("set", [chosen.components[1] for chosen in sets.values()]),
    }
    if random_seeds:
        variables["random"] = (("measure", "seed", *dims[1:]), whole(found)[:, 1:])
    if others and of_control:
        variables["control"] = (dims, whole(of_control)[:, 0])
    options = {
        "components": {label: _written(its) for label, its in _labelled(components).items()},
        "positions": {label: as_json(which) for label, which in groups.items()},
        "projections": None if projections is None else list(projections),
        "complement": complement,
        "random_seeds": random_seeds,
        "control": None if others is None else dict(others.pair.sources["after"]),
        "reward": ran.reward.name,
    }
    labels = {"measure": list(MEASURES), "set": [*sets], "position": [*places]}
    return Grafted(xr.Dataset(variables, {**labels, **runs.coordinates()}, pair.attrs(options)))


def _labelled(components: Sets) -> Mapping[str, Named]:
    """Return sets by their labels.

    Raises:
        InputError: there are none, or one is given twice.
    """
    if components is None or isinstance(components, str):
        components = ["all" if components is None else components]
    if isinstance(components, pd.DataFrame):
        return {"components": components}
    if isinstance(components, Mapping):
        found = dict(components)
    else:
        components = list(components)
        found = {name: name for name in components}
        if len(found) < len(components):
            raise InputError(f"components={components} names a set twice: name each once.")
    if not found:
        raise InputError("components= has no set: name one, as 'mlps', or leave it out for all components.")
    return found


def _set(
    names: Named, pair: Pair, projections: Sequence[str] | None, scores: ExtractiveScores | None
) -> WeightSet:
    """Return a set of weights that has some, and that the model tells apart."""

    def top(score: str, k: int) -> pd.DataFrame:
        if scores is None:
            raise InputError(f"'{score} top {k}' needs scores: give scores= of these models.")
        return scores.top(k, score)

    view = pair.view
    chosen = named(names, view, top).only(projections)
    if not chosen.layers:
        raise InputError(f"the set {names!r} has none of the projections {', '.join(projections or ())}.")
    whole = any(isinstance(sites.get("mlp.in"), WholeMLP) for sites in view.block_sites)
    if whole and (chosen.mlps[:3].any(0) != chosen.mlps[:3].all(0)).any():
        raise InputError(
            "the MLPs of this model are mixtures of experts, whose projections are not told apart: graft "
            "them as a whole."
        )
    return chosen


def _written(names: Named) -> Any:
    """Return a set's names as JSON types."""
    if isinstance(names, pd.DataFrame):
        return component_names(names)
    return names if names is None or isinstance(names, str) else list(names)
