"""`ecstruct organism pretrain`."""

import json
from dataclasses import replace
from typing import Annotated

import typer

from ecstruct.cli.flags import Debug, Out, Quiet, Seed, command_run
from ecstruct.errors import InputError

organism_app = typer.Typer(help="The embedded model and its synthetic world.", no_args_is_help=True)


@organism_app.command()
def pretrain(
    out: Out,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; by default the recipe's.")] = None,
    local_layers: Annotated[
        int, typer.Option(min=0, max=6, help="Layers whose attention is local half of the time.")
    ] = 4,
    checkpoints: Annotated[
        int | None,
        typer.Option(min=1, help="How many checkpoints to keep, at equal distances, in OUT/snapshots."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all.")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Pretrain the embedded model from scratch, in minutes on a CPU."""
    with command_run(quiet, debug):
        from ecstruct.organism import Recipe, local_windows
        from ecstruct.organism import pretrain as run

        recipe = Recipe(local_windows=local_windows(local_layers))
        if steps is not None:
            recipe = replace(recipe, steps=steps)
        if (n := checkpoints or 0) > recipe.steps:
            raise InputError(f"--checkpoints {n} are more than the {recipe.steps} steps: use fewer.")
        kept = [round(recipe.steps * (i + 1) / n) for i in range(n)]
        report = run(out, seed=seed, recipe=recipe, snapshots=kept, threads=threads, progress=not quiet)
        if not quiet:
            typer.echo(json.dumps(report["held_out_accuracy"]))
