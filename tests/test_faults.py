"""Disks that fill, SIGTERM, two jobs in one folder: one sentence each, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import xarray as xr
from helpers.command_line import run
from helpers.jobs import until
from helpers.processes import Started, command, holding
from helpers.synthetic_scores import make_scores

import ecstruct
from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt, write_jsonl
from ecstruct.io.files import exclusive, explaining_write_errors, is_held, locked
from ecstruct.io.interruption import STATUS
from ecstruct.models import WeightDelta, save_model, to_hugging_face
from ecstruct.organism.pretraining import _write
from ecstruct.plots import save_figure
from ecstruct.report.page import Section, write_report


def all_writers(folder: Path, limit: int) -> None:
    """Let each of them write more than files may take; print what they say."""
    scores = make_scores()
    scores.dataset["mlp"] = scores.dataset["mlp"] + 0 * xr.DataArray(np.random.rand(50_000), dims="more")
    model = ecstruct.load("organism", device="cpu")
    hf = to_hugging_face(model)
    sections = [Section("s", ["x" * 2 * limit])]
    writers: dict[str, Callable[[Path], object]] = {
        "delta.safetensors": WeightDelta({"blocks.0.mlp.W_in": torch.randn(512, 512)}, {}).save,
        "scores.nc": scores.save,
        "prompts.jsonl": lambda path: write_jsonl([Prompt("x" * 2 * limit, "y")], path),
        "report.html": lambda path: write_report(path, title="t", summary="s", sections=sections),
        "figure.html": lambda path: save_figure(go.Figure(), path),
        "model": lambda path: save_model(model, path),
        "organism": lambda path: _write(path, {"": hf}, model.tokenizer, {}),
    }
    for name in writers:
        if "." in name:
            (folder / name).write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    told = dict.fromkeys(writers, "nothing")
    for name, write in writers.items():
        try:
            write(folder / name)
        except InputError as error:
            told[name] = str(error)
    print(json.dumps(told))


def test_every_writer_tells_that_the_disk_is_full_and_leaves_the_old_file(tmp_path: Path) -> None:
    """Files may take 100 kB at most: to a writer, like a disk that fills in the middle of a file."""
    limit = 100_000
    out = Started(all_writers, tmp_path, limit).ended()
    assert out.returncode == 0, (out.returncode, out.stderr)
    told = json.loads(out.stdout)
    assert len(told) == 7
    for name, message in told.items():
        assert message == f"cannot write {tmp_path / name}: File too large.", name
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == {name: "old" for name in told if "." in name}


def test_what_is_not_of_the_system_keeps_its_type() -> None:
    with pytest.raises(KeyError), explaining_write_errors(Path("x")):
        raise KeyError("x")
    with pytest.raises(InputError, match=r"^mine$"), explaining_write_errors(Path("x")):
        raise InputError("mine")
    with (
        pytest.raises(InputError, match=r"^cannot write x: No space left on device\.$"),
        explaining_write_errors(Path("x")),
    ):
        raise RuntimeError("I/O error: it is full (os error 28)")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here: that takes root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_disk_that_fills_ends_a_run_with_one_sentence_and_it_goes_on(small_disk: Path) -> None:
    out = small_disk / "out"
    words = ["reproduce", "ocr", "--repeats", "1", "--epochs", "1", "--quiet", "--out", str(out)]
    result = run(*words)  # its report holds plotly, 4 MB
    assert result.exit_code == 2
    assert result.stderr == f"error: cannot write {out / 'report.html'}: No space left on device.\n"
    cells = [f"cells/ocr/seed=0-repeat=0-hop={hop}-hop.json" for hop in ("first", "second")]
    whole = ["config.json", "results.json", "setup.json", "weights.json"]
    assert files_of(out) == sorted(cells + whole)
    assert json.loads((out / "results.json").read_text())["ocr"]
    made = {cell: (out / cell).stat().st_mtime_ns for cell in cells}
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert run(*words).exit_code == 0
    assert {cell: (out / cell).stat().st_mtime_ns for cell in cells} == made


def test_a_full_disk_before_the_first_cell(small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    result = run("reproduce", "ocr", "--quiet", "--out", str(small_disk / "out"))
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "No space left on device" in result.stderr


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder, and another process that writes to it."""
    folder = tmp_path / "out"
    with holding(folder / ".lock") as process:
        yield folder, process


def test_a_second_job_is_told_who_writes(holder: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = holder
    result = run("demo", "--quiet", "--out", str(folder))
    assert result.exit_code == 2
    who = f"process {process.pid} on {socket.gethostname()} since 20"
    assert result.stderr.startswith(f"error: {folder} is being written by {who}")
    assert result.stderr.endswith(": wait for it, or choose another folder.\n")
    assert is_held(folder / ".lock")


def test_a_killed_job_leaves_no_lock(holder: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = holder
    process.kill()
    process.wait(10)
    assert (folder / ".lock").exists() and not is_held(folder / ".lock")
    with exclusive(folder):
        assert is_held(folder / ".lock") is False  # by another
    assert files_of(folder) == []


def test_who_waits_for_a_lock_gets_it(holder: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = holder
    process.send_signal(signal.SIGKILL)
    with locked(folder / ".lock", wait=True):
        assert (folder / ".lock").exists()
    assert not (folder / ".lock").exists()


def test_a_process_may_take_its_lock_again_and_ranks_are_one_writer(
    holder: tuple[Path, subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(tmp_path / "mine"):
        with exclusive(tmp_path / "mine"):
            assert (tmp_path / "mine" / ".lock").exists()
        assert (tmp_path / "mine" / ".lock").exists()
    assert not (tmp_path / "mine" / ".lock").exists()
    world = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    with exclusive(holder[0]):
        pass
    monkeypatch.delenv("WORLD_SIZE")  # a rank of no world is nobody's
    with pytest.raises(InputError, match="is being written by"), exclusive(holder[0]):
        pass


def test_sigterm_finishes_the_cell_and_the_next_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["reproduce", "ocr", "--repeats", "2", "--epochs", "1", "--quiet", "--out", str(out)]
    cells = out / "cells" / "ocr"
    running = command(*words)
    until(lambda: list(cells.glob("*.json")) or not running.running())
    os.kill(running.pid, signal.SIGTERM)
    ended = running.ended()
    assert ended.returncode == STATUS
    assert ended.stderr == "terminated: run the same command again to go on\n"
    finished = {path.name: path.stat().st_mtime_ns for path in cells.iterdir()}
    assert 0 < len(finished) < 4
    assert all(name.endswith(".json") and not name.startswith(".") for name in finished)
    assert "results.json" not in files_of(out)
    assert run(*words).exit_code == 0
    after = {path.name: path.stat().st_mtime_ns for path in cells.iterdir()}
    assert len(after) == 4 and finished.items() <= after.items()
