"""Subject enrichment: how many attributes of a subject its hidden states encode, and which sublayers write
them.

The attributes rate of a hidden state is the share, in percent, of the first tokens of its projection on the
vocabulary (`ecstruct.recall.vocabulary`) that are in the subject's attributes A_s (Geva et al. 2023,
section 5). In a model that enriches its subjects it rises over the early layers at the subject's last
token.

Sublayer knockout cancels what MLPs or attention layers write in a window of consecutive layers, and reads
the attributes rate at a later layer of interest (also section 5). There are two ways to cancel:

* "zero", the paper's definition: nothing is added to the residual stream at the position that is read;
* "uniform", as in the paper's published code, at all positions: attention sees all tokens that it may see
  equally (all edges are masked, so the softmax cannot prefer any), and the neurons of MLPs are 0, so that
  an MLP only writes its bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ecstruct.engine.forward import Resid, Step, run_blocks, traces
from ecstruct.engine.session import Model
from ecstruct.errors import InputError
from ecstruct.models.sites import Written
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.copies import Copies, Copying, Knockout, Plain, States, batch_size
from ecstruct.recall.groups import RecallPrompt, named
from ecstruct.recall.masks import all_alike, with_mask
from ecstruct.recall.runs import PARTS, Part, Places, Prompts, Run, Runs
from ecstruct.recall.vocabulary import Onto, Reader

POSITIONS = ("subject-last", "subject-first", "subject-others", "after-subject", "first", "last")

Mode = Literal["zero", "uniform"]


def attributes_rate(
    model: Model,
    prompts: Prompts,
    attributes: Attributes,
    *,
    positions: Sequence[str] = POSITIONS,
    onto: Onto = "unembedding",
    normed: bool = False,
    top: int | None = None,
    kept: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """Compute the attributes rate at some positions after every layer.

    Args:
        model: from `ecstruct.load`; it is not changed.
        prompts: with subjects; as everywhere in ecstruct.
        attributes: A_s of the subjects.
        positions: names of groups of positions, see `ecstruct.recall.groups`; a group of several tokens
            gets the mean of their rates.
        onto: the matrix that projects hidden states, "unembedding" or "embedding". They are the same where
            they are tied, as in the paper's model. See `ecstruct.recall.vocabulary`.
        normed: apply the model's final norm before the projection.
        top: how many tokens of the projection are searched: 500, or a tenth of a vocabulary of fewer than
            5000.
        kept: how many of these, without stop words and strings of at most two characters, are compared with
            A_s: 50, or a hundredth of such a vocabulary.
        progress: show a progress bar.

    Returns:
        Percent (prompt, position, layer). NaN where a prompt lacks the position, such as "subject-others"
        for a subject of one or two tokens, and where all tokens were dropped. The coordinate `embedding`
        (prompt) is the rate of the mean embedding of the subject's tokens: what they say without any layer.

    Raises:
        InputError: a prompt without subject, a subject without attributes, an unknown position or
            matrix, or `top` and `kept` that do not fit the vocabulary.
    """
    groups = named(positions)
    runs = Runs.of(model, prompts)
    reader = Reader(runs, attributes, top=top, kept=kept, normed=normed, onto=onto)
    places = [runs.places(which, may_be_empty=True) for which in groups.values()]
    rates = _rates(runs, reader, places, progress)
    texts = [
        [" ".join(prompt.tokens[at] for at in of_group[row]) for of_group in places]
        for row, prompt in enumerate(runs.prompts)
    ]
    coordinates = {
        **runs.coordinates(),
        "position": list(groups),
        "layer": np.arange(runs.view.n_layers),
        "token": (("prompt", "position"), texts),
    }
    if all(p.subject is not None for p in runs.prompts):
        coordinates["embedding"] = "prompt", reader.of_embeddings(runs.places("subject"))
    options = {"positions": list(groups), **reader.options}
    attrs = runs.attrs("attributes rate", options) | {"unit": "%"}
    return xr.DataArray(rates, coordinates, ("prompt", "position", "layer"), "attributes_rate", attrs)


def sublayer_knockout(
    model: Model,
    prompts: Prompts,
    attributes: Attributes,
    *,
    at_layer: int | None = None,
    window: int | None = None,
    parts: Part | Sequence[Part] = PARTS,
    mode: Mode = "zero",
    position: str = "subject-last",
    onto: Onto = "unembedding",
    normed: bool = False,
    top: int | None = None,
    kept: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """Compute how the attributes rate at a layer changes without the MLPs or the attention of some layers.

    Args:
        model, prompts, attributes, onto, normed, top, kept, progress: as for `attributes_rate`.
        at_layer: the layer after which the rate is read; by default the one where its mean over prompts is
            highest.
        window: how many layers are cancelled together: layer l and those above it, up to `at_layer`. By
            default about a fifth of the layers, as the 10 of 48 in the paper's model.
        parts: "attention", "mlp" or both.
        mode: "zero" or "uniform", see the module's docstring.
        position: the name of a group of positions; a group of several gets the mean of their rates.

    Returns:
        The change of the rate (part, prompt, layer) in percentage points; `layer` is the first of the
        window, from 0 to `at_layer`. The coordinate `rate` (prompt) is the rate when nothing is cancelled.

    Raises:
        InputError: as `attributes_rate`; also a layer that does not exist, a window of more layers than the
            model has, an unknown part or mode, or a position that a prompt lacks.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode={mode!r} is unknown: it is 'zero' or 'uniform'.")
    parts = (parts,) if isinstance(parts, str) else parts
    if not parts or set(parts) - set(PARTS):
        raise InputError(f"parts={list(parts)!r}: name 'attention', 'mlp' or both.")
    runs = Runs.of(model, prompts)
    places = runs.places(position)
    # Nothing after the tokens that are read changes them.
    runs = Runs(runs.session, [_up_to(max(its), p) for its, p in zip(places, runs.prompts, strict=True)])
    reader = Reader(runs, attributes, top=top, kept=kept, normed=normed, onto=onto)
    n_layers = runs.view.n_layers
    width = max(1, round(n_layers * 10 / 48)) if window is None else window
    if not 1 <= width <= n_layers:
        raise InputError(f"window={width}: this model has {n_layers} layers, give 1 to {n_layers}.")
    if at_layer is not None and at_layer not in range(n_layers):
        raise InputError(f"at_layer={at_layer}: this model has the layers 0 to {n_layers - 1}.")
    at = peak(_rates(runs, reader, [places], False)[:, 0]) if at_layer is None else at_layer
    windows = [range(first, min(first + width, at + 1)) for first in range(at + 1)]
    asked: list[tuple[range, Part]] = [(window, part) for window in windows for part in parts]
    whole, without = np.empty(len(runs.prompts)), np.empty((len(runs.prompts), len(asked)))
    copying = Copying()

    def cancel(run: Run) -> None:
        plain, where = Plain(run, places), run.where(places)

        def rates(states: Resid, its: Bool[Tensor, "batch own"]) -> Float[Tensor, " batch"]:
            of_tokens, its = torch.from_numpy(reader.read(run, states, its)), its.cpu()
            return of_tokens.where(its, 0).sum(-1) / its.sum(-1)

        def of_copies(copies: Copies, states: States) -> Float[Tensor, "batch copy"]:
            its = where.gather(1, copies.positions) & copies.real
            return torch.stack([rates(of_copy, its) for of_copy in states.unbind(1)], 1)

        whole[run.rows] = rates(plain.entering[at + 1], where)
        if mode == "zero":
            hidden = torch.zeros_like(where)
            knockouts = [Knockout(part, hidden, window, part) for window, part in asked]
            found = copying.measure(plain, knockouts, at + 1, of_copies)
        else:
            each = [rates(_uniformly(plain, part, window, at + 1), where) for window, part in asked]
            found = torch.stack(each, 1)
        without[run.rows] = found

    runs.each(cancel, "sublayer knockout", progress, batch_size(runs, places, len(asked)))
    coordinates = {
        **runs.coordinates(),
        "part": list(parts),
        "layer": np.arange(at + 1),
        "rate": ("prompt", whole),
    }
    options = {
        "at_layer": at,
        "window": width,
        "parts": list(parts),
        "mode": mode,
        "position": position,
        **reader.options,
    }
    attrs = runs.attrs("sublayer knockout", options) | {"unit": "percentage points"}
    change = rearrange(
        without - whole[:, None], "prompt (layer part) -> part prompt layer", part=len(parts)
    )
    return xr.DataArray(change, coordinates, ("part", "prompt", "layer"), "rate_change", attrs)


def peak(rates: Float[np.ndarray, "prompt layer"]) -> int:
    """Return the layer with the highest mean over the prompts that have a rate there."""
    known = np.isfinite(rates)
    if not known.any():
        raise InputError(
            "no token of any projection is left without stop words and short ones: look at more with top=."
        )
    totals = np.where(known, rates, 0).sum(0)
    return int(np.argmax(np.where(known.any(0), totals / known.sum(0).clip(1), -1)))


def _rates(
    runs: Runs, reader: Reader, places: Sequence[Places], progress: bool
) -> Float[np.ndarray, "prompt group layer"]:
    """Return the mean rates of groups of tokens after every layer, with nothing cancelled; NaN where a
    group has no token."""
    of_any_group = [[*chain(*of_prompt)] for of_prompt in zip(*places, strict=True)]
    rates = np.full((len(runs.prompts), len(places), runs.view.n_layers), np.nan)

    def measure(run: Run) -> None:
        embedded, where = run.embed(), run.where(of_any_group)
        for layer, trace in enumerate(traces(run.session, embedded.calls, embedded.resid)):
            found = reader.read(run, trace.output, where)
            for of_tokens, row in zip(found, run.rows, strict=True):
                for g, of_group in enumerate(places):
                    if of_group[row]:
                        rates[row, g, layer] = of_tokens[of_group[row]].mean()

    runs.each(measure, "attributes rate", progress)
    return rates


def _up_to(last: int, prompt: RecallPrompt) -> RecallPrompt:
    return replace(prompt, ids=prompt.ids[: last + 1], tokens=prompt.tokens[: last + 1])


def _uniformly(plain: Plain, part: Part, window: range, stop: int) -> Resid:
    """Return what enters layer `stop` if in the layers of the window attention sees all tokens alike, or
    the neurons of MLPs are 0."""
    runs, session = plain.runs, plain.session

    def cancelled(step: Step) -> Step:
        if step.layer not in window:
            return step
        if part == "attention":
            return replace(step, call=with_mask(step.call, all_alike(plain.masks[step.layer])))
        # A mixture of experts has no neurons of its own to set to 0, and no bias.
        whole = isinstance(runs.view.block_sites[step.layer]["mlp.out"], Written)
        return replace(step, **{"outputs" if whole else "inputs": {"mlp.out": torch.zeros_like}})

    return run_blocks(session, plain.calls[:stop], plain.entering[window.start], cancelled, window.start)
