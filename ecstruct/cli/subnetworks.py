"""`ecstruct subnetworks`: subnetworks that know the facts, what they generalise to, and what all share."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ecstruct.cli.words import (
    JSONL,
    ChatTemplate,
    Debug,
    Device,
    Out,
    Prompts,
    Quiet,
    Seed,
    Source,
    System,
    session,
)

subnetworks_app = typer.Typer(help="Subnetworks that know the facts, and their core.", no_args_is_help=True)

Generalization = Annotated[Path, typer.Option(help=f"What follows from the prompts. {JSONL}")]
MaskFiles = Annotated[
    list[Path], typer.Option("--masks", help="masks.nc of a pruning; again for each further sparsity.")
]


@subnetworks_app.command()
def prune(
    model: Source,
    prompts: Prompts,
    out: Out,
    sparsity: Annotated[float, typer.Option(help="Share of the components that is ablated.")] = 0.5,
    seeds: Annotated[int, typer.Option(help="How many subnetworks.")] = 12,
    steps: Annotated[int, typer.Option(help="Of optimisation; fewer than 150 do not converge.")] = 500,
    kinds: Annotated[
        list[str] | None, typer.Option(help="What may be ablated, heads or mlp; both if not given.")
    ] = None,
    ablation: Annotated[
        Literal["mean", "zero"], typer.Option(help="What an ablated component writes.")
    ] = "mean",
    reference: Annotated[
        Path | None, typer.Option(help=f"Whose mean it is; the prompts by default. {JSONL}")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts per step and seed.")] = 32,
    chat_template: ChatTemplate = False,
    system: System = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find subnetworks that say what the model says; writes masks.nc and report.html.

    Goes on where it was stopped. Ends with status 2 where pruning did not converge.
    """
    with session(quiet, debug):
        from ecstruct.runs import chat_of, records, start

        chat = chat_of(model, chat_template, system)
        config: dict[str, Any] = {
            "model": model,
            "prompts": records(prompts, chat),
            "sparsity": sparsity,
            "seeds": seeds,
            "steps": steps,
            "kinds": kinds or ["heads", "mlp"],
            "ablation": ablation,
            "reference": records(reference, chat) if reference else None,
            "batch_size": batch_size,
        }
        start("subnetworks-prune", config, out, device, not quiet)


@subnetworks_app.command()
def evaluate(
    model: Source,
    masks: MaskFiles,
    prompts: Prompts,
    generalization: Generalization,
    out: Out,
    chat_template: ChatTemplate = False,
    system: System = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ranks and accuracy of every subnetwork; writes evaluation.json, all ranks and report.html."""
    with session(quiet, debug):
        from ecstruct.runs import chat_of, records, start

        chat = chat_of(model, chat_template, system)
        config: dict[str, Any] = {
            "model": model,
            "masks": [str(path) for path in masks],
            "prompts": records(prompts, chat),
            "generalization": records(generalization, chat),
        }
        start("subnetworks-evaluate", config, out, device, not quiet)


@subnetworks_app.command()
def core(
    model: Source,
    masks: MaskFiles,
    prompts: Prompts,
    generalization: Generalization,
    out: Out,
    scores: Annotated[
        Path | None, typer.Option(help="scores.nc of the same model, to put beside the core.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Of random components, for each network.")] = 20,
    seed: Seed = 0,
    chat_template: ChatTemplate = False,
    system: System = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """What all subnetworks keep, and what is left without it; writes core.nc, core.json and report.html."""
    with session(quiet, debug):
        from ecstruct.runs import chat_of, records, start

        chat = chat_of(model, chat_template, system)
        config: dict[str, Any] = {
            "model": model,
            "masks": [str(path) for path in masks],
            "prompts": records(prompts, chat),
            "generalization": records(generalization, chat),
            "scores": None if scores is None else str(scores),
            "draws": draws,
            "seed": seed,
        }
        start("subnetworks-core", config, out, device, not quiet)
