"""`ecstruct demo`, `sweep`, `replay` of any run, and options of `reproduce` that are no fields of its
configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ecstruct.cli.flags import Debug, Device, Out, Quiet, Seed, Source, command_run


def demo(
    out: Out = Path("ecstruct-demo"),
    model: Annotated[
        Literal["organism", "smollm2"],
        typer.Option(help="The embedded model, or a pretrained one of 135M weights, which is fetched."),
    ] = "organism",
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A small model learns facts, generalises, and shows which components did it."""
    with command_run(quiet, debug):
        from ecstruct.runs import start

        start("demo", {"model": model, "seed": seed}, out, device, not quiet)


def reproduce_fields(
    experiments: Annotated[
        list[str],
        typer.Argument(
            help="ocr, scores, freezing, ordering, grafting, localization, sensitivity, or all. Beyond the "
            "paper: built_in, origin, shortcut, domains, prompts, editing, spurious, or beyond; for "
            "pretrained models, generalisation. And rates."
        ),
    ],
    model: Source = "organism",
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N - 1; each organism is a seed's own.")] = 1,
    repeats: Annotated[int, typer.Option(help="Pairings of people and cities per seed.")] = 5,
    lr: Annotated[
        float | None, typer.Option(help="One learning rate for everything; known for some models.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often every document is seen.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Documents per step.")] = 8,
    early: Annotated[float | None, typer.Option(help="Share of the layers that count as early.")] = None,
    facts: Annotated[
        Literal["paper", "people"] | None,
        typer.Option(help="The paper's people, or invented ones with unusual names (smollm2)."),
    ] = None,
) -> Mapping[str, Any]:
    from ecstruct.experiments import Rates, Setup

    rates: Any = None if lr is None else Rates.same(lr)
    some: dict[str, Any] = {"rates": rates, "early": early, "facts": facts}
    setup = Setup(model, seeds, repeats, epochs=epochs, batch_size=batch_size, **some)
    return {"experiments": experiments, "setup": setup.to_dict()}


def sweep(
    grid: Annotated[Path | None, typer.Argument(help="GRID.yaml; docs/sweeps.md has its keys.")] = None,
    out: Out = Path("sweep"),
    executor: Annotated[Literal["local", "slurm"], typer.Option(help="Where jobs run.")] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time; locally one per GPU, or one.")
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="Options of sbatch, as partition=gpu,time=120,gpus_per_node=1; repeatable."),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a cell that failed is tried again.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in OUT.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only show what has become of OUT.")] = False,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Experiments on a grid of models, rates, epochs and seeds, each cell a job; see docs/sweeps.md."""
    with command_run(quiet, debug, again="run it again with --resume", prints=status):
        from ecstruct.grids import run_sweep, status_text

        if status:
            typer.echo(status_text(out))
            return
        failed = run_sweep(grid, out, executor, jobs, slurm or [], retries, resume, device, not quiet)
        if failed:
            typer.echo(f"failed: {', '.join(failed)}", err=True)
            raise typer.Exit(1)


def replay(
    config: Annotated[Path, typer.Argument(help="The config.json of an earlier run.")],
    out: Out,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run again what an earlier run's config.json describes."""
    with command_run(quiet, debug):
        from ecstruct import runs

        runs.replay(config, out, device, not quiet)
