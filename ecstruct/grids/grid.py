"""A grid: models x learning rates x epochs x seeds x experiments, read from YAML.

models: [organism]
learning_rates: [1.0e-4, 3.0e-4, null]   # null: the known rates of the model
epochs: [4, 8]
seeds: [0, 1, 2]
experiments: [ocr, freezing]
repeats: 5                                # and any other field of a Setup
options:                                  # arguments of single experiments
  sensitivity: {words: novel}
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import yaml
from pydantic import Field
from yaml.composer import ComposerError

from ecstruct.errors import InputError
from ecstruct.experiments.reproduction import named
from ecstruct.experiments.setup import Rates, Setup
from ecstruct.io.values import Rate, Text, Whole, check, or_none

AXES = ("models", "learning_rates", "epochs", "seeds", "experiments")
LONGEST = 160
"""The longest name of a cell, in characters; file systems take 255, and programs append to it."""

MOST = 100_000
"""The largest number of cells of a grid."""

_LONGEST_FILE = 1_000_000
"""In characters. A much longer file is no grid, and parsing it would take minutes."""

_SET_BY_CELLS = {"model", "rates", "epochs", "seeds", "device"}
_TYPES: Mapping[str, Any] = {
    "models": list[Text],
    "learning_rates": list[or_none(Annotated[Rate, Field(gt=0)])],
    "epochs": list[Whole],
    "seeds": list[Whole],
    "experiments": list[Text],
    "options": or_none(dict[str, dict[str, Any]]),
}


@dataclass(frozen=True)
class Cell:
    """One point of a grid.

    Attributes:
        learning_rate: None for the rates that are known for the model.
    """

    model: str
    learning_rate: float | None
    epochs: int
    seed: int
    experiment: str

    @property
    def name(self) -> str:
        """A folder name: readable, and different for different cells.

        >>> Cell("organism", 1e-4, 8, 0, "ocr").name
        'organism-lr=0.0001-epochs=8-seed=0-ocr'
        """
        return _short(f"{self._setup_text()}-{self.experiment}")

    @property
    def setup_name(self) -> str:
        """The name without the experiment, which all experiments of one setup share."""
        return _short(self._setup_text())

    def _setup_text(self) -> str:
        lr = "known" if self.learning_rate is None else repr(self.learning_rate)
        # A quoted model contains no "=", so that no model's name can imitate another model with a suffix.
        return f"{quote(self.model, safe='@')}-lr={lr}-epochs={self.epochs}-seed={self.seed}"

    def columns(self) -> dict[str, Any]:
        """Return the cell's coordinates in the grid, for tables."""
        return asdict(self)


def _short(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST - 17]}-{digest}"


@dataclass(frozen=True)
class Grid:
    """The axes that a sweep runs over; every combination of their values is a cell.

    Attributes:
        fixed: further fields of the `Setup` of every cell.
        options: arguments of experiments, by the names of these.

    Raises:
        InputError: an axis that is empty or names a value twice, or a value that no cell can be run with.
    """

    experiments: Sequence[str]
    models: Sequence[str] = ("organism",)
    learning_rates: Sequence[float | None] = (None,)
    epochs: Sequence[int] = (8,)
    seeds: Sequence[int] = (0,)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for axis in AXES:
            values = tuple(getattr(self, axis))
            if not values:
                raise InputError(f"{axis} is empty: name at least one value, or leave it out.")
            if len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise InputError(f"{axis} names {twice} twice: once is enough.")
            object.__setattr__(self, axis, values)
        object.__setattr__(self, "experiments", tuple(named(self.experiments, self.options)))
        n_cells = math.prod(len(getattr(self, axis)) for axis in AXES)
        if n_cells > MOST:
            raise InputError(f"it has {n_cells:,} cells, and a grid at most {MOST:,}: make several of it.")
        for cell in self._covering_cells():
            self.setup(cell)

    def cells(self) -> list[Cell]:
        """Return all cells; the experiment varies fastest."""
        return [Cell(*point) for point in itertools.product(*(getattr(self, axis) for axis in AXES))]

    def _covering_cells(self) -> Iterator[Cell]:
        """Yield cells that cover every value, and every model with and without known learning rates."""
        axes = [getattr(self, axis) for axis in AXES]
        first = Cell(*(values[0] for values in axes))
        for name, values in zip(first.columns(), axes, strict=True):
            yield from (replace(first, **{name: value}) for value in values)
        for rate in {rate is None: rate for rate in self.learning_rates}.values():
            yield from (replace(first, model=model, learning_rate=rate) for model in self.models)

    def setup(self, cell: Cell, device: str | None = None) -> Setup:
        """Return the setup with which the experiment of a cell is run."""
        lr = cell.learning_rate
        return Setup.from_dict(
            {
                **self.fixed,
                "model": cell.model,
                "rates": None if lr is None else asdict(Rates.same(lr)),
                "epochs": cell.epochs,
                "seeds": [cell.seed],
                "device": device,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the grid as JSON types, in the form that YAML files have and `from_dict` reads."""
        axes = {axis: list(getattr(self, axis)) for axis in AXES}
        return {
            **axes,
            **self.fixed,
            "options": {name: dict(given) for name, given in self.options.items()},
        }

    @classmethod
    def from_dict(cls, given: Any) -> Grid:
        """Build a grid from what `to_dict` returns.

        Raises:
            InputError: an unknown key, a value of the wrong type, or any error of `Grid`.
        """
        if not isinstance(given, Mapping):
            raise InputError("it is no mapping: write keys as in `experiments: [ocr]`.")
        setup_fields = {each.name for each in fields(Setup)} - _SET_BY_CELLS
        known = [*AXES, "options", *sorted(setup_fields)]
        for key in given:
            if key not in known:
                raise InputError(f"there is no {key!r} in a grid: it takes {', '.join(known)}.")
        if "experiments" not in given:
            raise InputError("it names no experiments: add, for example, `experiments: [ocr]`.")
        check(given, _TYPES, "it")
        axes = {axis: given[axis] for axis in AXES if axis in given}
        if "learning_rates" in axes:
            axes["learning_rates"] = [rate and float(rate) for rate in axes["learning_rates"]]
        fixed = {key: value for key, value in given.items() if key in setup_fields}
        return cls(**axes, fixed=fixed, options=given.get("options") or {})

    @classmethod
    def read(cls, path: str | Path) -> Grid:
        """Read a grid from a YAML file.

        Raises:
            InputError: no such file, no YAML, or no grid; the message names the file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            if len(text) > _LONGEST_FILE:
                raise InputError(f"it has {len(text)} characters, and a grid at most {_LONGEST_FILE}.")
            return cls.from_dict(yaml.load(text, _Loader))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except OSError as error:
            raise InputError(
                f"cannot read {path} ({error.strerror or error}): name a YAML file."
            ) from error
        except (yaml.YAMLError, ValueError) as error:  # a number or a date that Python cannot hold
            said = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"{path} is no YAML: {said[:500]}.") from error
        except RecursionError as error:
            raise InputError(f"{path} is nested too deeply: write a flat mapping.") from error


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, one of which would be lost, and aliases, a few lines of which can expand to
    more than fits into memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            name = self.peek_event().anchor
            raise ComposerError(None, None, f"*{name} stands for something else: write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice")
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
"""A number that YAML 1.1 reads as text: 1e-4, unlike 1.0e-4."""

_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
