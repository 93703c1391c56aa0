"""Checkpoints of one training run: a folder with a subfolder for each step.

The subfolders have the names that trainers give: `checkpoint-1000`, `step1000`, `step-1000`, `step_1000`,
`global_step1000`, `step1000-tokens4B` or `1000`. As a model or an adapter, `run@1000`, `run@step-1000` and
`run@checkpoint-1000` all mean the checkpoint of step 1000 in the folder `run`.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ecstruct.errors import InputError
from ecstruct.models.shards import is_sharded

_STEP = re.compile(r"(?:(?:checkpoint|ckpt|global[-_]?step|step|iter)[-_]?)?(\d{1,18})(?:-tokens\w+)?")
_CONFIGS = ("config.json", "adapter_config.json")


def checkpoints(folder: str | Path) -> dict[int, str]:
    """Return the checkpoints of a training run by step, in ascending order, as sources for `ecstruct.load`.

    Raises:
        InputError: There is no such folder, or it has two checkpoints of one step.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(
            f"there is no folder {folder}: give the one that has the checkpoints as subfolders."
        )
    found: dict[int, str] = {}
    for name, step in _steps(path).items():
        there = any((path / name / config).is_file() for config in _CONFIGS)
        if not there and not is_sharded(path / name):
            continue  # it has only the optimiser's state, or was never finished
        if step in found:
            raise InputError(
                f"{folder} has two checkpoints of step {step}, {Path(found[step]).name} and {name}: give "
                "the path of one of them."
            )
        found[step] = str(Path(folder) / name)
    return dict(sorted(found.items()))


def resolved(source: str | Path) -> str:
    """Return the path that `folder@step` stands for; any other source unchanged, except for a leading `~`.

    Raises:
        InputError: The folder has no such checkpoint; the message names some that it has.
    """
    name = str(source)
    if name.startswith("~"):
        with suppress(RuntimeError):  # `~name` of an unknown user
            name = str(Path(name).expanduser())
    folder, at, step = name.rpartition("@")
    if not at or Path(name).exists() or not Path(folder).is_dir():
        return name
    if step in _steps(Path(folder)):
        return str(Path(folder) / step)  # loading it will say what it lacks, if anything
    asked, known = _STEP.fullmatch(step), checkpoints(folder)
    if asked is None or int(asked[1]) not in known:
        raise InputError(f"{folder} has no checkpoint {step!r}: {_listed(known)}.")
    return known[int(asked[1])]


def instead(folder: str) -> str:
    """Return what a folder that is not a model has instead, as the end of a sentence."""
    known = checkpoints(folder)
    if not known:
        return "it holds no Hugging Face model"
    return f"{_listed(known)}, so choose one, as in {f'{folder}@{max(known)}'!r}"


def _steps(folder: Path) -> dict[str, int]:
    """Return the steps of the subfolders, by name."""
    matches = {path.name: _STEP.fullmatch(path.name) for path in sorted(folder.iterdir()) if path.is_dir()}
    return {name: int(match[1]) for name, match in matches.items() if match}


def _listed(known: Iterable[int], most: int = 6) -> str:
    steps = [*map(str, known)]
    if not steps:
        return "there are no checkpoints by step in it"
    if len(steps) > most:
        steps = [*steps[: most // 2], "...", *steps[-most // 2 :]]
    return f"it has those of the steps {', '.join(steps)}"
