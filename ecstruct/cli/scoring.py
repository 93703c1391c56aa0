"""`ecstruct rank`, and options of `score` that are no fields of its configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ecstruct.cli.flags import ChatTemplate, Debug, Device, Prompts, Quiet, Source, System, command_run
from ecstruct.options import AnswerTokens

VERIFIED = 2
"""Of the strongest by each score: their interventions cost about as much as the scores."""


def rank(
    model: Source,
    prompts: Prompts,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the ranks to.")] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="Adapter to merge first; that of --model, if it is an adapter's folder itself."),
    ] = None,
    answer_tokens: Annotated[
        AnswerTokens, typer.Option(help="Tokens by which options are compared.")
    ] = "first",
    chat_template: ChatTemplate = False,
    system: System = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rank of every answer among its options, 0 being best, and their mean."""
    with command_run(quiet, debug, prints=out is None):
        from tqdm import tqdm

        # On a terminal alone, until it is done: the imports take most of the time.
        with tqdm(desc=f"asking {model}", bar_format="{desc}", leave=False, disable=quiet or None):
            from ecstruct.runs.configuration import chat_of
            from ecstruct.runs.ranking import rank_table

            chat = chat_of(model, chat_template, system)
            table = rank_table(model, prompts, device, out, chat, answer_tokens, adapter)
        if not quiet:
            typer.echo(table.to_string(index=False))
        typer.echo(f"mean rank {table['rank'].mean():.3f}")


def score_fields(
    verify: Annotated[
        int | None,
        typer.Option(
            help="Run the interventions on so many of the strongest components by each score; "
            f"{VERIFIED} by default, 0 with --offload.",
        ),
    ] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Leave both models on disk, and read one block at a time.")
    ] = False,
) -> Mapping[str, Any]:
    return {"verify": (0 if offload else VERIFIED) if verify is None else verify, "offload": offload}
