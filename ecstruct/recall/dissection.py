"""Every part of the method on one model; finished parts are stored, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ecstruct.cost import Bar
from ecstruct.engine.plan import by_length
from ecstruct.engine.session import Model, Session
from ecstruct.facts.prompt import PromptsLike
from ecstruct.io.netcdf import Result
from ecstruct.io.store import FinishedPieces, Steps
from ecstruct.io.values import checksum
from ecstruct.models.provenance import versions
from ecstruct.recall.attention_knockout import GROUPS, knockout
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.enrichment import attributes_rate, peak, sublayer_knockout
from ecstruct.recall.extraction_events import extraction, patch_layers
from ecstruct.recall.groups import RecallPrompt
from ecstruct.recall.heads import extraction_heads
from ecstruct.recall.layer_readings import readings
from ecstruct.recall.runs import TokenKind, read
from ecstruct.recall.vocabulary import Onto

AT_ONCE = 32
"""How many prompts, or layers of heads, are stored together. An interruption loses at most that many."""


@dataclass(frozen=True)
class Dissection:
    """The results of one model. Without attributes there are no rates and no heads.

    The fields are what the functions of `ecstruct.recall` return: `knockout` (prompt, group, layer),
    `extraction` with `attention` and `mlp` (condition, prompt, layer), `readings` with `rank` (reading,
    prompt, layer), `rate` (prompt, position, layer),
    `sublayers` (part, prompt, layer) with a window of one layer, and `heads` with `share` (layer, head).
    """

    knockout: xr.DataArray
    extraction: xr.Dataset
    readings: xr.Dataset
    rate: xr.DataArray | None = None
    sublayers: xr.DataArray | None = None
    heads: xr.Dataset | None = None

    def parts(self) -> dict[str, xr.DataArray | xr.Dataset]:
        """Return the results that were computed, by field name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in found.items() if part is not None}


def dissect(
    model: Model,
    prompts: PromptsLike,
    attributes: Attributes | None = None,
    *,
    window: int | None = None,
    token: TokenKind = "predicted",
    onto: Onto = "unembedding",
    normed: bool = False,
    at_layer: int | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> Dissection:
    """Run every part of the method on one model.

    Args:
        model: from `ecstruct.load`; it is not changed.
        prompts: with subjects.
        attributes: of the subjects; without them, only knockout, extraction and readings run.
        window, token: as for `knockout`.
        onto: as for `attributes_rate`.
        normed: whether every projection on the vocabulary is of normed states, as for `attributes_rate`.
        at_layer: where sublayer knockout reads the attributes rate; by default where it is highest.
        folder: where finished parts are stored; parts found there are not computed again. Delete it when
            the result is saved.
        progress: show a progress bar.

    Raises:
        InputError: as the functions of `ecstruct.recall`; or `folder` holds parts of another run.
    """
    session = Session.of(model)
    options = {"window": window, "token": token, "onto": onto, "normed": normed}
    work = Work(session, read(session, prompts), attributes, options, folder)
    with Bar(work.steps, "recall", unit="step", disable=not progress) as bar:
        return work.run(bar, at_layer)


@dataclass
class Work:
    """The work on the model of a session, with the options of `dissect` that decide about numbers; the bar
    shows `name`."""

    session: Session
    prompts: list[RecallPrompt]
    attributes: Attributes | None
    options: Mapping[str, Any]
    folder: Path | None
    name: str = ""

    @property
    def steps(self) -> int:
        """The number of steps; one is about one run of `AT_ONCE` prompts through the model."""
        pieces = -(-len(self.prompts) // AT_ONCE)
        return pieces * sum(self._costs.values()) + (self.session.view.n_layers if self.attributes else 0)

    @property
    def _costs(self) -> dict[str, int]:
        """The steps of each part that goes through the prompts: at most so many runs of the model."""
        n_layers = self.session.view.n_layers
        patched = len(GROUPS) * len(patch_layers(n_layers))
        costs = {"attention knockout": 3, "extraction": 3 + patched, "readings": 2}
        if self.attributes is not None:
            costs |= {"attributes rate": 2, "sublayer knockout": n_layers + 2}
        return costs

    def run(self, bar: Bar, at_layer: int | None) -> Dissection:
        """Run the parts that are not stored yet, and return all of them."""
        session, attributes, n_layers = self.session, self.attributes, self.session.view.n_layers
        steps = Steps(bar, FinishedPieces(self.folder, self._identity(at_layer) if self.folder else {}))

        def pieces(part: str, things: Sequence[Any], dim: str, measure: Callable[..., Result]) -> Any:
            """Measure the things `AT_ONCE` at a time, and join the results."""
            bar.phase(f"{self.name}{part}")
            found = []
            for start in range(0, len(things), AT_ONCE):
                some = things[start : start + AT_ONCE]
                measured = partial(measure, some, progress=False)
                found.append(steps.take(f"{part} {start}", measured, self._costs.get(part, len(some))))
            return _joined(found, dim)

        def of_prompts(part: str, function: Callable[..., Result], *args: Any, **options: Any) -> Any:
            def measure(some: list[RecallPrompt], progress: bool) -> Result:
                return function(session, some, *args, **options, progress=progress)

            # Prompts of similar length together need little padding.
            order = by_length(self.prompts)
            found = pieces(part, [self.prompts[i] for i in order], "prompt", measure)
            return found.assign_coords(prompt=np.array(order)).sortby("prompt")

        token, onto, normed = (self.options[name] for name in ("token", "onto", "normed"))
        blocked = of_prompts("attention knockout", knockout, window=self.options["window"], token=token)
        conditions = {"blocked": ("subject", "non-subject"), "patched": patch_layers(n_layers)}
        conditions["patched_groups"] = GROUPS
        events = of_prompts("extraction", extraction, normed=normed, token=token, **conditions)
        read_off = of_prompts("readings", readings, normed=normed, token=token)
        if attributes is None:
            return Dissection(blocked, events, read_off)
        rate = of_prompts("attributes rate", attributes_rate, attributes, onto=onto, normed=normed)
        at = peak(rate.sel(position="subject-last").values) if at_layer is None else at_layer
        options = {"window": 1, "at_layer": at, "onto": onto, "normed": normed}
        sublayers = of_prompts("sublayer knockout", sublayer_knockout, attributes, **options)

        def heads(layers: Sequence[int], progress: bool) -> Result:
            options = {"normed": normed, "layers": layers, "progress": progress}
            return extraction_heads(session, self.prompts, attributes, **options)

        # A head costs one product whatever the number of prompts, so pieces are layers here.
        of_heads = pieces("extraction heads", range(n_layers), "layer", heads)
        return Dissection(blocked, events, read_off, rate, sublayers, of_heads)

    def _identity(self, at_layer: int | None) -> dict[str, str]:
        """Return what the numbers depend on, under names that are shown in error messages."""
        words = self.attributes and sorted((s, sorted(its)) for s, its in self.attributes.items())
        prompts = tuple(read.prompt for read in self.prompts)
        return {
            "the weights": self.session.described["fingerprint"],
            "the prompts": f"{len(prompts)} with checksum {checksum(prompts)}",
            "the attributes": checksum(words),
            **{name: str(value) for name, value in self.options.items()},
            "at_layer": str(at_layer),
            **{f"{name}'s version": found for name, found in versions().items()},
        }


def _joined(found: Sequence[Any], dim: str) -> Any:
    """Concatenate results of some prompts or layers each."""
    if len(found) == 1:
        return found[0]
    options: Any = {"data_vars": "minimal"} if isinstance(found[0], xr.Dataset) else {}
    for name in ("compat", "join", "combine_attrs"):
        options[name] = "override"
    return xr.concat(found, dim, coords="minimal", **options)
