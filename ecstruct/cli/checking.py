"""Options of `ecstruct fidelity` and `controls` that are no fields of their configurations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def fidelity_fields(
    whole: Annotated[bool, typer.Option("--whole", help="Intervene on all components.")] = False,
) -> Mapping[str, Any]:
    return {"sample": None} if whole else {}


def controls_fields(
    tuned: Annotated[
        Path | None,
        typer.Option(
            help="config.json of the finetuning that made --after, which is done again with shuffled facts."
        ),
    ] = None,
) -> Mapping[str, Any]:
    if tuned is None:
        return {}
    from ecstruct.runs.checking import finetuning_of

    return finetuning_of(tuned)
