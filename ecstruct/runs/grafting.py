"""Grafts of sets of weights, and of the top components."""

from pathlib import Path
from typing import Any

from ecstruct import commands
from ecstruct.grafting import graft, grafts, random_sets
from ecstruct.io.files import write_text
from ecstruct.report.grafting import grafts_report
from ecstruct.report.page import write_result
from ecstruct.runs.configuration import (
    check_fingerprints,
    check_weights,
    finish,
    folder_locked,
    replay_command,
)
from ecstruct.scores.pair import Pair
from ecstruct.scores.result import ExtractiveScores


@folder_locked
def run_graft(config: commands.Graft, out: Path, device: str | None, progress: bool) -> None:
    """Graft sets of weights at positions; write `graft.nc`, `graft.csv` and `report.html`."""
    pair = Pair.of(config.before, config.after, device)
    prints = check_fingerprints(pair.sources, config)
    names = ("components", "projections", "complement", "random_seeds", "control", "reward")
    found = graft(
        *pair.sessions,
        config.prompts,
        positions=config.positions or "all",
        scores=None if config.scores is None else ExtractiveScores.load(config.scores),
        progress=progress,
        **{name: getattr(config, name) for name in names},
    )
    if config.control is not None:
        prints["control"] = found.attrs["options"]["control"]["fingerprint"]
        check_weights(config.control, prints["control"], (config.fingerprints or {}).get("control"))
    found.save(out / "graft.nc")
    write_text(out / "graft.csv", found.table().to_csv(index=False))
    write_result(out / "report.html", "graft.html", "Grafts at positions", found, replay_command(out))
    finish(out, "graft", config, found.conclusion(), progress, fingerprints=prints)


@folder_locked
def run_grafts(config: commands.Grafts, out: Path, device: str | None, progress: bool) -> None:
    """Graft and revert components; write `grafts.csv` and `report.html`, and what random sets do to
    `random_sets.csv`."""
    pair, folder = Pair.of(config.before, config.after, device), out / "unfinished"
    prints = check_fingerprints(pair.sources, config)
    ranking = ExtractiveScores.load(config.scores)
    of = (*pair.sessions, config.prompts, ranking)
    asked: dict[str, Any] = {"ks": config.ks, "random_seeds": config.random_seeds}
    found = grafts(*of, **asked, folder=folder, progress=progress)
    drawn = random_sets(*of, n_sets=config.random_sets, progress=progress) if config.random_sets else None
    write_text(out / "grafts.csv", found.frame.to_csv(index=False))
    if drawn is not None:
        write_text(out / "random_sets.csv", drawn.frame.to_csv(index=False))
    grafts_report(out / "report.html", found, drawn, replay_command(out))
    said = " ".join(each.conclusion() for each in (found, drawn) if each is not None)
    finish(out, "grafts", config, said, progress, fingerprints=prints)
