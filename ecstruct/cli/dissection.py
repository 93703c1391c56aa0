"""`ecstruct recall`: how a model recalls facts, and whether finetuning changed that."""

from typing import Annotated, Any, Literal

import typer

from ecstruct.cli.words import (
    SOURCE,
    ChatTemplate,
    Debug,
    Device,
    Out,
    Prompts,
    Quiet,
    Source,
    System,
    session,
)


def recall(
    model: Source,
    prompts: Prompts,
    out: Out,
    after: Annotated[
        str | None,
        typer.Option(help=f"The finetuned model to compare with: {SOURCE}"),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Layers blocked at once; 9, or all of a model that has fewer.")
    ] = None,
    token: Annotated[
        Literal["predicted", "answer"] | None,
        typer.Option(
            help="Whose probability and extraction is measured; answer with --after, else predicted."
        ),
    ] = None,
    attributes: Annotated[
        str,
        typer.Option(
            help="What there is to know of subjects: a JSONL file with the keys subject and text, 'facts' "
            "(the prompts' answers; refused where these are one word each), 'answers' (the same; left out "
            "there), 'world' for the organism, or 'none'."
        ),
    ] = "answers",
    onto: Annotated[
        Literal["unembedding", "embedding"],
        typer.Option(help="What hidden states are projected with to look for attributes."),
    ] = "unembedding",
    chat_template: ChatTemplate = False,
    system: System = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Attention knockout, subject enrichment and attribute extraction; writes arrays and report.html.

    Prompts need a subject. With --after, both models side by side, and beside their extractive scores.
    Goes on where it was stopped.
    """
    with session(quiet, debug):
        from ecstruct.runs import chat_of, records, start

        config: dict[str, Any] = {
            "model": model,
            "prompts": records(prompts, chat_of(model, chat_template, system)),
            "window": window,
            "token": token or ("predicted" if after is None else "answer"),
            "onto": onto,
            "attributes": attributes,
        }
        if after is not None:
            config["after"] = after
        start("recall", config, out, device, not quiet)
