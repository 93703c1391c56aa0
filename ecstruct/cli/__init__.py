"""The command line, `ecstruct demo` and the others that `ecstruct --help` lists.

It only turns words into a configuration; `ecstruct.runs` does the work. Bad input ends with one sentence
and status 2, without a traceback unless `--debug` asks for it.
"""

import sys
from typing import Annotated

import typer

from ecstruct import __version__
from ecstruct.cli.checking import controls_fields, fidelity_fields
from ecstruct.cli.checkup import doctor
from ecstruct.cli.command import command_of
from ecstruct.cli.experiments import demo, replay, reproduce_fields, sweep
from ecstruct.cli.facts import facts_app
from ecstruct.cli.organism import organism_app
from ecstruct.cli.scoring import rank, score_fields
from ecstruct.cli.streams import surviving_output_errors
from ecstruct.cli.training import finetune_fields

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ecstruct {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Which MLPs and attention heads make a finetuned language model generalise."""


for function in (
    *(demo, doctor, command_of("diagnose"), command_of("alignment")),
    *(command_of("finetune", finetune_fields), rank, command_of("score", score_fields)),
    *(command_of("fidelity", fidelity_fields), command_of("causal"), command_of("edges")),
    *(command_of("controls", controls_fields), command_of("graft"), command_of("grafts")),
    *(
        command_of("suggest"),
        command_of("recall"),
        command_of("reproduce", reproduce_fields),
        sweep,
        replay,
    ),
):
    app.command()(function)
subnetworks_app = typer.Typer(help="Subnetworks that know the facts, and their core.", no_args_is_help=True)
for name in ("prune", "evaluate", "core", "emergence"):
    subnetworks_app.command(name)(command_of(f"subnetworks-{name}"))
app.add_typer(organism_app, name="organism")
app.add_typer(facts_app, name="facts")
app.add_typer(subnetworks_app, name="subnetworks")


def main() -> None:
    if why := _cannot_start():
        typer.echo(f"error: {why}", err=True)
        sys.exit(2)
    with surviving_output_errors():
        app()


def _cannot_start() -> str:
    """Return in a sentence why no command can work here; "" if one can."""
    if sys.flags.optimize > 1:
        return "python -OO removes texts that transformers reads: start python without it, or with -O."
    for word in sys.argv[1:]:
        if word.encode("utf-8", "ignore").decode() != word:
            shown = word.encode("utf-8", "backslashreplace").decode()
            return f"{shown} is not in UTF-8, as names of files have to be here: rename it."
    return ""
