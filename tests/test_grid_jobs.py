"""Real processes of sweeps, killed and terminated: a rerun computes what is missing and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pandas as pd
from helpers.command_line import run
from helpers.jobs import Here, pieces, states, until

from ecstruct.experiments import Rates, Setup, ocr
from ecstruct.grids import Grid, sweep
from ecstruct.grids.cell import KILLED, CellFiles
from ecstruct.io.interruption import STATUS


def of_one_cell(folder: Path) -> tuple[Path, Path, CellFiles]:
    """Return the file of a grid, the folder of its sweep, and its only cell, which has four pieces."""
    path, out = folder / "grid.yaml", folder / "out"
    path.write_text("learning_rates: [1e-4]\nepochs: [1]\nexperiments: [ocr]\nrepeats: 2\n")
    (cell,) = Grid.read(path).cells()
    return path, out, CellFiles(out, cell)


def test_kill_9_of_a_worker_and_a_rerun_that_computes_what_is_missing(tmp_path: Path) -> None:
    path, out, place = of_one_cell(tmp_path)

    def kill() -> None:
        until(lambda: pieces(place))
        os.kill(place.attempts()[-1]["process"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run("sweep", str(path), "--out", str(out), "--retries", "0", "--quiet")
    killer.join()
    assert result.exit_code == 1 and result.stderr == f"failed: {place.cell.name}\n"
    before = pieces(place)
    assert 0 < len(before) < 4 and not place.done()
    result = run("sweep", "--status", "--out", str(out))
    assert result.exit_code == 0 and KILLED in result.stdout and "1 failed" in result.stdout

    sweep(Grid.read(path), out, Here(out), resume=True, progress=False)
    assert before.items() <= pieces(place).items() and len(pieces(place)) == 4 and place.done()
    assert len(place.attempts()) == 2
    alone = ocr(Setup(repeats=2, epochs=1, rates=Rates.same(1e-4)), progress=False).frame
    swept = pd.read_csv(out / "results.csv")[[*alone.columns]]
    pd.testing.assert_frame_equal(swept, alone, check_dtype=False, rtol=1e-6)


def test_sigterm_finishes_what_is_at_work_and_the_sweep_goes_on(tmp_path: Path) -> None:
    path, out, place = of_one_cell(tmp_path)
    seen: list[dict[str, str]] = []

    def terminate() -> None:
        until(lambda: pieces(place))
        seen.append(states(out))
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    result = run("sweep", str(path), "--out", str(out), "--quiet")
    killer.join()
    assert list(seen[0].values()) == ["running"]
    assert result.exit_code == STATUS
    assert result.stderr == "terminated: run it again with --resume to go on\n"
    before = pieces(place)
    assert 0 < len(before) < 4 and not place.running()
    assert place.attempts()[-1]["stopped"] is True
    assert not list(out.rglob(".writing-*")) and not list(out.rglob("*.lock"))
    assert list(states(out).values()) == ["missing"]
    sweep(Grid.read(path), out, Here(out), resume=True, progress=False)
    assert before.items() <= pieces(place).items() and len(pieces(place)) == 4 and place.done()
