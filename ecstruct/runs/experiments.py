"""The demo, and the experiments of the paper and beyond it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ecstruct.commands import Demo, Reproduce
from ecstruct.demo import demo
from ecstruct.experiments import Result, Setup, reproduce
from ecstruct.experiments.reproduction import named
from ecstruct.io.files import from_json, write_text
from ecstruct.report.experiments import experiments_report
from ecstruct.runs.configuration import finish, folder_locked, replay_command, write_config


@folder_locked
def run_demo(config: Demo, out: Path, device: str | None, progress: bool) -> None:
    """Run the demo, in which a model learns facts and generalises; see `ecstruct.demo`."""
    result = demo(**vars(config), device=device, progress=progress)
    result.write(out, replay=replay_command(out))
    finish(out, "demo", config, str(result.table()), progress)


@folder_locked
def run_reproduce(config: Reproduce, out: Path, device: str | None, progress: bool) -> None:
    """Run experiments. `results.json`, `report.html` and `config.json` cover all finished ones, including
    those of earlier runs with the same setup, and are rewritten after each experiment."""
    setup = replace(Setup.from_dict(config.setup), device=device)
    portable = json.loads(json.dumps(replace(setup, device=None).to_dict()))
    asked = {*named(config.experiments)}
    before = _finished(out, portable)
    kept = [name for name in before.experiments if name not in asked]
    options = {name: given for name, given in before.options.items() if name in kept}
    options |= config.options
    done: list[Result] = []
    for result in reproduce([*kept, *config.experiments], setup, options, out=out, progress=progress):
        done.append(result)
        if result.name in kept:  # its cells exist already
            continue
        names = [each.name for each in done]
        given = {name: options[name] for name in names if name in options}
        write_config(out, "reproduce", Reproduce(experiments=names, setup=portable, options=given))
        entries = {key: value for each in done for key, value in each.results().items()}
        write_text(out / "results.json", json.dumps(entries, indent=1, allow_nan=False))
        experiments_report(out / "report.html", done, replay_command(out))
        if progress:
            tqdm.write(f"\n{result.title}\n{result.table().to_string(index=False)}\n{result.conclusion()}")
    if progress:
        tqdm.write(f"\nreport: {out / 'report.html'}")


def _finished(out: Path, setup: dict[str, Any]) -> Reproduce:
    """Return what earlier runs of a setup finished, according to the configuration in the folder."""
    try:
        config = from_json((out / "config.json").read_text(encoding="utf-8"))
        found = Reproduce.read(config["arguments"], str(out), "reproduce")
        if config["command"] == "reproduce" and found.setup == setup:
            named(found.experiments, found.options)
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # there is no configuration, or it is that of another run
    return Reproduce(experiments=[], setup=setup)
