"""Attribute extraction: which layers write the prediction at the last position, by attention or by MLP.

Let a_l be what the attention of layer l adds to the residual stream at the last position, m_l what its MLP
adds (both after a post-norm, if there is one), and E the unembedding. There is an *extraction event* in
layer l when the largest entry of E a_l, or of E m_l, is that of the token the model predicts (Geva et al.
2023, section 6). The extraction rate of a layer is the share of prompts with an event in it.

Under an intervention, the token is still the one that is predicted without:

* blocked: the attention edges to the last position from some others are masked before the softmax, in every
  layer, on top of what the model masks itself;
* patched from l: the subject's tokens stay as they are when they enter layer l (0: their embeddings) for
  all later layers, so that others see subjects that are not enriched any further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.models.calls import BlockCall
from ecstruct.models.finite import finite
from ecstruct.models.provenance import tokenizer_of
from ecstruct.recall.blocking import TokenKind
from ecstruct.recall.groups import named
from ecstruct.recall.masks import is_closed, mask_of
from ecstruct.recall.running import PARTS, Runs, edges_blocked
from ecstruct.recall.vocabulary import Vocabulary

PLAIN = "none"
"""The name of the condition without an intervention."""


def patch_layers(n_layers: int) -> tuple[int, ...]:
    """The layers that the paper patches from, scaled from its 48 to so many.

    >>> patch_layers(48), patch_layers(12), patch_layers(1)
    ((0, 1, 5, 10, 20), (0, 1, 2, 5), (0,))
    """
    scaled = {0, 1, *(round(layer * n_layers / 48) for layer in (5, 10, 20))}
    return tuple(sorted(layer for layer in scaled if layer < n_layers))


def extraction(
    model: TransformerBridge,
    prompts: PromptsLike,
    *,
    blocked: str | Sequence[str] = (),
    patched: Sequence[int] = (),
    token: TokenKind = "predicted",
    progress: bool = True,
) -> xr.Dataset:
    """The extraction events of every layer, also under interventions.

    Args:
        model: from `ecstruct.load`; not changed.
        prompts: as everywhere in ecstruct; with subjects where an intervention is on these.
        blocked: names of groups of positions (`ecstruct.recall.groups`), each blocked on its own.
        patched: layers to patch the subject from, each on its own, as of `patch_layers`.
        token: the one to look for: the model's prediction, or the answer's first token.
        progress: show a progress bar.

    Returns:
        `attention` and `mlp` (condition, prompt, layer), whether there is an event. Conditions are "none",
        then as "blocked subject", then as "patched from 5". `token` (prompt) is the one looked for, and
        `predicted` (prompt) whether the model predicts the answer.

    Raises:
        InputError: an unknown token or position, a group that is empty in a prompt, a layer that is not
            there, or a model whose attention cannot be masked.
    """
    if token not in get_args(TokenKind):
        raise InputError(f"token={token!r} is unknown: it is 'predicted' or 'answer'.")
    groups = named(blocked) if blocked else {}
    runs = Runs.of(model, prompts)
    n_layers = runs.view.n_layers
    if outside := [layer for layer in patched if layer not in range(n_layers)]:
        raise InputError(
            f"patched={list(patched)}: there is no layer {outside[0]}, but 0 to {n_layers - 1}."
        )
    sources = {name: runs.places(which) for name, which in groups.items()}
    subject = runs.places("subject") if patched else []
    conditions = [PLAIN, *(f"blocked {g}" for g in groups), *(f"patched from {p}" for p in patched)]
    events = {part: np.zeros((len(conditions), len(runs.prompts), n_layers), dtype=bool) for part in PARTS}
    tokens, right = np.empty(len(runs.prompts), dtype=int), np.empty(len(runs.prompts), dtype=bool)
    with runs.still(), tqdm(total=len(runs.rows) * len(conditions), disable=not progress) as bar:
        bar.set_description("extraction")
        run = _Run(runs)
        for b, rows in enumerate(runs.rows):
            blocks = [None, *(runs.where(b, its) for its in sources.values()), *[None] * len(patched)]
            patches = [None] * (1 + len(groups)) + [(layer, runs.where(b, subject)) for layer in patched]
            found = []
            for block, patch in zip(blocks, patches, strict=True):
                found.append(run.largest(b, block, patch))
                bar.update()
            predicted, answer = found[0][1], runs.batches[b].answer_ids[:, 0].cpu().numpy()
            right[rows] = predicted == answer
            tokens[rows] = predicted if token == "predicted" else answer
            for c, (largest, _) in enumerate(found):
                for part in PARTS:
                    events[part][c, rows] = largest[part] == tokens[rows, None]
    texts = tokenizer_of(model).convert_ids_to_tokens(tokens.tolist())
    coordinates = {
        **runs.coordinates(),
        "condition": conditions,
        "layer": np.arange(n_layers),
        "token": ("prompt", [str(text) for text in texts]),
        "predicted": ("prompt", right),
    }
    options = {"blocked": list(groups), "patched": list(patched), "token": token}
    attrs = {**runs.attrs("extraction", options), "parallel": runs.view.parallel}
    dims = ("condition", "prompt", "layer")
    return xr.Dataset({part: (dims, events[part]) for part in PARTS}, coordinates, attrs)


def extraction_rate(events: xr.Dataset) -> xr.DataArray:
    """The share of prompts with an event in a layer (part, condition, layer), in percent."""
    return _percent(_by_part(events).mean("prompt"), "extraction_rate")


def extracted(events: xr.Dataset) -> xr.DataArray:
    """The share of prompts with an event in any layer (part, condition), in percent; the part "either" is
    that by attention or MLP, "both" that by both."""
    any_layer = _by_part(events).any("layer")
    joint = [any_layer.any("part"), any_layer.all("part")]
    parts = [any_layer, *(j.expand_dims(part=[n]) for j, n in zip(joint, ("either", "both"), strict=True))]
    return _percent(xr.concat(parts, "part").mean("prompt"), "extracted")


def first_extraction(events: xr.Dataset) -> xr.DataArray:
    """Which part has the first event (condition, prompt): "attention", "mlp", "together" where both have it
    in the same layer of a model that runs them side by side, or "never". Elsewhere, attention comes before
    the MLP of its layer."""
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


class _Run:
    """Which token each update at the last position has most of."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self._vocabulary = Vocabulary.of(runs.view, runs.weights)

    def largest(
        self,
        b: int,
        block: Bool[Tensor, "batch pos"] | None,
        patch: tuple[int, Bool[Tensor, "batch pos"]] | None,
    ) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
        """By part, the largest token of what each layer writes (batch, layer), and of the logits
        (batch)."""
        runs, batch = self.runs, self.runs.batches[b]
        rows = torch.arange(len(batch.ids), device=batch.ids.device)
        last = torch.zeros_like(batch.ids, dtype=torch.bool)
        last[rows, batch.last] = True
        resid, calls = runs.embed(b)
        early: Tensor | None = None
        largest: dict[str, list[Tensor]] = {part: [] for part in PARTS}
        for layer, call in enumerate(calls):
            if patch is not None and layer >= patch[0]:
                early = resid if early is None else early
                resid = torch.where(patch[1][..., None], early, resid)
            if block is not None:
                call = edges_blocked(call, last, block)
                self._check_sighted(call, b, layer)
            trace = runs.block(layer, call, resid)
            for part in PARTS:
                written = trace.taps[runs.written_by(layer, part)].output[rows, batch.last]
                largest[part].append(self._vocabulary.project(written).argmax(-1))
            resid = trace.output
        logits = finite(runs.view.logits_at(runs.weights, resid, batch.last), "the model's logits")
        by_part = {part: torch.stack(found, 1).cpu().numpy() for part, found in largest.items()}
        return by_part, logits.argmax(-1).cpu().numpy()

    def _check_sighted(self, call: BlockCall, b: int, layer: int) -> None:
        """Raise `InputError` if a last position has nothing left to see, and a softmax over nothing."""
        last = self.runs.batches[b].last
        blind = is_closed(mask_of(call, len(last)))[torch.arange(len(last)), last].all(-1)
        for row, is_blind in zip(self.runs.rows[b], blind.tolist(), strict=True):
            if is_blind:
                raise InputError(
                    f"with these tokens blocked, the last one of {self.runs.prompts[row].prompt.text!r} "
                    f"sees none at all in layer {layer}: block fewer."
                )
