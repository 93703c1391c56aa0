"""Every part of the method on one model, prompt by prompt: what is finished is kept, and gone on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import xxhash
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.cost import Bar
from ecstruct.facts.prompt import Prompt, PromptsLike, as_prompts
from ecstruct.io.netcdf import Result
from ecstruct.io.store import Kept, Steps
from ecstruct.models.bridge import named_weights
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.provenance import versions
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.blocking import TokenKind
from ecstruct.recall.enrichment import attributes_rate
from ecstruct.recall.extraction import extraction, patch_layers
from ecstruct.recall.heads import extraction_heads
from ecstruct.recall.knockout import knockout
from ecstruct.recall.sublayers import peak, sublayer_knockout
from ecstruct.recall.vocabulary import Onto

AT_ONCE = 8
"""Prompts, or layers of heads, that are kept together: what an interruption costs."""


@dataclass(frozen=True)
class Dissection:
    """What is found of one model. Without attributes there are no rates and no heads.

    `knockout` (prompt, group, layer), `extraction` with `attention` and `mlp` (condition, prompt, layer),
    `rate` (prompt, position, layer), `sublayers` (part, prompt, layer), one layer at a time, and `heads`
    with `share` (layer, head): as the functions of these names in `ecstruct.recall` return them.
    """

    knockout: xr.DataArray
    extraction: xr.Dataset
    rate: xr.DataArray | None = None
    sublayers: xr.DataArray | None = None
    heads: xr.Dataset | None = None

    def parts(self) -> dict[str, xr.DataArray | xr.Dataset]:
        """What there is, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in found.items() if part is not None}


def dissect(
    model: TransformerBridge,
    prompts: PromptsLike,
    attributes: Attributes | None = None,
    *,
    window: int | None = None,
    token: TokenKind = "predicted",
    onto: Onto = "unembedding",
    at_layer: int | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> Dissection:
    """Every part of the method on one model.

    Args:
        model: from `ecstruct.load`; it is not changed.
        prompts: with subjects.
        attributes: of the subjects; none for knockout and extraction alone.
        window, token: as for `knockout`.
        onto: as for `attributes_rate`.
        at_layer: where sublayer knockout reads the attributes rate; where it is highest by default.
        folder: where finished parts are kept; what is there already is not computed again. Delete it when
            the result is safe.
        progress: show a progress bar.

    Raises:
        InputError: as the functions of `ecstruct.recall`; `folder` holds parts of another run.
    """
    work = Work(model, as_prompts(prompts), attributes, window, token, onto, folder)
    with Bar(work.steps, "recall", unit="step", disable=not progress) as bar:
        return work.run(bar, at_layer)


@dataclass
class Work:
    """What there is to do on one model, whose `name` the bar shows."""

    model: TransformerBridge
    prompts: Sequence[Prompt]
    attributes: Attributes | None
    window: int | None
    token: TokenKind
    onto: Onto
    folder: Path | None
    name: str = ""

    @property
    def steps(self) -> int:
        """Of the bar: runs of some prompts through the model, about."""
        n, layers = -(-len(self.prompts) // AT_ONCE), len(self.model.blocks)
        costs = self._costs
        return n * sum(costs.values()) + (layers if self.attributes else 0)

    @property
    def _costs(self) -> dict[str, int]:
        """Of each part that goes through the prompts, in runs of the model, at most."""
        layers = len(self.model.blocks)
        costs = {"attention knockout": 3, "extraction": 3 + len(patch_layers(layers))}
        if self.attributes is not None:
            costs |= {"attributes rate": 2, "sublayer knockout": layers + 2}
        return costs

    def run(self, bar: Bar, at_layer: int | None) -> Dissection:
        """All parts, or what is left of them."""
        of_all: dict[str, Any] = {"progress": False}
        of_both = {"token": self.token, **of_all}
        early = patch_layers(len(self.model.blocks))
        model, attributes, onto = self.model, self.attributes, self.onto
        steps = Steps(bar, Kept(self.folder, self._identity(at_layer) if self.folder else {}))

        def each(part: str, measure: Callable[[Sequence[Prompt]], Result]) -> Any:
            bar.phase(f"{self.name}{part}")
            found = []
            for start in range(0, len(self.prompts), AT_ONCE):
                some = self.prompts[start : start + AT_ONCE]
                found.append(steps.take(f"{part} {start}", partial(measure, some), self._costs[part]))
            together = _joined(found, "prompt")
            return together.assign_coords(prompt=np.arange(together.sizes["prompt"]))

        blocked = each(
            "attention knockout", lambda some: knockout(model, some, window=self.window, **of_both)
        )
        events = each(
            "extraction",
            lambda some: extraction(
                model, some, blocked=("subject", "non-subject"), patched=early, **of_both
            ),
        )
        if attributes is None:
            return Dissection(blocked, events)
        rate = each(
            "attributes rate", lambda some: attributes_rate(model, some, attributes, onto=onto, **of_all)
        )
        at = peak(rate.sel(position="subject-last").values) if at_layer is None else at_layer
        sublayers = each(
            "sublayer knockout",
            lambda some: sublayer_knockout(
                model, some, attributes, window=1, at_layer=at, onto=onto, **of_all
            ),
        )
        bar.phase(f"{self.name}extraction heads")
        # One product per head, whatever the number of prompts: it is layers that these are cut into.
        heads, n_layers = [], len(model.blocks)
        for start in range(0, n_layers, AT_ONCE):
            layers = range(start, min(start + AT_ONCE, n_layers))
            measure = partial(
                extraction_heads, model, self.prompts, attributes, layers=layers, progress=False
            )
            heads.append(steps.take(f"extraction heads {start}", measure, len(layers)))
        of_heads = _joined(heads, "layer")
        assert isinstance(of_heads, xr.Dataset)
        return Dissection(blocked, events, rate, sublayers, of_heads)

    def _identity(self, at_layer: int | None) -> dict[str, str]:
        """What the numbers depend on, by names that are fit for a message."""
        words = self.attributes and sorted((s, sorted(its)) for s, its in self.attributes.items())
        return {
            "the weights": fingerprint(named_weights(self.model)),
            "the prompts": f"{len(self.prompts)} with checksum {_checksum(tuple(self.prompts))}",
            "the attributes": _checksum(words),
            "window": str(self.window),
            "token": self.token,
            "onto": self.onto,
            "at_layer": str(at_layer),
            **{f"{name}'s version": found for name, found in versions().items()},
        }


def _checksum(value: Any) -> str:
    return xxhash.xxh3_64_hexdigest(repr(value).encode())


def _joined(found: Sequence[Any], dim: str) -> Any:
    """Results of some prompts or layers each as one of all."""
    if len(found) == 1:
        return found[0]
    options: Any = {
        "coords": "minimal",
        "compat": "override",
        "join": "override",
        "combine_attrs": "override",
    }
    if isinstance(found[0], xr.Dataset):
        options["data_vars"] = "minimal"
    return xr.concat(found, dim, **options)
