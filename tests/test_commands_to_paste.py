"""Commands that reports and messages show can be pasted into a shell, whatever the folder is called."""

from __future__ import annotations

import json
import shlex
from html import unescape
from pathlib import Path

from helpers.command_line import run

from ecstruct.grids import Grid
from ecstruct.grids.combine import combine
from ecstruct.runs.configuration import replay_command


def test_a_replay_of_a_folder_with_spaces() -> None:
    assert (
        replay_command(Path("my runs/one"))
        == "ecstruct replay 'my runs/one/config.json' --out 'my runs/one-again'"
    )


def test_a_sweep_is_gone_on_with_from_its_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "my sweep"
    folder.mkdir()
    grid = Grid(["ocr"], models=["nobody/nothing"], learning_rates=[1e-4])
    (folder / "grid.json").write_text(json.dumps(grid.to_dict()))
    combine(folder)
    (command,) = (
        line
        for line in unescape((folder / "report.html").read_text(encoding="utf-8")).splitlines()
        if "ecstruct sweep" in line and not line.lstrip().startswith("<script")
    )
    words = shlex.split(command[command.index("ecstruct sweep") : command.index("--resume")])
    assert words == ["ecstruct", "sweep", "--out", str(folder)]
    # The grid is in the folder: the command needs no other file.
    result = run(*words[1:], "--resume", "--status")
    assert result.exit_code == 0 and "1 missing" in result.stdout
