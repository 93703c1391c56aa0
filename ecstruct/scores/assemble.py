"""From the numbers of single blocks and batches to one labelled dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.facts.tokens import TokenizedPrompt

SCORES = ("informative", "upstream", "downstream")
STATES = ("before", "after")
INFORMATIVE, UPSTREAM, DOWNSTREAM = range(3)
BEFORE, AFTER = range(2)


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return np.dtype(str(dtype).removeprefix("torch."))


class Assembly:
    """Arrays of all prompts, filled block by block and batch by batch; what comes again is added. Padding
    stays NaN."""

    def __init__(
        self, prompts: Sequence[TokenizedPrompt], n_layers: int, n_heads: int, dtype: torch.dtype
    ) -> None:
        self._prompts, self._dtype = prompts, numpy_dtype(dtype)
        n, n_tokens = len(prompts), max(len(p.ids) for p in prompts)

        def empty(*shape: int) -> np.ndarray:
            return np.full(shape, np.nan, dtype=self._dtype)

        self._mlp = {
            "mlp": empty(len(SCORES), n, n_layers, n_tokens),
            "attribution_mlp": empty(len(STATES), n, n_layers, n_tokens),
        }
        self._heads = {
            "heads": empty(len(SCORES), n, n_layers, n_heads, n_tokens),
            "attribution_heads": empty(len(STATES), n, n_layers, n_heads, n_tokens),
        }
        self._rest: dict[str, np.ndarray] = {}
        self._reward = empty(n, len(STATES))

    def add_mlp(self, name: str, which: int, rows: Sequence[int], layer: int, value: Tensor) -> None:
        """`value` [batch, pos] of the prompts `rows`."""
        for row, of_prompt in zip(rows, value.cpu().numpy(), strict=True):
            n_tokens = len(self._prompts[row].ids)
            place = self._mlp[name][which, row, layer, :n_tokens]
            place[:] = np.nan_to_num(place) + of_prompt[:n_tokens]

    def add_heads(self, name: str, which: int, rows: Sequence[int], layer: int, value: Tensor) -> None:
        """`value` [batch, pos, head] of the prompts `rows`."""
        for row, of_prompt in zip(rows, value.cpu().numpy(), strict=True):
            n_tokens = len(self._prompts[row].ids)
            place = self._heads[name][which, row, layer, :, :n_tokens]
            place[:] = np.nan_to_num(place) + of_prompt[:n_tokens].T

    def add_rest(self, group: str, rows: Sequence[int], value: Tensor) -> None:
        """Add to the informative score of a group of weights, [batch]."""
        total = self._rest.setdefault(group, np.zeros(len(self._prompts), dtype=self._dtype))
        total[list(rows)] += value.cpu().numpy()

    def put_rewards(self, rows: Sequence[int], before: Tensor, after: Tensor) -> None:
        """The rewards of the prompts `rows` under both states; see `rewards_by_state`."""
        self._reward[list(rows)] = rewards_by_state([self._prompts[row] for row in rows], before, after)

    def dataset(self, prompt_lengths: Sequence[int], attrs: dict[str, Any]) -> xr.Dataset:
        """The dataset that `ExtractiveScores` wraps. `prompt_lengths` are without answer tokens."""
        prompts = self._prompts
        n_tokens = self._mlp["mlp"].shape[-1]
        groups = list(self._rest)
        variables: dict[str, Any] = {
            "mlp": (("score", "prompt", "layer", "token"), self._mlp["mlp"]),
            "heads": (("score", "prompt", "layer", "head", "token"), self._heads["heads"]),
            "attribution_mlp": (
                ("state", "prompt", "layer", "token"),
                self._mlp["attribution_mlp"],
            ),
            "attribution_heads": (
                ("state", "prompt", "layer", "head", "token"),
                self._heads["attribution_heads"],
            ),
            "rest": (
                ("prompt", "group"),
                np.stack([self._rest[g] for g in groups], axis=1)
                if groups
                else np.zeros((len(prompts), 0), dtype=self._dtype),
            ),
            "reward": (("prompt", "state"), self._reward),
        }
        n_layers, n_heads = self._heads["heads"].shape[2:4]
        sizes = {"layer": n_layers, "head": n_heads, "token": n_tokens}
        dataset = labelled(variables, prompts, prompt_lengths, SCORES, sizes, attrs)
        return dataset.assign_coords(group=np.array(groups, dtype=object))


def rewards_by_state(prompts: Sequence[TokenizedPrompt], before: Tensor, after: Tensor) -> np.ndarray:
    """[prompt, state].

    Raises:
        InputError: one is NaN or infinite.
    """
    rewards = torch.stack([before, after], dim=1).detach().cpu().numpy()
    for i, state in zip(*np.nonzero(~np.isfinite(rewards)), strict=True):
        raise InputError(
            f"the reward of {prompts[i].prompt.text!r} is NaN or infinite {STATES[state]} finetuning: "
            "look for NaN or infinite weights in that checkpoint."
        )
    return rewards


def labelled(
    variables: dict[str, Any],
    prompts: Sequence[TokenizedPrompt],
    prompt_lengths: Sequence[int],
    scores: Sequence[str],
    sizes: dict[str, int],
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Variables, as (dimensions, values), with the labels of their dimensions and what is known of every
    prompt; `sizes` of the dimensions that count from 0."""
    n_tokens = max(len(p.ids) for p in prompts)
    padded = [[*p.tokens, *[""] * (n_tokens - len(p.tokens))] for p in prompts]
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
    }
    return xr.Dataset(variables, coordinates, attrs)
