"""Checks of scores, by interventions and controls, and of a finetuning."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecstruct import commands
from ecstruct.checks import controls, fidelity
from ecstruct.diagnosis import diagnose
from ecstruct.errors import InputError
from ecstruct.facts import FactSet, Prompt
from ecstruct.io.files import from_json, write_text
from ecstruct.options import (
    CausalOptions,
    EdgeOptions,
    FidelityOptions,
    FinetuneOptions,
    ScoreOptions,
    types_of,
)
from ecstruct.report.page import write_result
from ecstruct.report.pages import causal_report, controls_report, fidelity_report, top_table
from ecstruct.runs.configuration import check_fingerprints, finish, folder_locked, replay_command
from ecstruct.scores.causal import intervened
from ecstruct.scores.pair import Pair
from ecstruct.scores.path_patching import edges_of
from ecstruct.scores.result import ExtractiveScores


@folder_locked
def run_fidelity(config: commands.Fidelity, out: Path, device: str | None, progress: bool) -> None:
    """Compare fast scores with interventions; write `fidelity.json`, `report.html` and all scores."""
    pair, folder = Pair.of(config.before, config.after, device), out / "unfinished"
    prints = check_fingerprints(pair.sources, config)
    options = vars(FidelityOptions.given(vars(config)))
    result = fidelity(*pair.sessions, config.prompts, **options, folder=folder, progress=progress)
    for how, scores in result.scores().items():
        scores.save(out / f"scores-{how}.nc")
    write_text(out / "fidelity.json", json.dumps(result.results(), indent=1, allow_nan=False))
    fidelity_report(out / "report.html", result, replay_command(out))
    table = result.table().to_string(index=False, float_format="{:.2f}".format)
    finish(out, "fidelity", config, f"{table}\n{result.verdict()}", progress, fingerprints=prints)


@folder_locked
def run_causal(config: commands.Causal, out: Path, device: str | None, progress: bool) -> None:
    """Compute scores by intervention; write `scores.nc` and `report.html`."""
    pair = Pair.of(config.before, config.after, device)
    prints = check_fingerprints(pair.sources, config)
    options = CausalOptions.given(vars(config))
    scores = intervened(pair, config.prompts, options, components=config.components, progress=progress)
    scores.save(out / "scores.nc")
    causal_report(out / "report.html", scores, replay_command(out))
    finish(out, "causal", config, top_table(scores).to_string(index=False), progress, fingerprints=prints)


@folder_locked
def run_diagnose(config: commands.Diagnose, out: Path, device: str | None, progress: bool) -> None:
    """Find out why a finetuning did not take; write `diagnosis.nc`, `diagnosis.csv` and `report.html`."""
    pair = Pair.of(config.before, config.after, device)
    prints = check_fingerprints(pair.sources, config)
    names = ("facts", "implications", "variants", "known", "preserved")
    asked = {name: getattr(config, name) for name in names}
    found = diagnose(pair, config.after, **asked, progress=progress)
    found.save(out / "diagnosis.nc")
    write_text(out / "diagnosis.csv", found.table().to_csv(index=False))
    write_result(out / "report.html", "diagnosis.html", "Diagnosis", found, replay_command(out))
    finish(out, "diagnose", config, found.conclusion(), progress, fingerprints=prints)


@folder_locked
def run_edges(config: commands.Edges, out: Path, device: str | None, progress: bool) -> None:
    """Measure the edges between the strongest components; write `edges.nc`, `edges.csv` and
    `report.html`."""
    pair = Pair.of(config.before, config.after, device)
    prints = check_fingerprints(pair.sources, config)
    roles = None if config.scores is None else ExtractiveScores.load(config.scores)
    found = edges_of(pair, config.prompts, EdgeOptions.given(vars(config)), roles, progress=progress)
    found.save(out / "edges.nc")
    write_text(out / "edges.csv", found.table().to_csv(index=False))
    write_result(out / "report.html", "edges.html", "Edges", found, replay_command(out))
    finish(out, "edges", config, found.conclusion(), progress, fingerprints=prints)


@folder_locked
def run_controls(config: commands.Controls, out: Path, device: str | None, progress: bool) -> None:
    """Score prompts and controls; write all scores, `controls.json`, `changes.csv` and `report.html`, and
    what a constant vector does to `steering.csv`."""
    for name in ("prompts", "unrelated", "preserved"):
        if len(given := getattr(config, name) or ()) == 1:
            raise InputError(
                f"{name} has a single prompt, {given[0].get('prompt')!r}, but components are tested over "
                "prompts: give two or more."
            )
    pair, folder = Pair.of(config.before, config.after, device), out / "unfinished"
    prints = check_fingerprints(pair.sources, config)
    facts = None if config.facts is None else FactSet([*map(Prompt.from_record, config.facts)], ())
    found = controls(
        *(*pair.sessions, config.prompts),
        facts=facts,
        unrelated=config.unrelated,
        preserved=config.preserved,
        steering=config.steering,
        seed=config.seed,
        tune=config.tune,
        folder=folder,
        progress=progress,
        **vars(ScoreOptions.given(vars(config))),
    )
    for name, scores in {"finetuned": found.scores, **found.controls}.items():
        scores.save(out / f"scores-{name.replace(' ', '-')}.nc")
    totals = found.totals().reset_index()
    write_text(out / "controls.json", json.dumps(totals.to_dict("records"), indent=1))
    write_text(out / "changes.csv", found.changes().to_csv(index_label="changed"))
    if found.steering is not None:
        write_text(out / "steering.csv", found.steering.frame().to_csv(index=False))
    controls_report(out / "report.html", found, replay_command(out))
    table = totals.to_string(index=False, float_format="{:.3f}".format)
    finish(out, "controls", config, f"{table}\n{found.conclusion()}", progress, fingerprints=prints)


def finetuning_of(path: Path) -> Mapping[str, Any]:
    """Return the facts and the options of a finetuning from the `config.json` that it wrote.

    Raises:
        InputError: the file is not the configuration of a finetuning.
    """
    try:
        config = from_json(path.read_text(encoding="utf-8"))
        found = commands.Finetune.read(config["arguments"], str(path), "finetune")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no configuration of ecstruct finetune: give its config.json."
        ) from error
    names = {*types_of(FinetuneOptions), "freeze", "lora"}
    return {"facts": found.facts, "tune": {name: getattr(found, name) for name in sorted(names)}}
