"""What every experiment is: options, cells that are measured, and a result to show, to keep and to replay.

An experiment is a function that `experiment` decorates. It runs a `measure` on its cells and returns a
`Result`: rows, a figure, a table beside the paper's, and a configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from inspect import cleandoc, signature
from typing import Any, ClassVar, Self, TypeVar, cast, get_type_hints

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ecstruct.experiments.setup import Setup
from ecstruct.experiments.sweep import Folder, Rows, Sweep, grid
from ecstruct.io.values import check

_SETUP = "    setup: the model and how it is finetuned; the organism by default.\n"
_OTHERS = (
    "    out: a folder that keeps finished cells, so that an interrupted run continues where it stopped.\n"
    "    progress: show progress bars.\n"
)
_ERRORS = "    InputError: a model or folder that cannot be used.\n"

_OF_ALL = ("setup", "out", "progress", "recipe", "return")
"""What the signatures of experiments name besides options."""


@dataclass(frozen=True)
class Result(ABC):
    """The measured result of one experiment. A subclass is a dataclass only if it has fields of its own.

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
        out: Folder,
        progress: bool,
        **axes: Sequence[Any],
    ) -> Self:
        """Run `measure` on every cell of the grid of the setup's seeds, its repeats and further `axes`."""
        sweep = Sweep(setup or Setup(), out, progress)
        return cls(sweep.setup, sweep.run(cls.name, measure, grid(sweep.setup, **axes)))

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


Run = TypeVar("Run", bound=Callable[..., Result])


def experiment(run: Run) -> Run:
    """Check the options of an experiment when it is called, and record them in its result.

    Options are those of `option_types`. A recipe is none, as a configuration cannot have it. The result
    records one that is not the default, so that a replay refuses it instead of measuring other organisms.
    """
    run.__doc__ = explained(cleandoc(run.__doc__ or ""))

    @wraps(run)
    def checked(*args: Any, **named: Any) -> Result:
        bound = signature(run).bind(*args, **named)
        bound.apply_defaults()
        types = option_types(run)
        for name in types:
            bound.arguments[name] = _in_json_types(bound.arguments[name])
        check(bound.arguments, types, run.__name__)
        result = run(*bound.args, **bound.kwargs)
        options = {name: bound.arguments[name] for name in types}
        recipe = bound.arguments.get("recipe")
        if recipe is not None and recipe != type(recipe)():
            options["recipe"] = asdict(recipe)
        return replace(result, options=options)

    return cast(Run, checked)


def _in_json_types(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple | range) else value


def explained(docstring: str) -> str:
    """Return the docstring of an experiment with the arguments that all have around its own, and with the
    errors of all unless it names its own."""
    text, _, own = docstring.partition("\n\nArgs:\n")
    own, _, errors = own.partition("\n\nRaises:\n")
    setup = "" if "    setup:" in own else _SETUP
    arguments = f"{setup}{own}{own and chr(10)}{_OTHERS}"
    return f"{text}\n\nArgs:\n{arguments}\nRaises:\n{errors or _ERRORS}"


def option_types(run: Callable[..., Result]) -> dict[str, Any]:
    """Return the types of an experiment's options: its arguments that only this experiment has."""
    hints = get_type_hints(run, include_extras=True)
    return {name: of for name, of in hints.items() if name not in _OF_ALL}
