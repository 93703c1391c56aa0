"""Averaging the prompts of one template at the slots that they share.

Prompts made from one template differ only in their entity, so their tokens line up:

    The people in the city | Grace Miller    | is from speak
    The people in the city | Mary Lou Parker | is from speak
    prefix                 | entity          | suffix

Each prefix and suffix token is a slot; the entity has two slots, "X" and "Y", for its last two
tokens (the paper's "The people in the city X Y is from speak"). A slot's value is the mean over
the prompts that have a token there, and `count` is the number of these. A value keeps the unit
and the sign of the score that it averages: change of the reward, positive raises it. Other prompts
would give other means; `ecstruct.bootstrap` estimates how far off they may be.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Int

from ecstruct.bootstrap import Bootstrap
from ecstruct.errors import InputError
from ecstruct.scores.slots import SlotScores

ENTITY_SLOTS = ("X", "Y")
"""The labels of the slots for the entity's second-last token and its last token."""


def aggregate_dataset(
    dataset: xr.Dataset,
    *,
    fold: bool = False,
    like: Literal["reference"] | None = None,
    template: str | None = None,
    ci: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> SlotScores:
    """Average the prompts of a template onto its slots; see `ExtractiveScores.aggregate`."""
    if like not in (None, "reference"):
        raise InputError(f"like={like!r} is unknown; it is None or 'reference'")
    if fold and like == "reference":
        raise InputError("fold=True cannot be had with like='reference', which drops tokens")
    require_tokens(dataset)
    label, chosen = _prompts_of_template(dataset, template)
    slots = _slots(dataset, chosen, duplicate=like == "reference")

    attrs: dict[str, Any] = {"template": label, "prompts": len(chosen), "fold": fold, "like": like}
    bootstrap = None
    if ci is not None:
        bootstrap = Bootstrap(len(chosen), ci=ci, resamples=resamples, seed=seed)
        attrs |= {"ci": ci, "resamples": resamples, "seed": seed}
    return _averaged(dataset, chosen, slots, bootstrap, fold=fold, attrs={"aggregate": attrs})


def prompt_slots(dataset: xr.Dataset, prompt: int) -> SlotScores:
    """Return one prompt's scores, with each of its tokens as a slot of count 1; `prompt` counts from 0."""
    require_tokens(dataset)
    n_prompts = dataset.sizes["prompt"]
    if not 0 <= prompt < n_prompts:
        raise InputError(f"there is no prompt {prompt} among these {n_prompts}; count from 0")
    one = dataset.isel(prompt=prompt)
    length, start, end = (int(one[name]) for name in ("length", "entity_start", "entity_end"))
    slots = _Slots(
        positions=np.arange(length)[None],
        surplus=[slice(0, 0)],
        first_entity=start,
        texts=[str(text) for text in one["token_text"].values[:length]],
        parts=["prefix"] * start + ["entity"] * (end - start) + ["suffix"] * (length - end),
    )
    attrs = {"prompt": {"index": prompt, **{key: str(one[key].item()) for key in ("text", "answer")}}}
    if "rank" in one.coords:
        attrs["prompt"]["rank"] = one["rank"].values.tolist()
    return _averaged(dataset, np.array([prompt]), slots, fold=False, attrs=attrs)


def require_tokens(dataset: xr.Dataset) -> None:
    """Raise InputError for scores that were not split over token positions."""
    if "token" not in dataset["mlp"].dims:
        raise InputError(
            "these scores are not split over tokens; compute them with per_token=True, or use "
            ".top() and .to_dataframe(), which need no tokens"
        )


@dataclass(frozen=True)
class _Slots:
    """The position of each slot's token in each prompt; `texts` and `parts` ("prefix", "entity", "suffix")
    describe the slots."""

    positions: Int[np.ndarray, "prompt slot"]  # -1 where a prompt has no token for a slot
    surplus: list[slice]  # per prompt, the leading entity tokens that have no slot
    first_entity: int  # the slot that they can be folded into
    texts: list[str]
    parts: list[str]


def _slots(dataset: xr.Dataset, chosen: np.ndarray, *, duplicate: bool) -> _Slots:
    """Return the slots of the prompts with the indices `chosen`; raise `InputError` if they do not line up.
    With `duplicate`, an entity of one token fills both X and Y."""
    starts = dataset["entity_start"].values[chosen]
    ends = dataset["entity_end"].values[chosen]
    # After the prompt come tokens of the answer. They differ between prompts and have no slots.
    name = "prompt_length" if "prompt_length" in dataset.coords else "length"
    stops = dataset[name].values[chosen]
    for what, sizes in (("before", starts), ("after", stops - ends)):
        if (odd := np.flatnonzero(sizes != sizes[0])).size:
            raise InputError(
                f"prompts {chosen[0]} and {chosen[odd[0]]} of one template do not line up: they "
                f"have {sizes[0]} and {sizes[odd[0]]} tokens {what} the entity; give prompts that "
                "are not of one template different template= labels"
            )

    n_prefix, n_suffix, n_entity = int(starts[0]), int(stops[0] - ends[0]), len(ENTITY_SLOTS)
    last_entity = n_prefix + n_entity  # one past the last entity slot
    positions = np.full((len(chosen), last_entity + n_suffix), -1)
    surplus: list[slice] = []
    for row, (start, end, stop) in enumerate(zip(starts, ends, stops, strict=True)):
        kept = max(start, end - n_entity)  # the first entity token that has a slot
        positions[row, :n_prefix] = np.arange(start)
        positions[row, last_entity - (end - kept) : last_entity] = np.arange(kept, end)
        positions[row, last_entity:] = np.arange(end, stop)
        if duplicate and end - start == 1:
            positions[row, n_prefix:last_entity] = start
        surplus.append(slice(start, kept))

    tokens = dataset["token_text"].values[chosen]
    texts = [_shared_text(tokens, column) for column in positions.T]
    texts[n_prefix:last_entity] = ENTITY_SLOTS
    parts = ["prefix"] * n_prefix + ["entity"] * n_entity + ["suffix"] * n_suffix
    return _Slots(positions, surplus, n_prefix, texts, parts)


def _shared_text(tokens: np.ndarray, positions: np.ndarray) -> str:
    """Return the token at a slot, or "…" where the prompts of a template differ outside `subject=`."""
    seen = {str(tokens[row, position]) for row, position in enumerate(positions)}
    return seen.pop() if len(seen) == 1 else "…"


def _averaged(
    dataset: xr.Dataset,
    chosen: np.ndarray,
    slots: _Slots,
    bootstrap: Bootstrap | None = None,
    *,
    fold: bool,
    attrs: dict[str, Any],
) -> SlotScores:
    """Average every variable of the scores over the prompts with the indices `chosen`: per slot, where it
    has tokens. With `bootstrap` there are intervals, too."""
    variables: dict[str, Any] = {"count": ("slot", (slots.positions >= 0).sum(0))}
    for name, variable in dataset.data_vars.items():
        if "token" in variable.dims:
            variables[str(name)] = _mean_at_slots(variable, chosen, slots, fold=fold)
        else:
            # In float64, because a mean over many prompts in the scores' own precision would lose digits.
            variables[str(name)] = (
                variable.isel(prompt=chosen).astype("float64").mean("prompt", skipna=False)
            )
    for name in ("mlp", "heads") if "causal_mlp" in dataset else ():
        summed = dataset[name].isel(prompt=chosen).astype("float64").sum("token")
        variables[f"total_{name}"] = summed.mean("prompt")
    if bootstrap is not None:
        # The interval of a sum is not the sum of intervals, so a layer's attention needs its own.
        attention = dataset["heads"].astype("float64").sum("head", skipna=False)
        for name, variable in {
            "mlp": dataset["mlp"],
            "heads": dataset["heads"],
            "attention": attention,
        }.items():
            ends = _interval_at_slots(variable, chosen, slots, bootstrap, fold=fold)
            variables[f"{name}_low"], variables[f"{name}_high"] = ends
    coords = {
        "slot": np.arange(len(slots.texts)),
        "slot_text": ("slot", np.array(slots.texts, dtype=str)),
        "part": ("slot", np.array(slots.parts, dtype=str)),
        "wrapper": ("slot", _in_wrapper(dataset, chosen, slots.positions)),
    }
    return SlotScores(xr.Dataset(variables, coords, {**copy.deepcopy(dataset.attrs), **attrs}))


def _in_wrapper(dataset: xr.Dataset, chosen: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return for each slot whether all its tokens belong to a chat template."""
    if "wrapper" not in dataset.coords:  # older files of scores lack it
        return np.zeros(positions.shape[1], dtype=bool)
    in_wrapper = dataset["wrapper"].values[chosen][np.arange(len(chosen))[:, None], positions]
    filled = positions >= 0
    return np.logical_and(filled.any(axis=0), np.all(in_wrapper | ~filled, axis=0))


def _mean_at_slots(
    variable: xr.DataArray, chosen: np.ndarray, slots: _Slots, *, fold: bool
) -> xr.DataArray:
    """Average (..., prompt, ..., token) over prompts at each slot; return (..., slot) in float64."""
    at_slots = _at_slots(variable, chosen, slots, fold=fold)
    count = (slots.positions >= 0).sum(0).reshape(-1, *(1 for _ in at_slots.shape[2:]))
    mean = np.where(count > 0, at_slots.sum(0) / np.maximum(count, 1), np.nan)
    return _labelled(mean, variable)


def _interval_at_slots(
    variable: xr.DataArray, chosen: np.ndarray, slots: _Slots, bootstrap: Bootstrap, *, fold: bool
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return both ends of the interval about the mean of `_mean_at_slots`."""
    at_slots = _at_slots(variable, chosen, slots, fold=fold)
    by_slot = [
        bootstrap.interval(at_slots[:, slot], counted)
        for slot, counted in enumerate(slots.positions.T >= 0)
    ]
    low, high = (np.stack(ends) for ends in zip(*by_slot, strict=True))
    return _labelled(low, variable), _labelled(high, variable)


def _at_slots(variable: xr.DataArray, chosen: np.ndarray, slots: _Slots, *, fold: bool) -> np.ndarray:
    """Return the chosen prompts' values of (..., prompt, ..., token) at each slot, in float64.

    The result is (prompt, slot, ...); it is 0 where a prompt has no token for a slot.
    """
    others = _others(variable)
    values = variable.transpose("prompt", "token", *others).values[chosen].astype("float64")
    rows = np.arange(len(chosen))[:, None]
    at_slots = values[rows, slots.positions]  # (prompt, slot, ...)
    at_slots[slots.positions < 0] = 0.0
    if fold:
        for row, tokens in enumerate(slots.surplus):
            at_slots[row, slots.first_entity] += values[row, tokens].sum(0)
    return at_slots


def _labelled(values: np.ndarray, variable: xr.DataArray) -> xr.DataArray:
    """Move (slot, ...) to (..., slot) and add the labels of `variable`."""
    others = _others(variable)
    coords = {dim: variable.coords[dim] for dim in others if dim in variable.coords}
    return xr.DataArray(np.moveaxis(values, 0, -1), dims=(*others, "slot"), coords=coords)


def _others(variable: xr.DataArray) -> list[Hashable]:
    return [dim for dim in variable.dims if dim not in ("prompt", "token")]


def _prompts_of_template(
    dataset: xr.Dataset, template: str | None
) -> tuple[str, Int[np.ndarray, " prompt"]]:
    """Return the name of the template, by default of the only one, and the indices of its prompts; raise
    `InputError` if it is unknown, or if there are several to choose from."""
    labels = [str(label) for label in dataset["template"].values]
    found = list(dict.fromkeys(labels))
    listed = ", ".join(map(repr, found))
    if template is None:
        if len(found) != 1:
            raise InputError(
                f"these scores have prompts of {len(found)} templates ({listed}), which do not "
                f"line up; choose one, as in template={found[0]!r}"
            )
        template = found[0]
    if template not in found:
        raise InputError(f"template={template!r} is not among these scores; they have {listed}")
    return template, np.flatnonzero(np.array(labels) == template)
