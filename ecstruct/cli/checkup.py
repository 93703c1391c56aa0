"""`ecstruct doctor`: whether all is well with an installation, and with a model in it."""

import json
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from ecstruct.cli.flags import Debug, Device, Source, command_run

if TYPE_CHECKING:
    from ecstruct.doctor import Finding


def doctor(
    model: Source = "organism",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Versions, devices, memory, extras, the hub, and whether a model computes what it should.

    Ends with status 1 if there is a problem.
    """
    with command_run(True, debug, prints=True):
        from ecstruct.doctor import examine

        findings = examine(model, device)
        if as_json:
            typer.echo(json.dumps([finding.to_dict() for finding in findings], ensure_ascii=False))
        else:
            typer.echo("\n".join(_lines(findings)))
        if any(finding.state == "problem" for finding in findings):
            raise typer.Exit(1)


def _lines(findings: "list[Finding]") -> list[str]:
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    for section, its in groupby(findings, lambda finding: finding.section):
        lines += [section, *(f"  {each.state:7}  {each.name:{width}}  {each.text}" for each in its)]
    found = [finding.state for finding in findings]
    return [*lines, f"problems: {found.count('problem')}, warnings: {found.count('warning')}"]
