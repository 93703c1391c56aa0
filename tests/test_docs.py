"""The docs run, are complete, and say what the code says.

    python tests/test_docs.py

writes docs/cli.md, which the tests compare with the commands.
"""

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import plotly.graph_objects as go
import pytest
import typer
import yaml
from typer.models import ArgumentInfo, OptionInfo

import ecstruct
from ecstruct.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CLI = DOCS / "cli.md"
PAGES = sorted(DOCS.rglob("*.md"))
SHOWN = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def pages_of(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(inner)


# The command line


def commands(group: typer.Typer, prefix: str = "ecstruct") -> Iterator[tuple[str, Any]]:
    """The commands of the command line in the order of its help, with the function of each."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{prefix} {command.name or command.callback.__name__.replace('_', '-')}", command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, f"{prefix} {inner.name}")


def described(name: str, annotation: Any, default: Any) -> tuple[bool, str, str]:
    """Whether a parameter is an argument, and its row: how it is written, and what it is."""
    kind, info = get_args(annotation)[0], get_args(annotation)[-1]
    assert isinstance(info, ArgumentInfo | OptionInfo), name
    kinds = [one for one in get_args(kind) if one is not type(None)]
    if kinds and get_origin(kind) not in (Literal, list):
        kind = kinds[0]  # of an optional one
    argument, several = isinstance(info, ArgumentInfo), get_origin(kind) is list
    kind = get_args(kind)[0] if several else kind
    # Within Annotated the first name of an option is where its default is elsewhere.
    named = [str(one) for one in (info.default, *(info.param_decls or ())) if str(one).startswith("-")]
    flag = (named or [f"--{name.replace('_', '-')}"])[0]
    if argument:
        written = f"{name.upper()}{'...' if several else ''}"
    elif kind is bool:
        written = flag if named else f"{flag} / --no-{flag[2:]}"
    elif get_origin(kind) is Literal:
        written = f"{flag} {'|'.join(get_args(kind))}"
    else:
        written = f"{flag} {SHOWN[kind]}"
    text = (info.help or "").rstrip(".").replace("|", "\\|")
    required = default is inspect.Parameter.empty
    if required and not argument:
        text += "; **required**"
    elif kind is not bool and not required and default not in (None, ""):
        text += f"; `{default}` if not given"
    return argument, written.replace("|", "\\|"), text


def command_line() -> str:
    """The page of all commands and their options."""
    lines = [
        "# Command line",
        "",
        "For those who look an option up: every command, with all that it takes.",
        "",
        "Every command takes `--help`. Bad input ends with one sentence and status 2; a run that was asked",
        "to stop ends with status 143, and goes on when it is started again. This page is written by",
        "`python tests/test_docs.py`.",
    ]
    for name, function in commands(app):
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
        rows = [described(key, hints[key], parameters[key].default) for key in parameters]
        usage = " ".join([name, *(written for argument, written, _ in rows if argument), "[OPTIONS]"])
        paragraphs = inspect.cleandoc(function.__doc__ or "")
        lines += ["", f"## {name}", "", f"    {usage}", "", paragraphs, "", "| | |", "|---|---|"]
        lines += [f"| `{written}` | {text} |" for _, written, text in rows]
    return "\n".join(lines) + "\n"


def test_the_page_of_the_command_line_is_up_to_date():
    assert CLI.read_text("utf-8") == command_line(), "run `python tests/test_docs.py`"


def test_commands_are_described_as_typer_takes_them():
    """Held against typer's own: the names of all options, by the parser that it builds."""
    page = command_line()
    found = typer.main.get_command(app)

    def check(command: Any, name: str) -> None:
        if inner := getattr(command, "commands", None):
            for key, value in inner.items():
                check(value, f"{name} {key}")
            return
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option != "--help" and option.startswith("-"):
                    assert re.search(rf"{re.escape(option)}\b", section), (name, option)
        n_rows = sum(line.startswith("| `") for line in section.splitlines())
        assert n_rows == sum("--help" not in parameter.opts for parameter in command.params), name

    check(found, "ecstruct")


# Pages


def test_every_page_is_in_the_navigation():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = list(pages_of(site["nav"]))
    assert sorted(listed) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_every_page_says_first_whom_it_is_for():
    for page in PAGES:
        if page.parent.name != "api" and page.stem not in ("index", "changelog", "contributing"):
            assert re.match(r"# .+\n\nFor those ", page.read_text("utf-8")), page


def test_the_index_for_language_models_has_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    listed = re.findall(r"^- \[.+\]\((\S+)\)$", (DOCS / "llms.txt").read_text("utf-8"), re.MULTILINE)
    assert listed == list(pages_of(nav))


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text("utf-8"))
    local = [target for target in targets if "://" not in target]
    assert len(local) > 5
    for target in local:
        assert (ROOT / target).exists(), target


def test_every_public_name_has_an_entry():
    """All that `ecstruct` and its packages export is on a page of the reference."""
    entries = set()
    for page in (DOCS / "api").glob("*.md"):
        paths = re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.MULTILINE)
        entries |= {path.rsplit(".", 1)[-1] for path in paths}
    exported = {name: getattr(ecstruct, name) for name in ecstruct.__all__}
    packages = [value for value in exported.values() if inspect.ismodule(value)]
    public = {name for name, value in exported.items() if value not in packages}
    for package in packages:
        public |= {name for name in package.__all__ if callable(getattr(package, name))}
    results = {name for name in ecstruct.experiments.__all__ if name[0].isupper()}  # as one, `Result`
    missing = sorted(public - entries - results)
    assert not missing, f"give {missing} an entry in docs/api"


def test_versions_agree():
    for name, pattern in {
        "pyproject.toml": r'^version = "(.*)"',
        "CITATION.cff": r"^version: (.*)$",
        "CHANGELOG.md": r"^## \[(\d.*?)\]",
    }.items():
        found = re.search(pattern, (ROOT / name).read_text("utf-8"), re.MULTILINE)
        assert found and found[1] == ecstruct.__version__, name


# Code


def test_worked_diffs_fit_the_code():
    """What they keep or take away is there, in its order; what they add is not."""
    sections = [
        part
        for diff in blocks(DOCS / "how-to-add.md", "diff")
        for part in re.split(r"^# ", diff, flags=re.M)
    ]
    n_lines = 0
    for section in filter(None, sections):
        name, *lines = section.splitlines()
        old = [line[1:] for line in lines if line[:1] in (" ", "-") and line[1:].strip()]
        if old:
            code = (ROOT / name).read_text("utf-8").splitlines()
            rest = iter(code)
            for line in old:
                assert line in rest, f"{name} has changed: {line!r} is not where docs/how-to-add.md has it"
            n_lines += len(old)
        else:
            assert not (ROOT / name).exists(), f"{name} is there already"
    assert n_lines > 40


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/quickstart.md"])
def test_the_code_of_the_first_pages_runs(name, monkeypatch, tmp_path, capsys):
    """What they say comes out does, where a comment has a text or a number."""
    monkeypatch.setattr(go.Figure, "show", lambda _: None)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(ROOT / name, "python"))
    scope: dict[str, Any] = {}
    for line in filter(None, code.splitlines()):
        statement, _, comment = line.partition("  # ")
        if isinstance(ast.parse(statement).body[0], ast.Expr):
            value = eval(statement, scope)
            if said := re.match(r"'.*'|\d+\.\d+", comment):
                expected = ast.literal_eval(said[0])
                assert value == (
                    pytest.approx(expected, abs=0.3) if isinstance(expected, float) else expected
                )
        else:
            exec(statement, scope)
    assert isinstance(scope["scores"], ecstruct.ExtractiveScores)


if __name__ == "__main__":
    CLI.write_text(command_line(), encoding="utf-8")
