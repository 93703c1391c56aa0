"""Attribute extraction: which layers write the prediction at the last position, by attention or by MLP.

Let a_l be what the attention of layer l adds to the residual stream at the last position, m_l what its MLP
adds (both after a post-norm, if there is one), and E the unembedding. Layer l has an *extraction event*
when the largest entry of E a_l, or of E m_l, is that of the token that the model predicts (Geva et al.
2023, section 6). The extraction rate of a layer is the share of prompts with an event in it.

Under an intervention, the token is still the one that the model predicts without it:

* blocked: the attention edges from some other positions to the last one are masked before the softmax, in
  every layer, in addition to what the model masks itself;
* patched from l: in layer l and all later ones, the tokens of a group are kept as they enter layer l (0:
  their embeddings). Patched subjects are not enriched any further.

Interventions are in effect in all layers together. If they are `local`, every layer is changed alone, and
runs on what enters it without any intervention, as in the paper's published code. Blocking then takes edges
out of the layer's attention, and what is left of it is normalised again to sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ecstruct.engine.forward import Intervention, Resid, Step, nothing, traces
from ecstruct.engine.session import Model
from ecstruct.errors import InputError
from ecstruct.models.calls import BlockCall
from ecstruct.models.finite import finite
from ecstruct.recall.groups import Groups, named
from ecstruct.recall.masks import closing, is_closed, mask_of, with_mask
from ecstruct.recall.runs import PARTS, Places, Prompts, Run, Runs, TokenKind
from ecstruct.recall.vocabulary import final_norm, projections, tokens_matrix

PLAIN = "none"
"""The name of the condition without an intervention."""
SOME = 4096
"""How many tokens of the vocabulary a token is held against first."""
ROUNDING = 1e-3
"""How much larger another entry may be, relative to both, so that it might be larger by rounding alone."""


def patch_layers(n_layers: int) -> tuple[int, ...]:
    """Return the layers that the paper patches from, scaled from its 48 layers to `n_layers`.

    >>> patch_layers(48), patch_layers(12), patch_layers(1)
    ((0, 1, 5, 10, 20), (0, 1, 2, 5), (0,))
    """
    scaled = {0, 1, *(round(layer * n_layers / 48) for layer in (5, 10, 20))}
    return tuple(sorted(layer for layer in scaled if layer < n_layers))


def extraction(
    model: Model,
    prompts: Prompts,
    *,
    blocked: Groups = (),
    patched: Sequence[int] = (),
    patched_groups: Groups = ("subject",),
    local: bool = False,
    normed: bool = False,
    token: TokenKind = "predicted",
    progress: bool = True,
) -> xr.Dataset:
    """Find the extraction events of every layer, also under interventions.

    Args:
        model: from `ecstruct.load`; it is not changed.
        prompts: as everywhere in ecstruct; interventions on the subject need prompts with subjects.
        blocked: groups of positions (`ecstruct.recall.groups`), each blocked on its own.
        patched: layers to patch from, each on its own, for example those of `patch_layers`.
        patched_groups: the groups that are patched from these layers, each on its own.
        local: change each layer alone, rather than all of them together.
        normed: apply the model's final norm to what a layer adds before its projection.
        token: the token to look for: the model's prediction, or the answer's first token.
        progress: show a progress bar.

    Returns:
        `attention` and `mlp` (condition, prompt, layer), whether there is an event. The conditions are
        "none", then for example "blocked subject", then "patched subject from 5". `token` (prompt) is the
        token that is looked for; `predicted` (prompt) says whether the model predicts the answer.

    Raises:
        InputError: an unknown token or position, a group that is empty in a prompt, a layer that does not
            exist, or a model whose attention cannot be masked.
    """
    if token not in get_args(TokenKind):
        raise InputError(f"token={token!r} is unknown: it is 'predicted' or 'answer'.")
    groups, patches = named(blocked) if blocked else {}, named(patched_groups) if patched else {}
    runs = Runs.of(model, prompts)
    n_layers = runs.view.n_layers
    if outside := [layer for layer in patched if layer not in range(n_layers)]:
        raise InputError(
            f"patched={list(patched)}: there is no layer {outside[0]}, but 0 to {n_layers - 1}."
        )
    # Each with the first layer that it changes.
    conditions: dict[str, tuple[int, Callable[[Run], Intervention]]] = {PLAIN: (0, lambda run: nothing)}
    for name, which in groups.items():
        conditions[f"blocked {name}"] = 0, partial(_blocking, runs.places(which), runs.places("last"))
    for name, which in patches.items():
        for layer in patched:
            condition = layer, partial(_patching, runs.places(which), layer)
            conditions[f"patched {name} from {layer}"] = condition
    shape = (len(conditions), len(runs.prompts), n_layers)
    events = {part: np.zeros(shape, dtype=bool) for part in PARTS}
    tokens, right = np.empty(len(runs.prompts), dtype=int), np.empty(len(runs.prompts), dtype=bool)
    unembedding = tokens_matrix(runs.session, "unembedding")

    def measure(run: Run) -> None:
        rows, embedded, answers = run.rows, run.embed(), run.batch.answer_ids[:, 0]
        entering, asked = [embedded.resid], answers
        for c, (start, intervention) in enumerate(conditions.values()):
            alone = local and c > 0
            written, left = _run(run, embedded.calls, entering, intervention(run), start, alone)
            if c == 0:  # every condition looks for the token of the plain run
                entering += left
                logits = runs.view.logits_at(runs.session.weights, left[-1], embedded.read)
                predicted = finite(logits, "the model's logits").argmax(-1)
                asked = predicted if token == "predicted" else answers
                right[rows], tokens[rows] = (predicted == answers).cpu(), asked.cpu()
            if normed:
                written = final_norm(runs.session, written)
            largest = _is_largest(written, asked.repeat(len(written) // len(rows)), unembedding)
            by_part = rearrange(largest, "(layer part b) -> part b layer", part=len(PARTS), b=len(rows))
            for part, found in zip(PARTS, by_part.cpu().numpy(), strict=True):
                events[part][c, rows, :start] = events[part][0, rows, :start]
                events[part][c, rows, start:] = found

    runs.each(measure, "extraction", progress)
    texts = runs.session.tokenizer.convert_ids_to_tokens(tokens.tolist())
    coordinates = {
        **runs.coordinates(),
        "condition": list(conditions),
        "layer": np.arange(n_layers),
        "token": ("prompt", [str(text) for text in texts]),
        "predicted": ("prompt", right),
    }
    options = {"blocked": list(groups), "patched": list(patched), "patched_groups": list(patches)}
    options |= {"local": local, "normed": normed, "token": token}
    attrs = {**runs.attrs("extraction", options), "parallel": runs.view.parallel}
    dims = ("condition", "prompt", "layer")
    return xr.Dataset({part: (dims, events[part]) for part in PARTS}, coordinates, attrs)


def extraction_rate(events: xr.Dataset) -> xr.DataArray:
    """Return the share of prompts with an event in a layer (part, condition, layer), in percent."""
    return _percent(_by_part(events).mean("prompt"), "extraction_rate")


def extracted(events: xr.Dataset) -> xr.DataArray:
    """Return the share of prompts with an event in any layer (part, condition), in percent. The part
    "either" counts prompts with events by attention or by MLP, "both" those with events by both."""
    any_layer = _by_part(events).any("layer")
    joint = [any_layer.any("part"), any_layer.all("part")]
    parts = [any_layer, *(j.expand_dims(part=[n]) for j, n in zip(joint, ("either", "both"), strict=True))]
    return _percent(xr.concat(parts, "part").mean("prompt"), "extracted")


def extracting_layers(events: xr.Dataset) -> xr.DataArray:
    """Return the number of layers with an event in each prompt (part, condition, prompt)."""
    return _by_part(events).sum("layer").rename("extracting_layers")


def first_extraction(events: xr.Dataset) -> xr.DataArray:
    """Return which part has the first event (condition, prompt): "attention", "mlp", "together" or "never".
    In one layer, attention comes before the MLP; in a model that runs them side by side, two events in the
    same layer are "together"."""
    by_part = _by_part(events)
    first = by_part.argmax("layer").where(by_part.any("layer"), by_part.sizes["layer"])
    attention, mlp = first.sel(part="attention", drop=True), first.sel(part="mlp", drop=True)
    earlier = xr.where(attention < mlp, "attention", "mlp")
    same = "together" if events.attrs["parallel"] else "attention"
    named_first = xr.where(attention == mlp, same, earlier)
    never = ~by_part.any(["layer", "part"])
    return xr.where(never, "never", named_first).rename("first_extraction")


def _by_part(events: xr.Dataset) -> xr.DataArray:
    return events[list(PARTS)].to_dataarray("part")


def _percent(share: xr.DataArray, name: str) -> xr.DataArray:
    return (100 * share).rename(name).assign_attrs(unit="%")


def _run(
    run: Run,
    calls: Sequence[BlockCall],
    entering: Sequence[Resid],
    intervention: Intervention,
    start: int,
    local: bool,
) -> tuple[Float[Tensor, "row d_model"], list[Resid]]:
    """Return what each layer from `start` on writes at the last position of each prompt (rows are layer by
    part by prompt), and what leaves it. `entering` is what enters each layer without the intervention."""
    written, left = [], []
    rows = torch.arange(len(run.rows), device=run.batch.read.device)
    for layer in range(start, len(calls)):
        resid = entering[layer] if local or layer == start else left[-1]
        (trace,) = traces(run.session, calls[: layer + 1], resid, intervention, layer)
        taps = [trace.taps[run.runs.written_by(layer, part)] for part in PARTS]
        written += [tap.output[rows, run.batch.read] for tap in taps]
        left.append(trace.output)
    return torch.cat(written), left


def _is_largest(
    written: Float[Tensor, "row d_model"],
    tokens: Int[Tensor, " row"],
    unembedding: Float[Tensor, "d_vocab d_model"],
) -> Bool[Tensor, " row"]:
    """Return whether a token is the largest in the projection of each row. Most rows have a larger one
    among the first of the vocabulary, and need no more of it."""
    own = (written * unembedding[tokens]).sum(-1)
    of_some = torch.cat([some.amax(-1) for some in projections(written, unembedding[:SOME])])
    may_be = of_some <= own + ROUNDING * (own.abs() + of_some.abs())
    largest = torch.zeros_like(may_be)
    if may_be.any():
        found = [logits.argmax(-1) for logits in projections(written[may_be], unembedding)]
        largest[may_be] = torch.cat(found) == tokens[may_be]
    return largest


def _blocking(sources: Places, last: Places, run: Run) -> Intervention:
    """Return the intervention that hides the sources from the last tokens of a batch, in all layers."""
    queries, keys = run.where(last), run.where(sources)
    edges = rearrange(queries, "batch query -> batch query 1") & rearrange(keys, "batch key -> batch 1 key")

    def blocked(step: Step) -> Step:
        mask = mask_of(step.call, len(edges))
        blind = ((is_closed(mask) | edges).all(-1) & queries).any(-1)
        for row, is_blind in zip(run.rows, blind.tolist(), strict=True):
            if is_blind:
                raise InputError(
                    f"with these tokens blocked, the last one of {run.runs.prompts[row].prompt.text!r} "
                    f"sees none at all in layer {step.layer}: block fewer."
                )
        return replace(step, call=with_mask(step.call, closing(mask, edges)))

    return blocked


def _patching(places: Places, layer: int, run: Run) -> Intervention:
    """Return the intervention that keeps tokens of a batch as they enter a layer."""
    where, early = run.where(places)[..., None], []

    def patched(step: Step) -> Step:
        if step.layer < layer:
            return step
        if not early:
            early.append(step.resid)
        return replace(step, resid=torch.where(where, early[0], step.resid))

    return patched
