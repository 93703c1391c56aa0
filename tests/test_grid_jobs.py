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


def test_kill_9_of_a_worker_and_a_rerun_that_computes_what_is_missing(tmp_path: Path) -> None:
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text("learning_rates: [1e-4, 3e-4]\nepochs: [1]\nexperiments: [ocr]\nrepeats: 2\n")
    first, second = (CellFiles(out, each) for each in Grid.read(path).cells())
    killed: list[int] = []

    def kill() -> None:
        until(lambda: pieces(first))
        killed.append(first.attempts()[-1]["process"])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    words = ["sweep", str(path), "--out", str(out), "--retries", "0", "--quiet"]
    result = run(*words)
    killer.join()
    assert result.exit_code == 1 and result.stderr == f"failed: {first.cell.name}\n"
    before = pieces(first)
    assert 0 < len(before) < 4 and not first.done() and len(pieces(second)) == 4 and second.done()
    result = run("sweep", "--status", "--out", str(out))
    assert result.exit_code == 0
    assert "failed" in result.stdout and KILLED in result.stdout and "1 done, 1 failed" in result.stdout
    untouched = pieces(second), (second.home / "result.json").stat().st_mtime_ns

    assert run(*words, "--resume").exit_code == 0
    assert before.items() <= pieces(first).items() and len(pieces(first)) == 4
    assert (pieces(second), (second.home / "result.json").stat().st_mtime_ns) == untouched
    assert [len(place.attempts()) for place in (first, second)] == [2, 1]
    rows = pd.read_csv(out / "results.csv")
    for lr in (1e-4, 3e-4):
        alone = ocr(Setup(repeats=2, epochs=1, rates=Rates.same(lr)), progress=False).frame
        swept = rows[rows["learning_rate"] == lr][[*alone.columns]].reset_index(drop=True)
        pd.testing.assert_frame_equal(swept, alone, check_dtype=False, rtol=1e-6)


def test_sigterm_finishes_what_is_at_work_and_the_sweep_goes_on(tmp_path: Path) -> None:
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text("learning_rates: [1e-4]\nepochs: [1]\nexperiments: [ocr]\nrepeats: 2\n")
    (place,) = (CellFiles(out, each) for each in Grid.read(path).cells())
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
