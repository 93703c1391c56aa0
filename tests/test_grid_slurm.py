"""Sweeps on a real Slurm, without accounting: jobs that are killed, asked to end, and left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.command_line import run
from helpers.jobs import Here, pieces, states, until
from helpers.slurm import cluster, missing

from ecstruct.errors import InputError
from ecstruct.grids import Grid, sweep
from ecstruct.grids.cell import KILLED, CellFiles
from ecstruct.grids.executors import Slurm, queued
from ecstruct.io.interruption import STATUS, Terminated

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cluster(tmp_path_factory.mktemp("slurm") / "of-one-node") as folder:
        yield folder


def waits(process: int, number: signal.Signals) -> bool:
    """Return whether a signal has been sent to a process that is paused."""
    status = Path(f"/proc/{process}/status").read_text()
    return bool(int(status.split("ShdPnd:")[1].split()[0], 16) >> (number - 1) & 1)


def test_jobs_outlive_the_sweep_and_are_run_again_if_killed_or_asked_to_end(
    slurm: Path, tmp_path: Path
) -> None:
    """An array of two. SIGTERM to the sweep leaves the queue alone, and the next one waits for what is
    there. Meanwhile one job is killed for good, the other told to end, as at the end of its time."""
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text("learning_rates: [1e-4, 3e-4]\nepochs: [1]\nexperiments: [ocr]\nrepeats: 2\n")
    first, second = (CellFiles(out, each) for each in Grid.read(path).cells())
    executor = Slurm(out, options={"begin": "now+3"})

    class Stops(Here):
        """Submits to Slurm, and ends then."""

        def submit(self, names: Sequence[str]) -> list[str]:
            return executor.submit(names)

        def alive(self, jobs: Collection[str]) -> set[str]:
            raise Terminated

    with pytest.raises(SystemExit) as raised:
        sweep(Grid.read(path), out, Stops(out, survives=True), progress=False)
    assert raised.value.code == STATUS
    assert list(states(out).values()) == ["waiting", "waiting"]

    before: dict[CellFiles, dict[str, int]] = {}

    def pause(place: CellFiles) -> int:
        until(lambda: pieces(place))
        os.kill(process := place.attempts()[-1]["process"], signal.SIGSTOP)
        before[place] = pieces(place)
        return process

    def disturb() -> None:
        # Both are held at their first piece, so that neither can finish before its signal comes.
        with ThreadPoolExecutor() as pool:
            killed, asked = pool.map(pause, (first, second))
        os.kill(killed, signal.SIGKILL)
        subprocess.run(["scancel", "--signal=USR2", second.attempts()[-1]["job"]], check=True)
        until(lambda: waits(asked, signal.SIGUSR2))
        os.kill(asked, signal.SIGCONT)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    options = "time=0:10:00,partition=only,comment=a sweep"
    words = ["--executor", "slurm", "--slurm", options, "--retries", "1", "--quiet", "--resume"]
    result = run("sweep", str(path), "--out", str(out), *words)
    disturber.join()
    assert result.exit_code == 0, result.stderr
    assert before.keys() == {first, second}
    for place, old in before.items():
        assert 0 < len(old) < 4 and old.items() <= pieces(place).items() and len(pieces(place)) == 4
        assert len(place.attempts()) == 2 and place.done()
    killed, ended = (place.attempts()[0] for place in (first, second))
    assert killed["job"].endswith("_0") and ended["job"] == killed["job"].replace("_0", "_1")
    assert killed["error"].startswith(KILLED) and ended["stopped"] is True
    assert queued([killed["job"], ended["job"]]) == set()


def test_what_slurm_does_not_take_is_told(slurm: Path, tmp_path: Path) -> None:
    executor = Slurm(tmp_path, options={"partition": "none"})
    with pytest.raises(InputError, match=r"Slurm does not take the jobs: .*partition specified: none"):
        executor.submit(["a", "b"])
    executor = Slurm(tmp_path, options={"nonsense": "1"})
    with pytest.raises(InputError, match="nonsense"):
        executor.submit(["a"])


def test_while_slurm_does_not_answer_jobs_count_as_alive(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert queued(["999", "998_1"]) == set()
    config = (slurm / "slurm.conf").read_text()
    dead = tmp_path / "slurm.conf"
    port = next(line for line in config.splitlines() if line.startswith("SlurmctldPort"))
    dead.write_text(config.replace(port, "SlurmctldPort=1") + "\nMessageTimeout=1\n")
    monkeypatch.setenv("SLURM_CONF", str(dead))
    assert queued(["999"]) == {"999"}
