"""The demo, and the experiments of the paper and beyond it."""

import json
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from ecstruct.demo import demo
from ecstruct.experiments import Result, Setup, reproduce
from ecstruct.files import write_text
from ecstruct.report.experiments import experiments_report
from ecstruct.runs.configuration import Config, again, alone, write_config


@alone
def run_demo(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """The organism learns facts and generalises; see `ecstruct.demo`."""
    result = demo(seed=config["seed"], device=device, progress=progress)
    result.write(out, replay=again(out))
    write_config(out, "demo", config)
    if progress:
        tqdm.write(f"{result.table()}\nreport: {out / 'report.html'}")


@alone
def run_reproduce(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """Experiments of the paper; `results.json` and `report.html` grow with every one that is finished."""
    setup = replace(Setup.from_dict(config["setup"]), device=device)
    options = config.get("options", {})
    results = reproduce(config["experiments"], setup, options, out=out, progress=progress)
    # Only now: what is refused leaves the folder's configuration as it was.
    write_config(out, "reproduce", {**config, "setup": replace(setup, device=None).to_dict()})
    done: list[Result] = []
    for result in results:
        done.append(result)
        entries = {key: value for each in done for key, value in each.results().items()}
        write_text(out / "results.json", json.dumps(entries, indent=1, allow_nan=False))
        experiments_report(out / "report.html", done, again(out))
        if progress:
            tqdm.write(f"\n{result.title}\n{result.table().to_string(index=False)}\n{result.conclusion()}")
    if progress:
        tqdm.write(f"\nreport: {out / 'report.html'}")
