"""The base of all results: rows, a figure, a table beside the paper's, and a configuration to replay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
import plotly.graph_objects as go

from ecstruct.experiments.setup import Setup
from ecstruct.experiments.sweep import Rows, Sweep, grid


@dataclass(frozen=True)
class Result(ABC):
    """The measured result of one experiment.

    Attributes:
        setup: the setup that it was measured with.
        frame: one row per measured value or group of values, with the `seed` that it belongs to.
        options: the experiment's own arguments, in JSON types.
    """

    setup: Setup
    frame: pd.DataFrame
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    name: ClassVar[str]
    title: ClassVar[str]
    shows: ClassVar[str]  # what the figure shows, for captions
    lists: ClassVar[str] = "Ours beside the paper's; with several seeds, mean ± standard deviation."

    @classmethod
    def of(
        cls,
        measure: Callable[..., Rows],
        setup: Setup | None,
        out: str | Path | None,
        progress: bool,
        **axes: Sequence[Any],
    ) -> Self:
        """Run `measure` on every cell of the grid of the setup's seeds, its repeats and further `axes`."""
        setup = setup or Setup()
        sweep = Sweep(setup, None if out is None else Path(out), progress)
        return cls(setup, sweep.run(cls.name, measure, grid(setup, **axes)))

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that `ecstruct replay` runs again, in JSON types."""
        return {
            "command": "reproduce",
            "arguments": {
                "experiments": [self.name],
                "setup": self.setup.to_dict(),
                "options": {self.name: dict(self.options)},
            },
        }

    @property
    @abstractmethod
    def figure(self) -> go.Figure:
        """The figure of the paper, with our numbers."""

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """Return means with their standard deviations over seeds, beside the paper's numbers."""

    def figures(self) -> dict[str, go.Figure]:
        """Return all figures, keyed by their captions, the paper's first."""
        return {self.shows: self.figure}

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return all tables, keyed by their captions."""
        return {self.lists: self.table()}

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """Return the entries of `results.json`: means, standard deviations and values per seed."""

    @abstractmethod
    def conclusion(self) -> str:
        """Return the finding in a sentence or two, worded so that they hold for any outcome."""
