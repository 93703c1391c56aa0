"""Sweeps over grids: cells are jobs that may die, and a rerun computes what is missing and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.jobs import Here, states
from helpers.processes import holding

from ecstruct.errors import InputError
from ecstruct.experiments import Setup
from ecstruct.experiments.sweep import Sweep
from ecstruct.grids import Grid, cell, sweep
from ecstruct.grids.cell import KILLED, CellFiles, run_cell
from ecstruct.io.files import exclusive, locked
from ecstruct.io.interruption import Terminated

TWO = {"learning_rates": [1e-4, 3e-4], "epochs": [1], "experiments": ["ocr"], "repeats": 1}


class Measured:
    """Stands for the result of an experiment."""

    def __init__(self, setup: Setup, name: str) -> None:
        self.frame = pd.DataFrame({"seed": [0, 0], "epochs": [1, 2], "value": [0.5, float("nan")]})
        value = 1e4 * setup.rates.first_hop + setup.seed_list[0]
        self._results = {name: {"facts": {"mean": value, "std": None, "seeds": [value]}}}
        self.config: dict[str, Any] = {}

    def results(self) -> dict[str, Any]:
        return self._results

    def conclusion(self) -> str:
        return "It was measured."


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Experiments take no time; this is which were run, by the folder of their setup."""
    runs: list[str] = []

    def reproduce(names: list[str], setup: Setup, options: Any, *, out: Path, progress: bool) -> list[Any]:
        runs.append(f"{out.name}-{names[0]}")
        return [Measured(setup, names[0])]

    monkeypatch.setattr(cell, "reproduce", reproduce)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "0")
    return runs


class TestSweep:
    def test_all_cells_are_run_once_and_combined(self, tmp_path: Path, measured: list[str]) -> None:
        grid = Grid(["ocr", "scores"], learning_rates=[1e-4, 3e-4], seeds=[0, 2], fixed={"repeats": 1})
        names = [each.name for each in grid.cells()]
        here = Here(tmp_path)
        table = sweep(grid, tmp_path, here, progress=False)
        assert sorted(measured) == sorted(here.submitted) == sorted(names)
        assert table["cell"].tolist() == names and set(table["state"]) == {"done"}
        assert table["attempts"].tolist() == [1] * 8 and set(table["error"]) == {""}
        rows = pd.read_csv(tmp_path / "results.csv")
        assert list(rows.columns[:5]) == ["model", "learning_rate", "epochs", "seed", "experiment"]
        assert len(rows) == 16 and rows["row_epochs"].tolist() == [1, 2] * 8
        assert rows["seed"].tolist() == [0, 0, 0, 0, 2, 2, 2, 2] * 2
        page = (tmp_path / "report.html").read_text()
        assert "8 of 8 cells are finished" in page and "2 ± 1.41" in page  # seeds 0 and 2 at 1e-4: 1, 3
        assert page.count('class="drawing"') == 2

    def test_seeds_of_the_organism_share_their_organisms(self, tmp_path: Path, measured: list[str]) -> None:
        sweep(Grid(["ocr"], epochs=[1, 2], seeds=[1]), tmp_path, Here(tmp_path), progress=False)
        for setup in (tmp_path / "setups").iterdir():
            assert (setup / "organisms").resolve() == tmp_path / "organisms"

    def test_going_on_is_asked_for(self, tmp_path: Path, measured: list[str]) -> None:
        grid = Grid.from_dict(TWO)
        sweep(grid, tmp_path, Here(tmp_path), progress=False)
        with pytest.raises(InputError, match=r"this sweep, 2 of 2 cells finished: add --resume"):
            sweep(grid, tmp_path, Here(tmp_path), progress=False)
        here = Here(tmp_path)
        sweep(grid, tmp_path, here, resume=True, progress=False)
        assert here.submitted == []
        sweep(Grid.from_dict(TWO), tmp_path / "new", Here(tmp_path / "new"), resume=True, progress=False)

    def test_a_grown_grid_runs_what_is_new(self, tmp_path: Path, measured: list[str]) -> None:
        sweep(Grid.from_dict(TWO), tmp_path, Here(tmp_path), progress=False)
        grown = Grid.from_dict(
            {**TWO, "learning_rates": [3e-4, 1e-3, 1e-4], "experiments": ["ocr", "scores"]}
        )
        here = Here(tmp_path)
        sweep(grown, tmp_path, here, resume=True, progress=False)
        old = {each.name for each in Grid.from_dict(TWO).cells()}
        assert sorted(here.submitted) == sorted({each.name for each in grown.cells()} - old)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"learning_rates": [1e-4]}, "learning_rates had 0.0003"),
            ({"experiments": ["scores"]}, "experiments had ocr"),
            ({"repeats": 2}, "repeats was 1, now 2"),
            ({"early": 0.5}, "early was 0.6+, now 0.5"),
        ],
    )
    def test_another_grid_is_refused(
        self, tmp_path: Path, measured: list[str], change: dict[str, Any], message: str
    ) -> None:
        sweep(Grid.from_dict(TWO), tmp_path, Here(tmp_path), progress=False)
        for resume in (False, True):
            with pytest.raises(InputError, match=f"holds another sweep .*{message}.*choose another folder"):
                grid = Grid.from_dict({**TWO, **change})
                sweep(grid, tmp_path, Here(tmp_path), resume=resume, progress=False)

    def test_other_options_are_another_grid(self, tmp_path: Path, measured: list[str]) -> None:
        given = {"experiments": ["sensitivity"], "options": {"sensitivity": {"factors": [1.0]}}}
        sweep(Grid.from_dict(given), tmp_path, Here(tmp_path), progress=False)
        with pytest.raises(InputError, match=r"options\.sensitivity\.factors"):
            del given["options"]
            sweep(Grid.from_dict(given), tmp_path, Here(tmp_path), resume=True, progress=False)

    def test_two_sweeps_of_one_folder(self, tmp_path: Path, measured: list[str]) -> None:
        with (
            holding(tmp_path / ".lock") as other,
            pytest.raises(InputError, match=f"is being written by process {other.pid}"),
        ):
            sweep(Grid.from_dict(TWO), tmp_path, Here(tmp_path), progress=False)
        assert measured == []

    def test_a_cell_that_fails_is_tried_again(
        self, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works = cell.reproduce

        def fails_once(*args: Any, **options: Any) -> Any:
            result = works(*args, **options)
            if len(measured) == 1:
                raise RuntimeError("CUDA out of memory")
            return result

        monkeypatch.setattr(cell, "reproduce", fails_once)
        table = sweep(Grid.from_dict(TWO), tmp_path, Here(tmp_path), progress=False)
        assert set(table["state"]) == {"done"} and set(table["error"]) == {""}
        assert table["attempts"].tolist() == [2, 1] and len(measured) == 3

    def test_what_fails_is_kept_with_its_last_error(
        self, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works, tries = cell.reproduce, []

        def fails(names: Any, setup: Setup, *args: Any, **options: Any) -> Any:
            if setup.rates.first_hop == 3e-4:
                tries.append(len(tries))
                raise (InputError("there is no such thing.") if len(tries) > 2 else OSError("the first"))
            return works(names, setup, *args, **options)

        monkeypatch.setattr(cell, "reproduce", fails)
        grid = Grid.from_dict(TWO)
        table = sweep(grid, tmp_path, Here(tmp_path), retries=2, progress=False)
        assert len(tries) == 3 and table["state"].tolist() == ["done", "failed"]
        assert table["error"].tolist() == ["", "there is no such thing."]
        assert table["attempts"].tolist() == [1, 3]
        assert "1 of 2 cells are finished" in (tmp_path / "report.html").read_text()
        monkeypatch.setattr(cell, "reproduce", works)
        here = Here(tmp_path)
        table = sweep(grid, tmp_path, here, resume=True, progress=False)
        assert here.submitted == [grid.cells()[1].name] and set(table["state"]) == {"done"}
        assert table["attempts"].tolist() == [1, 4] and set(table["error"]) == {""}

    def test_a_job_that_dies_without_a_word_has_failed(self, tmp_path: Path, measured: list[str]) -> None:
        class Dies(Here):
            def submit(self, names: Sequence[str]) -> list[str]:
                (tmp_path / "jobs").mkdir(exist_ok=True)
                ids = [str(len(self.submitted) + i) for i in range(len(names))]
                self.submitted += names
                for job in ids:
                    (tmp_path / "jobs" / f"{job}_0_log.err").write_text("noise\nOut of nodes\n")
                return ids

        executor = Dies(tmp_path)
        table = sweep(Grid.from_dict(TWO), tmp_path, executor, retries=1, progress=False)
        assert len(executor.submitted) == 4 and set(table["state"]) == {"failed"}
        assert set(table["error"]) == {f"{KILLED} (Out of nodes)"} and set(table["attempts"]) == {2}

    def test_a_job_that_was_asked_to_end_goes_on_as_long_as_it_gets_on(
        self, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works, asked = cell.reproduce, []

        def ends(names: Any, setup: Setup, *args: Any, out: Path, **options: Any) -> Any:
            asked.append(len(asked))
            if len(asked) <= 4:
                (out / "cells" / "ocr").mkdir(parents=True, exist_ok=True)
                (out / "cells" / "ocr" / f"{len(asked)}.json").write_text("{}")
                raise Terminated
            return works(names, setup, *args, out=out, **options)

        monkeypatch.setattr(cell, "reproduce", ends)
        one = Grid(["ocr"], epochs=[1])
        table = sweep(one, tmp_path, Here(tmp_path), retries=0, progress=False)
        assert len(asked) == 5 and table["attempts"].tolist() == [5] and set(table["state"]) == {"done"}

        def stands_still(*args: Any, **options: Any) -> Any:
            asked.append(len(asked))
            raise Terminated

        monkeypatch.setattr(cell, "reproduce", stands_still)
        asked.clear()
        table = sweep(one, tmp_path / "b", Here(tmp_path / "b"), retries=1, progress=False)
        assert len(asked) == 2 and table["state"].tolist() == ["missing"]

    def test_an_interrupted_sweep_stops_its_jobs_and_goes_on(
        self, tmp_path: Path, measured: list[str]
    ) -> None:
        class Stuck(Here):
            def submit(self, names: Sequence[str]) -> list[str]:
                return list(names)

            def alive(self, jobs: Collection[str]) -> set[str]:
                raise Terminated

        grid, stuck = Grid.from_dict(TWO), Stuck(tmp_path)
        with pytest.raises(Terminated):
            sweep(grid, tmp_path, stuck, progress=False)
        assert sorted(stuck.stopped) == sorted(each.name for each in grid.cells())
        assert set(states(tmp_path).values()) == {"missing"}
        here = Here(tmp_path)
        sweep(grid, tmp_path, here, resume=True, progress=False)
        assert len(here.submitted) == 2

    def test_jobs_that_are_still_queued_are_not_submitted_twice(
        self, tmp_path: Path, measured: list[str]
    ) -> None:
        grid = Grid.from_dict(TWO)
        first, second = (each.name for each in grid.cells())

        class Queue(Here):
            def submit(self, names: Sequence[str]) -> list[str]:
                self.submitted += names
                if names == [first, second]:
                    return ["7_0", "7_1"]
                return super().submit(names)

            def alive(self, jobs: Collection[str]) -> set[str]:
                if not self.submitted[2:] and "7_1" in jobs and not here_again:
                    raise Terminated
                return {"7_1"} & set(jobs) if not CellFiles(tmp_path, grid.cells()[1]).done() else set()

        here_again = False
        with pytest.raises(Terminated):
            sweep(grid, tmp_path, Queue(tmp_path, survives=True), progress=False)
        here_again = True
        run_cell(str(tmp_path), first, None, None, None)  # one was run meanwhile
        thread = threading.Timer(0.3, run_cell, (str(tmp_path), second, None, None, None))
        again = Queue(tmp_path, survives=True)
        thread.start()
        table = sweep(grid, tmp_path, again, resume=True, progress=False)
        thread.join()
        assert again.submitted == [] and set(table["state"]) == {"done"} and len(measured) == 2

    def test_no_retries_below_none(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="retries=-1"):
            sweep(Grid(["ocr"]), tmp_path, Here(tmp_path), retries=-1)


def test_a_cell_waits_for_the_process_that_has_it(tmp_path: Path, measured: list[str]) -> None:
    grid = Grid.from_dict(TWO)
    (tmp_path / "grid.json").write_text(json.dumps(grid.to_dict()))
    place = CellFiles(tmp_path, grid.cells()[0])
    with exclusive(place.home), locked(place.home / ".lock"):
        pass
    run_cell(str(tmp_path), place.cell.name, None, None, None)
    run_cell(str(tmp_path), place.cell.name, None, None, None)
    assert measured == [place.cell.name] and len(place.attempts()) == 1


def test_two_cells_of_a_seed_pretrain_its_organism_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process is at it, and has it in the end."""
    monkeypatch.setattr("ecstruct.organism.pretrain", pytest.fail)
    organisms = tmp_path / "organisms"
    with holding(organisms / ".seed-1.lock", 1, "lock.with_name('seed-1').mkdir()"):
        home = Sweep(Setup(seeds=[1]), tmp_path, progress=False).organism("seed-1", 1)
        assert home == organisms / "seed-1" and home.is_dir()
