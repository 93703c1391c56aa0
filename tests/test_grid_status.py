"""How far a sweep is: read off its folder, by anyone, at any time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import run
from helpers.jobs import states

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
        code = (
            "import sys, time; from pathlib import Path; from ecstruct.io.files import locked\n"
            "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", code, str(place.home / ".lock")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None and worker.stdout.readline() == "held\n"
            place.note({"job": "7", "started": 1.0})
            assert list(states(tmp_path).values()) == ["running", "missing"]
            worker.kill()
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
