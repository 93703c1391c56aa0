"""Collect the scores of single blocks and batches in arrays, and label them as one dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.facts.tokens import TokenizedPrompt

SCORES = ("informative", "upstream", "downstream")
STATES = ("before", "after")
INFORMATIVE, UPSTREAM, DOWNSTREAM = range(3)
BEFORE, AFTER = range(2)


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return np.dtype(str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class PromptScores:
    """The scores of some prompts: those whose indices are `rows`.

    `arrays` are named and laid out like the variables of the final dataset, but only as long as the longest
    of these prompts; `groups` names the columns of `rest`."""

    rows: list[int]
    groups: list[str]
    arrays: dict[str, np.ndarray]


class Assembly:
    """Arrays of scores that are filled block by block and batch by batch.

    They are for all `prompts`, or for those whose indices are `rows`; methods take the indices of prompts.
    With `projections`, informative scores are also kept by projection. Values that are added to the same
    entry are summed; padding stays NaN."""

    def __init__(
        self,
        prompts: Sequence[TokenizedPrompt],
        n_layers: int,
        n_heads: int,
        dtype: torch.dtype,
        rows: Sequence[int] | None = None,
        projections: Sequence[str] = (),
    ) -> None:
        self.projections = projections
        self._prompts, self._dtype = prompts, numpy_dtype(dtype)
        self._rows = list(range(len(prompts)) if rows is None else rows)
        self._place = {row: place for place, row in enumerate(self._rows)}
        n, n_tokens = len(self._rows), max(len(prompts[row].ids) for row in self._rows)

        def nans(*shape: int) -> np.ndarray:
            return np.full(shape, np.nan, dtype=self._dtype)

        self._arrays = {
            "mlp": nans(len(SCORES), n, n_layers, n_tokens),
            "heads": nans(len(SCORES), n, n_layers, n_heads, n_tokens),
            "attribution_mlp": nans(len(STATES), n, n_layers, n_tokens),
            "attribution_heads": nans(len(STATES), n, n_layers, n_heads, n_tokens),
        }
        if projections:
            self._arrays["projections_mlp"] = np.zeros((len(projections), n, n_layers), self._dtype)
            shape = (len(projections), n, n_layers, n_heads)
            self._arrays["projections_heads"] = np.zeros(shape, self._dtype)
        self._rest: dict[str, np.ndarray] = {}
        self._reward = nans(n, len(STATES))

    def add(self, name: str, which: int, rows: Sequence[int], layer: int, value: Tensor) -> None:
        """Add scores of one layer for the prompts `rows`: `value` is [batch, pos] for MLPs, [batch, pos,
        head] for heads.

        `name` is that of the array ("mlp", "heads", "attribution_mlp", ...), and `which` the index in its
        first dimension: that of the score (such as `INFORMATIVE`) or, for attributions, of the state."""
        added = np.moveaxis(value.cpu().numpy(), 1, -1)
        lengths = np.array([len(self._prompts[row].ids) for row in rows])
        padding = np.arange(added.shape[-1]) >= lengths.reshape(-1, *[1] * (added.ndim - 1))
        of_layer = self._arrays[name][which, :, layer, ..., : added.shape[-1]]
        places = self._places(rows)
        of_layer[places] = np.where(padding, np.nan, np.nan_to_num(of_layer[places]) + added)

    def add_projection(
        self, name: str, projection: str, rows: Sequence[int], layer: int, value: Tensor
    ) -> None:
        """Add informative scores of one projection of the MLPs or heads (`name`), summed over tokens here;
        `value` is laid out as for `add`."""
        at = self.projections.index(projection), self._places(rows), layer
        self._arrays[f"projections_{name}"][at] += value.sum(1).cpu().numpy()

    def add_rest(self, group: str, rows: Sequence[int], value: Float[Tensor, " batch"]) -> None:
        """Add to the informative scores of a group of weights."""
        self._of_group(group)[self._places(rows)] += value.cpu().numpy()

    def put_rewards(
        self, rows: Sequence[int], before: Float[Tensor, " batch"], after: Float[Tensor, " batch"]
    ) -> None:
        """Set the rewards of the prompts `rows` under both states; see `rewards_by_state`."""
        its_prompts = [self._prompts[row] for row in rows]
        self._reward[self._places(rows)] = rewards_by_state(its_prompts, before, after)

    def prompt_scores(self) -> PromptScores:
        """Return all scores, so that they can be `put` into an assembly with more prompts."""
        return PromptScores(self._rows, list(self._rest), {**self._arrays, **self._flat()})

    def put(self, scores: PromptScores) -> None:
        """Copy in the scores of some prompts; unlike `add`, this overwrites."""
        places = self._places(scores.rows)
        for name, array in self._arrays.items():
            found = scores.arrays[name]
            array[:, places, ..., : found.shape[-1]] = found
        self._reward[places] = scores.arrays["reward"]
        for group, value in zip(scores.groups, scores.arrays["rest"].T, strict=True):
            self._of_group(group)[places] = value

    def dataset(self, prompt_lengths: Sequence[int], attrs: dict[str, Any]) -> xr.Dataset:
        """Return the dataset that `ExtractiveScores` wraps. `prompt_lengths` exclude answer tokens."""
        of_layer, of_head = ("prompt", "layer", "token"), ("prompt", "layer", "head", "token")
        dims = {
            "mlp": ("score", *of_layer),
            "heads": ("score", *of_head),
            "attribution_mlp": ("state", *of_layer),
            "attribution_heads": ("state", *of_head),
            "projections_mlp": ("projection", *of_layer[:-1]),
            "projections_heads": ("projection", *of_head[:-1]),
            "rest": ("prompt", "group"),
            "reward": ("prompt", "state"),
        }
        arrays = {**self._arrays, **self._flat()}
        variables = {name: (dims[name], array) for name, array in arrays.items()}
        sizes = dict(zip(of_head[1:], self._arrays["heads"].shape[2:], strict=True))
        dataset = labelled_dataset(variables, self._prompts, prompt_lengths, SCORES, sizes, attrs)
        if self.projections:
            dataset = dataset.assign_coords(projection=list(self.projections))
        return dataset.assign_coords(group=np.array(list(self._rest), dtype=object))

    def _flat(self) -> dict[str, np.ndarray]:
        """The arrays without a token dimension."""
        none = np.zeros((len(self._rows), 0), dtype=self._dtype)
        return {
            "rest": np.stack(list(self._rest.values()), 1) if self._rest else none,
            "reward": self._reward,
        }

    def _of_group(self, group: str) -> np.ndarray:
        return self._rest.setdefault(group, np.zeros(len(self._rows), dtype=self._dtype))

    def _places(self, rows: Sequence[int]) -> list[int]:
        return [self._place[row] for row in rows]


def rewards_by_state(
    prompts: Sequence[TokenizedPrompt], before: Float[Tensor, " prompt"], after: Float[Tensor, " prompt"]
) -> Float[np.ndarray, "prompt state"]:
    """Stack rewards under both states.

    Raises:
        InputError: a reward is NaN or infinite.
    """
    rewards = torch.stack([before, after], dim=1).detach().cpu().numpy()
    for i, state in zip(*np.nonzero(~np.isfinite(rewards)), strict=True):
        raise InputError(
            f"the reward of {prompts[i].prompt.text!r} is NaN or infinite {STATES[state]} finetuning: "
            "look for NaN or infinite weights in that checkpoint."
        )
    return rewards


def labelled_dataset(
    variables: dict[str, Any],
    prompts: Sequence[TokenizedPrompt],
    prompt_lengths: Sequence[int],
    scores: Sequence[str],
    sizes: dict[str, int],
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Return a dataset of `variables`, given as (dimensions, values), with coordinates that label the
    dimensions and describe every prompt. `sizes` gives the sizes of dimensions that count from 0."""
    n_tokens = max(len(p.ids) for p in prompts)
    padded = [[*p.tokens, *[""] * (n_tokens - len(p.tokens))] for p in prompts]
    position, spans = np.arange(n_tokens), np.array([(*p.text_span, len(p.ids)) for p in prompts])
    start, end, length = spans.T[..., None]
    wrapper = (position < start) | ((end <= position) & (position < length))
    coordinates: dict[str, Any] = {
        "score": list(scores),
        "state": list(STATES),
        **{name: np.arange(size) for name, size in sizes.items()},
        "prompt": np.arange(len(prompts)),
        "text": ("prompt", [p.prompt.text for p in prompts]),
        "answer": ("prompt", [p.prompt.answer for p in prompts]),
        "template": ("prompt", [p.template for p in prompts]),
        "length": ("prompt", [len(p.ids) for p in prompts]),
        "prompt_length": ("prompt", list(prompt_lengths)),
        "entity_start": ("prompt", [p.entity[0] for p in prompts]),
        "entity_end": ("prompt", [p.entity[1] for p in prompts]),
        "token_text": (("prompt", "token"), padded),
        "wrapper": (("prompt", "token"), wrapper),
    }
    return xr.Dataset(variables, coordinates, attrs)


_LABELS = "score", "layer", "head", "state", "group", "text", "answer", "token_text"


def require_same_labels(one: xr.Dataset, other: xr.Dataset, labels: Sequence[str] = _LABELS) -> None:
    """Raise `InputError` unless two datasets have the same components and prompts."""
    for name in labels:
        mine, its = (dataset.coords.get(name) for dataset in (one, other))
        if mine is None and its is None:
            continue
        if mine is None or its is None:
            raise InputError(f"only one of the two scores has the coordinate {name!r}")
        if set(mine.dims) == set(its.dims):
            its = its.transpose(*mine.dims)
        if mine.shape != its.shape:
            raise InputError(
                f"the two scores have different sizes of {name!r}: {mine.shape} and {its.shape}; "
                "they must be of the same components and prompts"
            )
        if (unlike := np.argwhere(mine.values != its.values)).size:
            first = tuple(unlike[0])
            raise InputError(
                f"the two scores differ in {name!r}: {mine.values[first].item()!r} and "
                f"{its.values[first].item()!r}; they must be of the same components and prompts"
            )
