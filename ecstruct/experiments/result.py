"""What every experiment returns: its rows, a figure, a table beside the paper's, and how to do it again."""

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
    """One result of the paper, measured.

    Attributes:
        setup: what it was measured with.
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
        """Measure on every cell of a grid: the setup's seeds and repeats by further `axes`."""
        setup = setup or Setup()
        sweep = Sweep(setup, None if out is None else Path(out), progress)
        return cls(setup, sweep.run(cls.name, measure, grid(setup, **axes)))

    @property
    def config(self) -> dict[str, Any]:
        """What `ecstruct replay` runs again, in JSON types."""
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
        """Means, with their standard deviations over seeds, beside the paper's numbers."""

    def figures(self) -> dict[str, go.Figure]:
        """All figures by what they show, the paper's first."""
        return {self.shows: self.figure}

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables by what they show."""
        return {self.lists: self.table()}

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """Its entries of `results.json`: means, standard deviations and values per seed."""

    @abstractmethod
    def conclusion(self) -> str:
        """What was found, in a sentence or two that hold whatever it was."""
