"""`ecstruct rank`, `score` and `fidelity`: what is measured of models as they are."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ecstruct.cli.words import (
    After,
    AnswerTokens,
    Baseline,
    ChatTemplate,
    Debug,
    Device,
    Out,
    Prompts,
    Quiet,
    Reward,
    Seed,
    Source,
    System,
    session,
)

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
        Literal["first", "all"], typer.Option(help="What options are told apart by.")
    ] = "first",
    chat_template: ChatTemplate = False,
    system: System = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rank of every answer among its options, 0 being best, and their mean."""
    with session(quiet, debug, prints=out is None):
        from ecstruct.runs import chat_of, rank_table

        chat = chat_of(model, chat_template, system)
        table = rank_table(model, prompts, device, out, chat, answer_tokens, adapter)
        if not quiet:
            typer.echo(table.to_string(index=False))
        typer.echo(f"mean rank {table['rank'].mean():.3f}")


def score(
    before: Source,
    after: After,
    prompts: Prompts,
    out: Out,
    chat_template: ChatTemplate = False,
    system: System = None,
    reward: Reward = "logit_diff",
    answer_tokens: AnswerTokens = "first",
    baseline: Baseline = "counterfactual",
    upstream: Annotated[
        Literal["local", "surrogate", "exact"],
        typer.Option(
            help="Upstream slopes under new weights: on old activations, on new ones, or with only later "
            "weights new."
        ),
    ] = "local",
    propagation: Annotated[
        Literal["relevance", "gradient"],
        typer.Option(
            help="What these slopes are: by the rules of relevance, or gradients as in the paper."
        ),
    ] = "relevance",
    convention: Annotated[
        Literal["definition", "reference"],
        typer.Option(help="To which token a score is booked: as defined, or as in the published code."),
    ] = "definition",
    path_steps: Annotated[
        int, typer.Option(help="Points between both models at which informative gradients are taken.")
    ] = 1,
    verify: Annotated[
        int | None,
        typer.Option(
            help="Run the interventions on so many of the strongest components by each score; "
            f"{VERIFIED} by default, 0 with --offload.",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts per batch; chosen if not given.")] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Leave both models on disk, and read one block at a time.")
    ] = False,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Informative, upstream and downstream scores; writes scores.nc and report.html.

    Goes on where it was stopped. Under torchrun all processes share the prompts.
    """
    with session(quiet, debug):
        from ecstruct.runs import chat_of, records, start

        config: dict[str, Any] = {
            "before": before,
            "after": after,
            "prompts": records(prompts, chat_of(before, chat_template, system)),
            "reward": reward,
            "answer_tokens": answer_tokens,
            "baseline": baseline,
            "upstream": upstream,
            "propagation": propagation,
            "convention": convention,
            "path_steps": path_steps,
            "verify": (0 if offload else VERIFIED) if verify is None else verify,
            "batch_size": batch_size,
            "offload": offload,
        }
        start("score", config, out, device, not quiet)


def fidelity(
    before: Source,
    after: After,
    prompts: Prompts,
    out: Out,
    chat_template: ChatTemplate = False,
    system: System = None,
    reward: Reward = "logit_diff",
    answer_tokens: AnswerTokens = "first",
    baseline: Baseline = "counterfactual",
    top: Annotated[int, typer.Option(help="How many components count as the strongest.")] = 5,
    form: Annotated[
        list[str] | None,
        typer.Option(help="Another way to score, to compare: path, surrogate or exact; repeatable."),
    ] = None,
    sample: Annotated[int, typer.Option(help="Intervene on so many components.")] = 12,
    whole: Annotated[bool, typer.Option("--whole", help="Intervene on all components.")] = False,
    seed: Seed = 0,
    memory: Annotated[int | None, typer.Option(help="Bytes for interventions at once.")] = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """How far the scores can be trusted: each beside the intervention it stands for."""
    with session(quiet, debug):
        from ecstruct.runs import chat_of, records, start

        config: dict[str, Any] = {
            "before": before,
            "after": after,
            "prompts": records(prompts, chat_of(before, chat_template, system)),
            "reward": reward,
            "answer_tokens": answer_tokens,
            "baseline": baseline,
            "top": top,
            "forms": form or [],
            "sample": None if whole else sample,
            "seed": seed,
            "memory": memory,
        }
        start("fidelity", config, out, device, not quiet)
