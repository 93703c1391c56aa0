"""Experiments as cells, each computed once and kept, so that a run can be interrupted at any time.

An experiment is a function `measure(model, setup, seed=..., **cell) -> rows` and a list of cells, which are
its keyword arguments. `Sweep.run` calls it on every cell and returns all rows as one table. With a folder,
each cell is written when it is finished, whole or not at all: a killed run continues where it stopped, and
a finished one computes nothing. A process that receives SIGTERM finishes its current cell. Two `Sweep`s may
work in one folder at once on different experiments; one process computes each of these
(`ecstruct reproduce` locks its whole folder), and one makes what both need (rates, organisms) while the
other waits.

    DIR/setup.json               what all cells depend on; another setup is refused
    DIR/weights.json             fingerprints of the models; others are refused
    DIR/cells/NAME/*.json        the rows of each finished cell
    DIR/organisms/seed-*/        organisms other than the shipped one

An organism of another seed has its own learning rates. They are chosen when its first cell is computed,
from cells that are kept like any others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import InitVar, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct import organism as organisms
from ecstruct.errors import InputError
from ecstruct.experiments import choice
from ecstruct.experiments.setup import Setup
from ecstruct.io.files import locked, read_note, write_note
from ecstruct.io.interruption import finishing
from ecstruct.io.store import Damaged, FinishedPieces, read_json, save_json
from ecstruct.models.bridge import named_weights
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.loading import load

Cell = Mapping[str, Any]
"""The values that identify one piece of an experiment: JSON values by name, `seed` among them."""

Rows = Sequence[Mapping[str, Any]]

Folder = str | Path | None
"""The folder that keeps finished cells, if any."""


@dataclass
class Sweep:
    """The cells of a setup in their folder, and the model of the current seed.

    Raises:
        InputError: the folder `out` holds the cells of another setup or cannot be written; seeds of the
            organism need a folder and there is none.
    """

    setup: Setup
    out: InitVar[Folder] = None
    progress: bool = True
    folder: Path | None = field(init=False)
    _model: tuple[str, TransformerBridge] | None = field(default=None, init=False, repr=False)
    _setups: dict[int, Setup] = field(default_factory=dict, init=False, repr=False)
    _kept: FinishedPieces = field(init=False, repr=False)

    def __post_init__(self, out: Folder) -> None:
        self.folder = None if out is None else Path(out)
        if self.setup.model == "organism" and any(self.setup.seed_list) and self.folder is None:
            raise InputError(
                f"seeds={self.setup.seeds} needs organisms that are pretrained first: pass out=, a folder "
                "to keep them in."
            )
        # Cells depend neither on how many cells there are, nor on the device that computes them.
        decides = {k: v for k, v in self.setup.to_dict().items() if k not in ("seeds", "repeats", "device")}
        self._kept = FinishedPieces(self.folder, decides, note="setup.json")
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
        """Return the rows of all cells, each with the cell's own values in front.

        Args:
            source: the source of a cell's model; by default, the model of the cell's seed.
            setup_of: the setup of a seed's cells; by default `Sweep.setup_of`.
            wait: whether to wait for another process that computes cells of this experiment.
        """
        source = source or (lambda cell: self.source(cell["seed"]))
        setup_of = setup_of or self.setup_of
        files = {f"cells/{name}/{_slug(cell)}.json": cell for cell in cells}
        if len(files) < len(cells):
            raise InputError(f"two cells of {name} are the same: give every value once.")
        home = None if self.folder is None else self.folder / "cells" / name
        with ExitStack() as held:
            # If a cell is missing, take the lock before reading, to include what others computed meanwhile.
            all_there = home is None or all((home / Path(file).name).exists() for file in files)
            if home and not all_there:
                held.enter_context(locked(home / ".lock", of=home, wait=wait))
            kept = {file: self._read(file, cell) for file, cell in files.items()}
            missing = [file for file, rows in kept.items() if rows is None]
            if home and missing and all_there:  # some were damaged
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

    def rates(
        self,
        seeds: Sequence[int],
        factors: Sequence[float] = choice.FACTORS,
        what: Sequence[choice.Learnt] = choice.WHAT,
    ) -> pd.DataFrame:
        """Return the rows from which `ecstruct.experiments.choice` chooses the rates of some seeds."""
        cells = grid(self.setup, seed=seeds, repeat=range(choice.REPEATS), what=what, factor=factors)
        return self.run("rates", choice.measure, cells, setup_of=lambda seed: self.setup, wait=True)

    def setup_of(self, seed: int) -> Setup:
        """Return the setup with the learning rates of the seed's model."""
        if seed == 0 or not self.setup.own_rates:
            return self.setup
        if seed not in self._setups:
            chosen = choice.choose(self.rates([seed]), self.setup.rates)
            self._setups[seed] = replace(self.setup, rates=chosen, own_rates=False)
        return self._setups[seed]

    def model(self, source: str) -> TransformerBridge:
        """Load the model of a source; only the last one is kept in memory."""
        if self._model is None or self._model[0] != source:
            self._model = None  # free its memory before the next one is loaded
            model = load(source, device=self.setup.device)
            if self.folder is not None:
                _check_weights(self.folder, source, fingerprint(named_weights(model)))
            self._model = (source, model)
        return self._model[1]

    def source(self, seed: int) -> str:
        """Return the source of a seed's model; organisms are pretrained when they are first requested."""
        if self.setup.model != "organism" or seed == 0:
            return self.setup.model
        return str(self.organism(f"seed-{seed}", seed))

    def organism(
        self, name: str, seed: int, recipe: organisms.Recipe | None = None, snapshots: Sequence[int] = ()
    ) -> Path:
        """Return an organism's folder; pretrain it unless it exists, by default as the shipped one was.

        Cells are kept by seed and variant, not by all that a recipe says. So a folder is used again only
        for the recipe and the snapshots that it was made with.

        Raises:
            InputError: there is no folder to keep it in, or the one that exists has another recipe or lacks
                a snapshot.
        """
        if self.folder is None:
            raise InputError(f"the organism {name} is pretrained first: pass out=, a folder to keep it in.")
        home = self.folder / "organisms" / name
        options: dict[str, Any] = {} if recipe is None else {"recipe": recipe, "snapshots": snapshots}
        if not home.exists():
            with locked(home.with_name(f".{name}.lock"), wait=True):
                if not home.exists():
                    organisms.pretrain(home, seed=seed, progress=self.progress, **options)
        if recipe is not None:
            made = json.loads((home / "pretraining.json").read_text(encoding="utf-8"))["recipe"]
            if made != json.loads(json.dumps(asdict(recipe))):  # tuples as lists
                raise InputError(
                    f"{home} was pretrained with another recipe: choose another folder for out=."
                )
        for step in snapshots:
            if not snapshot(home, step).exists():
                raise InputError(f"{home} has no snapshot of step {step}: choose another folder for out=.")
        return home

    def _read(self, file: str, cell: Cell) -> Rows | None:
        def rows(path: Path) -> Rows:
            found = read_json(path)
            if found["cell"] != dict(cell):
                raise Damaged("it has the rows of another cell")
            return found["rows"]

        return self._kept.find(file, rows)

    def _write(self, file: str, cell: Cell, rows: Rows) -> Rows:
        """Write the rows and return them as they will be read: values that are not finite become None."""
        finite = [{key: _finite(value) for key, value in row.items()} for row in rows]
        self._kept.keep(file, save_json, {"cell": dict(cell), "rows": finite})
        return finite


def grid(setup: Setup, **axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Return all cells of a setup's seeds, its repeats and further axes; the last axis varies fastest.

    >>> grid(Setup(repeats=1), hop=["first-hop", "second-hop"])
    [{'seed': 0, 'repeat': 0, 'hop': 'first-hop'}, {'seed': 0, 'repeat': 0, 'hop': 'second-hop'}]
    """
    cells: list[dict[str, Any]] = [{}]
    for axis, values in {"seed": setup.seed_list, "repeat": range(setup.repeats), **axes}.items():
        cells = [{**cell, axis: value} for cell in cells for value in values]
    return cells


def snapshot(home: Path, step: int) -> Path:
    """Return the folder of the snapshot of an organism after `step` steps."""
    return home / "snapshots" / f"step-{step}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _slug(cell: Cell) -> str:
    """Return a readable file name that is different for different cells."""
    return "-".join(f"{key}={value}" for key, value in cell.items()).replace("/", "_").replace(" ", "_")


def _check_weights(folder: Path, source: str, found: str) -> None:
    """Raise unless the weights of `source` are those that the folder's cells were computed with."""
    path = folder / "weights.json"
    # A source inside the folder is noted relative to it, so that the folder can be moved.
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
