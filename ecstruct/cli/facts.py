"""`ecstruct facts`: what is read from a file of facts, and an inference task made of one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ecstruct.cli.flags import Debug, Quiet, Seed, command_run

if TYPE_CHECKING:
    from ecstruct.facts import Prompt, Understood

facts_app = typer.Typer(help="Facts of public sets and your own.", no_args_is_help=True)
_SHOWN = 3
"""Prompts of each kind, and options of each prompt, that are printed."""


@facts_app.command()
def show(
    file: Annotated[Path, typer.Argument(help="JSON, JSONL, CSV or TSV, or a folder; see docs/data.md.")],
    format: Annotated[str | None, typer.Option(help="Its format, if it is not to be recognised.")] = None,
    hop: Annotated[
        Literal["first", "second"] | None,
        typer.Option(help="Which hop is new, in sets that leave it open; the first by default."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a file with records left out.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for facts.jsonl, implications.jsonl and known.jsonl, as other commands read."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """What is read from a file of facts: counts, examples, and the records that are left out."""
    with command_run(True, debug, prints=out is None):  # the records left out are part of what is printed
        from ecstruct.facts import understand

        understood = understand(file, format, hop=hop, strict=strict)
        if out is not None:
            _write(understood, out)
        typer.echo(
            json.dumps(_for_json(understood), ensure_ascii=False) if as_json else _text(understood, out)
        )


@facts_app.command()
def overlap(
    file: Annotated[Path, typer.Argument(help="HANS: a file with splits, or a folder with one file each.")],
    out: Annotated[Path, typer.Option(help="Folder for train, in-domain and generalization.jsonl.")],
    share: Annotated[
        float, typer.Option(help="Of the in-domain pairs not entailed: how many are counterexamples.")
    ] = 0.05,
    per_case: Annotated[
        int | None, typer.Option(min=1, help="Pairs of each case that are used; all if not given.")
    ] = None,
    entailed: Annotated[str, typer.Option(help="The label of entailed pairs.")] = "entailment",
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make an inference task that word overlap solves in-domain, and not beyond."""
    with command_run(quiet, debug):
        from ecstruct.facts import overlap_task, read, write_jsonl

        task = overlap_task(read(file), share=share, per_case=per_case, entailed=entailed, seed=seed)
        for name, pairs in vars(task).items():
            write_jsonl(pairs, out / f"{name.replace('_', '-')}.jsonl")
            if not quiet:
                typer.echo(f"{name.replace('_', '-')}: {_counted(len(pairs), 'pairs')}")


def _kinds(understood: "Understood") -> dict[str, tuple["Prompt", ...]]:
    data = understood.data
    return {name: tuple(getattr(data, name)) for name in ("facts", "implications", "known")}


def _for_json(understood: "Understood") -> dict[str, Any]:
    examples = {kind: [p.to_record() for p in its[:_SHOWN]] for kind, its in _kinds(understood).items()}
    return {**understood.to_dict(), "examples": examples}


def _text(understood: "Understood", out: Path | None) -> str:
    account = understood.to_dict()
    records = _counted(account["records"], "records")
    lines = [f"{account['source']}: {account['format']}, {records}"]
    for kind, prompts in _kinds(understood).items():
        if prompts:
            where = f", in {out / kind}.jsonl" if out else ""
            lines += [_counted(len(prompts), kind) + where, *map(_line, prompts[:_SHOWN])]
    for new in account["new_hops"]:
        hops = ", ".join(map(str, new["hops"])) or "none, or not known"
        lines.append(f"new hops {hops}: {_counted(new['implications'], 'implications')}")
    if understood.skipped:
        lines.append(f"{len(understood.skipped)} left out")
        lines += [f"  {skipped.place}: {skipped.reason}" for skipped in understood.skipped]
    return "\n".join(lines)


def _counted(number: int, plural: str) -> str:
    """Return a number with the word for so many.

    >>> _counted(1, "facts"), _counted(2, "facts"), _counted(1, "known")
    ('1 fact', '2 facts', '1 known')
    """
    return f"{number} {plural.removesuffix('s') if number == 1 else plural}"


def _line(prompt: "Prompt") -> str:
    options = prompt.options or ()
    others = [option for option in options if option != prompt.answer][:_SHOWN]
    more = ", ..." if len(options) > len(others) + 1 else ""
    among = f" (of {len(options)}: {', '.join(others)}{more})" if others else ""
    return f"  {_short(prompt.text)} -> {_short(prompt.answer)}{_short(among, 200)}"


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _write(understood: "Understood", out: Path) -> None:
    from ecstruct.facts import write_jsonl

    for kind, prompts in _kinds(understood).items():
        if prompts:
            write_jsonl(prompts, out / f"{kind}.jsonl")
