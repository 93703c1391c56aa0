"""Sublayer knockout: which sublayers enrich the subject.

What MLPs or attention layers write is cancelled in a window of consecutive layers, and the attributes rate
is read at a later layer of interest (Geva et al. 2023, section 5). Two ways of cancelling:

* "zero", the paper's definition: nothing is added to the residual stream at the position that is read;
* "uniform", as in the paper's published code: at all positions, attention sees all tokens that it may see
  alike (all edges are masked, which leaves the softmax nothing to choose by), and the neurons of MLPs are
  0, so that an MLP writes its bias and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

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
from ecstruct.models.edits import Edit
from ecstruct.models.sites import Written
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.enrichment import Reader
from ecstruct.recall.running import PARTS, Part, Runs, edges_alike, silenced
from ecstruct.recall.vocabulary import Onto

Mode = Literal["zero", "uniform"]


def sublayer_knockout(
    model: TransformerBridge,
    prompts: PromptsLike,
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
    """How much the attributes rate at a layer changes without the MLPs, or the attention, of some layers.

    Args:
        model, prompts, attributes, onto, normed, top, kept, progress: as for `attributes_rate`.
        at_layer: after which layer the rate is read; by default the one where its mean over prompts is
            highest.
        window: how many layers are cancelled together: layer l and those above it, up to `at_layer`. By
            default 10 of the 48 layers of the paper's model, that is about a fifth of the layers.
        parts: of "attention" and "mlp".
        mode: "zero" or "uniform", see above.
        position: the name of a group of one or more positions; over several it is the mean.

    Returns:
        The change of the rate (part, prompt, layer) in percentage points, `layer` being the first of the
        window, from 0 to `at_layer`. The coordinate `rate` (prompt) is the rate when nothing is cancelled.

    Raises:
        InputError: as `attributes_rate`; a layer that is not there, a window that does not fit into the
            layers, an unknown part or mode, a position that a prompt has not.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode={mode!r} is unknown: it is 'zero' or 'uniform'.")
    parts = (parts,) if isinstance(parts, str) else parts
    if not parts or set(parts) - set(PARTS):
        raise InputError(f"parts={list(parts)!r}: name 'attention', 'mlp' or both.")
    runs = Runs.of(model, prompts)
    reader = Reader(runs, attributes, top=top, kept=kept, normed=normed, onto=onto)
    n_layers = runs.view.n_layers
    width = max(1, round(n_layers * 10 / 48)) if window is None else window
    if not 1 <= width <= n_layers:
        raise InputError(f"window={width}: this model has {n_layers} layers, give 1 to {n_layers}.")
    if at_layer is not None and at_layer not in range(n_layers):
        raise InputError(f"at_layer={at_layer}: this model has the layers 0 to {n_layers - 1}.")
    places = runs.places(position)
    knockouts = _Knockouts(runs, reader, places, mode)
    with runs.still():
        rates = np.empty((len(runs.prompts), n_layers))
        for b, rows in enumerate(runs.rows):
            rates[rows] = knockouts.rates(b)
        at = peak(rates) if at_layer is None else at_layer
        without = np.empty((len(parts), len(runs.prompts), at + 1))
        total = without.shape[0] * without.shape[1] * without.shape[2]
        with tqdm(total=total, desc="sublayer knockout", disable=not progress) as bar:
            for b, rows in enumerate(runs.rows):
                for (p, first), changed in knockouts.all(b, parts, width, at):
                    without[p, rows, first] = changed
                    bar.update(len(rows))
    coordinates = {
        **runs.coordinates(),
        "part": list(parts),
        "layer": np.arange(at + 1),
        "rate": ("prompt", rates[:, at]),
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
    change = without - rates[None, :, at, None]
    return xr.DataArray(change, coordinates, ("part", "prompt", "layer"), "rate_change", attrs)


def peak(rates: np.ndarray) -> int:
    """The layer with the highest mean over prompts, of those that have a rate."""
    known = np.isfinite(rates)
    if not known.any():
        raise InputError(
            "no token of any projection is left without stop words and short ones: look at more with top=."
        )
    totals = np.where(known, rates, 0).sum(0)
    return int(np.argmax(np.where(known.any(0), totals / known.sum(0).clip(1), -1)))


@dataclass(frozen=True)
class _Knockouts:
    """Rates of one batch after another, with all updates and without some."""

    runs: Runs
    reader: Reader
    places: Sequence[Sequence[int]]
    mode: Mode

    def rates(self, b: int) -> np.ndarray:
        """The rates after every layer (prompt, layer), when nothing is cancelled."""
        resid, calls = self.runs.embed(b)
        where, rates = self.runs.where(b, self.places), []
        for layer, call in enumerate(calls):
            resid = self.runs.block(layer, call, resid).output
            rates.append(self._read(b, resid, where))
        return np.stack(rates, 1)

    def all(
        self, b: int, parts: Sequence[Part], window: int, at: int
    ) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """The rates after layer `at` (prompt), by part and first layer of the window."""
        resid, calls = self.runs.embed(b)
        where = self.runs.where(b, self.places)
        for first in range(at + 1):
            for p, part in enumerate(parts):
                changed = resid
                for layer in range(first, at + 1):
                    call, edits = calls[layer], {}
                    if layer < first + window:
                        call, edits = self._cancelling(part, layer, call, where)
                    changed = self.runs.block(layer, call, changed, **edits).output
                yield (p, first), self._read(b, changed, where)
            resid = self.runs.block(first, calls[first], resid).output

    def _read(self, b: int, resid: Tensor, where: Bool[Tensor, "batch pos"]) -> np.ndarray:
        rates = self.reader.read(b, resid, where)
        return np.array([of[its].mean() for of, its in zip(rates, where.cpu().numpy(), strict=True)])

    def _cancelling(
        self, part: Part, layer: int, call: BlockCall, where: Bool[Tensor, "batch pos"]
    ) -> tuple[BlockCall, dict[str, Mapping[str, Edit]]]:
        if self.mode == "zero":
            return call, {"outputs": {self.runs.written_by(layer, part): silenced(where)}}
        if part == "attention":
            return edges_alike(call, len(where)), {}
        # A mixture of experts has no neurons of its own to set to 0, and no bias.
        whole = isinstance(self.runs.view.block_sites[layer]["mlp.out"], Written)
        return call, {"outputs" if whole else "inputs": {"mlp.out": torch.zeros_like}}
