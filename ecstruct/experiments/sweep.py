"""Runs that survive: an experiment as cells, each computed once and kept.

An experiment is a function `measure(model, setup, seed=..., **cell) -> rows` and a list of cells, its
keyword arguments. `sweep` runs it on every cell and returns all rows as one table. With a folder, a
cell is written when it is finished, whole or not at all, so that a run that is killed goes on where
it was, and one that is done computes nothing. A process that is asked to end by SIGTERM finishes the
cell that it is at. Two `Sweep`s may work in one folder at once, on different experiments: each of these is
one process's (the folders that `ecstruct reproduce` writes are, as a whole), and what both need (rates,
organisms) is made by one while the other waits.

    DIR/setup.json               what all cells depend on; another setup is refused
    DIR/weights.json             fingerprints of the models; others are refused
    DIR/cells/NAME/*.json        the rows of each finished cell
    DIR/organisms/seed-*/        organisms other than the shipped one

An organism of its own has learning rates of its own: they are chosen when its first cell is computed, from
cells that are kept like any others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.experiments import choice
from ecstruct.experiments.setup import Setup
from ecstruct.io.files import locked, read_note, write_note
from ecstruct.io.interruption import finishing
from ecstruct.io.store import Damaged, Kept, read_json, save_json
from ecstruct.models.bridge import named_weights
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.load import load

Cell = Mapping[str, Any]
"""What tells one piece of an experiment from the others: JSON values by name, `seed` among them."""

Rows = Sequence[Mapping[str, Any]]


@dataclass
class Sweep:
    """Where the cells of a setup are kept, and the model of the seed that is at work.

    Raises:
        InputError: `folder` holds the cells of another setup or cannot be written; seeds of the organism
            need a folder and there is none.
    """

    setup: Setup
    folder: Path | None = None
    progress: bool = True
    _model: tuple[str, TransformerBridge] | None = field(default=None, init=False, repr=False)
    _setups: dict[int, Setup] = field(default_factory=dict, init=False, repr=False)
    _kept: Kept = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.setup.model == "organism" and any(self.setup.seed_list) and self.folder is None:
            raise InputError(
                f"seeds={self.setup.seeds} needs organisms that are pretrained first: pass out=, a folder "
                "to keep them in."
            )
        # Cells depend neither on how many there are, nor on where they are computed.
        decides = {k: v for k, v in self.setup.to_dict().items() if k not in ("seeds", "repeats", "device")}
        self.folder = None if self.folder is None else Path(self.folder)
        self._kept = Kept(self.folder, decides, note="setup.json")
        self._kept.claim()

    def run(
        self,
        name: str,
        measure: Callable[..., Rows],
        cells: Sequence[Cell],
        source: Callable[[Cell], str] | None = None,
        *,
        setup_of: Callable[[int], Setup] | None = None,
        wait: bool = False,
    ) -> pd.DataFrame:
        """The rows of all cells, each with the cell's own values in front.

        Args:
            source: where the model of a cell comes from; by default it is that of the cell's seed.
            setup_of: the setup of the cells of a seed; by default `Sweep.setup_of`.
            wait: whether to wait for another process that computes cells of this experiment.
        """
        source, setup_of = source or self._source_of, setup_of or self.setup_of
        files = {f"cells/{name}/{_slug(cell)}.json": cell for cell in cells}
        if len(files) < len(cells):
            raise InputError(f"two cells of {name} are the same: give every value once.")
        home = None if self.folder is None else self.folder / "cells" / name
        with ExitStack() as held:
            # Nobody writes where all are finished; what others computed meanwhile is read.
            all_there = home is None or all((home / Path(file).name).exists() for file in files)
            if home and not all_there:
                held.enter_context(locked(home / ".lock", of=home, wait=wait))
            kept = {file: self._read(file, cell) for file, cell in files.items()}
            missing = [file for file, rows in kept.items() if rows is None]
            if home and missing and all_there:  # damaged ones
                held.enter_context(locked(home / ".lock", of=home, wait=wait))
            setups = {seed: setup_of(seed) for seed in dict.fromkeys(files[f]["seed"] for f in missing)}
            bar = tqdm(missing, desc=name, unit="cell", disable=not (self.progress and missing))
            for file in bar:
                bar.set_postfix_str(Path(file).stem)
                cell = files[file]
                model = self.model(source(cell))
                with finishing():
                    kept[file] = self._write(file, cell, measure(model, setups[cell["seed"]], **cell))
        return pd.DataFrame({**cell, **row} for file, cell in files.items() for row in kept[file] or ())

    def rates(self, seeds: Sequence[int], factors: Sequence[float] = choice.FACTORS) -> pd.DataFrame:
        """The rows from which the rates of some seeds are chosen, by `ecstruct.experiments.choice`."""
        cells = grid(self.setup, seed=seeds, repeat=range(choice.REPEATS), what=choice.WHAT, factor=factors)
        return self.run("rates", choice.measure, cells, setup_of=lambda seed: self.setup, wait=True)

    def setup_of(self, seed: int) -> Setup:
        """The setup with the learning rates of the seed's model."""
        if seed == 0 or not self.setup.own_rates:
            return self.setup
        if seed not in self._setups:
            chosen = choice.choose(self.rates([seed]))
            self._setups[seed] = replace(self.setup, rates=chosen, own_rates=False)
        return self._setups[seed]

    def model(self, source: str) -> TransformerBridge:
        """The model of a source; only the last one is kept in memory."""
        if self._model is None or self._model[0] != source:
            self._model = None  # before the next one takes its memory
            model = load(source, device=self.setup.device)
            if self.folder is not None:
                _check_weights(self.folder, source, fingerprint(named_weights(model)))
            self._model = (source, model)
        return self._model[1]

    def source(self, seed: int) -> str:
        """Where the model of a seed comes from; organisms are pretrained when they are first asked for."""
        if self.setup.model != "organism" or seed == 0:
            return self.setup.model
        return str(self.organism(f"seed-{seed}", seed))

    def _source_of(self, cell: Cell) -> str:
        return self.source(cell["seed"])

    def organism(self, name: str, seed: int, **options: Any) -> Path:
        """The folder of an organism, pretrained with the options of `ecstruct.organism.pretrain`
        unless it is there.

        Raises:
            InputError: there is no folder to keep it in.
        """
        from ecstruct.organism import pretrain  # nothing but the organism needs it

        if self.folder is None:
            raise InputError(f"the organism {name} is pretrained first: pass out=, a folder to keep it in.")
        home = self.folder / "organisms" / name
        if not home.exists():
            with locked(home.with_name(f".{name}.lock"), wait=True):
                if not home.exists():
                    pretrain(home, seed=seed, progress=self.progress, **options)
        return home

    def _read(self, file: str, cell: Cell) -> Rows | None:
        def rows(path: Path) -> Rows:
            found = read_json(path)
            if found["cell"] != dict(cell):
                raise Damaged("it has the rows of another cell")
            return found["rows"]

        return self._kept.find(file, rows)

    def _write(self, file: str, cell: Cell, rows: Rows) -> Rows:
        """The rows as they will be read again: what is not finite is missing."""
        finite = [{key: _finite(value) for key, value in row.items()} for row in rows]
        self._kept.keep(file, save_json, {"cell": dict(cell), "rows": finite})
        return finite


def grid(setup: Setup, **axes: Sequence[Any]) -> list[dict[str, Any]]:
    """All cells of a setup's seeds, its repeats and further axes, the last one fastest.

    >>> grid(Setup(repeats=1), hop=["first-hop", "second-hop"])
    [{'seed': 0, 'repeat': 0, 'hop': 'first-hop'}, {'seed': 0, 'repeat': 0, 'hop': 'second-hop'}]
    """
    cells: list[dict[str, Any]] = [{}]
    for axis, values in {"seed": setup.seed_list, "repeat": range(setup.repeats), **axes}.items():
        cells = [{**cell, axis: value} for cell in cells for value in values]
    return cells


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _slug(cell: Cell) -> str:
    """A name: readable, and different for different cells."""
    return "-".join(f"{key}={value}" for key, value in cell.items()).replace("/", "_").replace(" ", "_")


def _check_weights(folder: Path, source: str, found: str) -> None:
    """The cells of a folder are those of one set of weights per seed."""
    path = folder / "weights.json"
    # What is in the folder moves with it.
    inside = Path(source).is_relative_to(folder)
    key = Path(source).relative_to(folder).as_posix() if inside else source
    with locked(folder / ".weights.lock", wait=True):
        known = read_note(path, dict[str, str], "choose another folder") or {}
        if known.setdefault(key, found) != found:
            raise InputError(
                f"the weights of {source} are not those that {folder} was begun with: choose another "
                "folder."
            )
        write_note(path, known)
