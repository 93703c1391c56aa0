"""How far a sweep is: read off its folder, by anyone, at any time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_line import run
from helpers.jobs import states
from helpers.processes import holding

from ecstruct.errors import InputError
from ecstruct.grids import Grid, status
from ecstruct.grids.cell import KILLED, CellFiles

TWO = Grid(["ocr"], learning_rates=[1e-4, 3e-4])


class TestStatus:
    def test_a_cell_is_running_while_a_process_holds_it(self, tmp_path: Path) -> None:
        (tmp_path / "grid.json").write_text(json.dumps(TWO.to_dict()))
        assert set(states(tmp_path).values()) == {"missing"}
        place = CellFiles(tmp_path, TWO.cells()[0])
        place.home.mkdir(parents=True)
        with holding(place.home / ".lock"):
            place.note({"job": "7", "started": 1.0})
            assert list(states(tmp_path).values()) == ["running", "missing"]
        table = status(tmp_path)
        assert table["state"].tolist() == ["failed", "missing"] and table["error"].tolist() == [KILLED, ""]

    def test_without_a_sweep(self, tmp_path: Path) -> None:
        result = run("sweep", "--status", "--out", str(tmp_path))
        assert result.exit_code == 2 and "holds no sweep" in result.stderr

    def test_damaged_files_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "grid.json").write_text(json.dumps(TWO.to_dict()))
        place = CellFiles(tmp_path, TWO.cells()[0])
        place.home.mkdir(parents=True)
        (place.home / "attempts.json").write_text("[{")
        with pytest.raises(InputError, match=r"attempts\.json is damaged"):
            status(tmp_path)
