"""`ecstruct diagnose`, `fidelity`, `causal`, `edges`, `controls`, `graft` and `grafts`: whether a
finetuning took, whether scores can be trusted, and what stands behind them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ecstruct.cli.command import command


@command("diagnose")
def diagnose() -> None:
    """Why a finetuning did not take: unchanged, not learnt, a string, not read, outvoted, saturated or
    forgotten elsewhere; writes diagnosis.nc, diagnosis.csv and report.html.
    """


@command("fidelity")
def fidelity(
    whole: Annotated[bool, typer.Option("--whole", help="Intervene on all components.")] = False,
) -> Mapping[str, Any]:
    """How far the scores can be trusted: each beside the intervention it stands for."""
    return {"sample": None} if whole else {}


@command("causal")
def causal() -> None:
    """The scores by intervention, without any approximation; writes scores.nc and report.html."""


@command("edges")
def edges() -> None:
    """How much of the strongest components' scores goes through one another; writes edges.nc, edges.csv and
    report.html."""


@command("controls")
def controls(
    tuned: Annotated[
        Path | None,
        typer.Option(
            help="config.json of the finetuning that made --after, which is done again with shuffled facts."
        ),
    ] = None,
) -> Mapping[str, Any]:
    """The scores where there is nothing to be found; writes all scores, controls.json, changes.csv and
    report.html; with --steering also steering.csv.

    Goes on where it was stopped.
    """
    if tuned is None:
        return {}
    from ecstruct.runs.checking import finetuning_of

    return finetuning_of(tuned)


@command("graft")
def graft() -> None:
    """What the finetuned weights do in sets of components, at chosen positions; writes graft.nc, graft.csv
    and report.html.
    """


@command("grafts")
def grafts() -> None:
    """Ranks when the change of the strongest components is grafted or reverted; writes grafts.csv,
    report.html and, with --random-sets, random_sets.csv.

    Goes on where it was stopped.
    """
