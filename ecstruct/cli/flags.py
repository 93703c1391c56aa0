"""What the commands share: options that several of them take, and how each begins and ends."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ecstruct.cli.streams import lost
from ecstruct.commands.fields import JSONL, SOURCE
from ecstruct.errors import InputError, LostRank
from ecstruct.io.interruption import STATUS, Terminated, listening

Source = Annotated[str, typer.Option(help=SOURCE)]
Prompts = Annotated[Path, typer.Option(help=JSONL)]
ChatTemplate = Annotated[
    bool,
    typer.Option("--chat-template", help="Ask as a user does, in the chat template of the tokenizer."),
]
System = Annotated[str | None, typer.Option(help="With --chat-template: the system message.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, no tables; errors are printed.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def command_run(
    quiet: bool, debug: bool, *, again: str = "run the same command again", prints: bool = False
) -> Iterator[None]:
    """Run a command in this context: silence libraries, and print errors that the user can mend as one
    sentence, with exit status 2.

    With `prints`, standard output is the command's result, and it is an error if it cannot be written. For
    other commands it is not: what they finished is in files. `again` tells in a message how to go on after
    a SIGTERM.
    """
    with _errors_as_messages(debug, again):
        _prepare_process(quiet, debug)
        with listening():
            yield
        if prints and (why := lost()):
            raise InputError(f"cannot write to standard output: {why}.")


def _prepare_process(quiet: bool, debug: bool) -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise InputError(
            f"the working directory cannot be used ({error.strerror}): change to another one."
        ) from error
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    logging.basicConfig(format="%(message)s", level=logging.ERROR if quiet else logging.WARNING)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not debug:
        warnings.simplefilter("ignore")


@contextmanager
def _errors_as_messages(debug: bool, again: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        if debug or error.filename is None:
            raise
        typer.echo(f"error: cannot use {error.filename} ({error.strerror}): choose another.", err=True)
        raise typer.Exit(2) from None
    except LostRank as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    except Terminated:
        typer.echo(f"terminated: {again} to go on", err=True)
        raise typer.Exit(STATUS) from None
