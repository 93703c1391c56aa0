"""`ecstruct subnetworks`: subnetworks that know the facts, what they generalise to, and what all share."""

import typer

from ecstruct.cli.command import command

subnetworks_app = typer.Typer(help="Subnetworks that know the facts, and their core.", no_args_is_help=True)


@subnetworks_app.command()
@command("subnetworks-prune")
def prune() -> None:
    """Find subnetworks that say what the model says; writes masks.nc and report.html.

    Goes on where it was stopped. Ends with status 2 where pruning did not converge.
    """


@subnetworks_app.command()
@command("subnetworks-evaluate")
def evaluate() -> None:
    """Ranks and accuracy of every subnetwork; writes evaluation.json, all ranks and report.html."""


@subnetworks_app.command()
@command("subnetworks-core")
def core() -> None:
    """What all subnetworks keep, and what is left without it; writes core.nc, core.json and report.html."""


@subnetworks_app.command()
@command("subnetworks-emergence")
def emergence() -> None:
    """From which checkpoint of a training on the core is needed; writes emergence.csv and report.html.

    With --sparsity, subnetworks of every checkpoint are found too, and its effective size.
    """
