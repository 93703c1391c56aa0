"""Commands that reports, messages and pages show can be pasted into a shell, whatever the folder is called.

Of pages, every command goes through its own parser. Those in blocks are run as well, but for NOT_RUN, on
the organism, with few prompts and short trainings.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from helpers.chat_models import save_chat
from helpers.cli_inputs import jsonl
from helpers.command_line import run, works
from helpers.readers_records import KNOWN_1000, LRE, MQUAKE, TWO_HOP_FACT, written

import ecstruct
from ecstruct import Prompt
from ecstruct.cli import app
from ecstruct.experiments.reproduction import named
from ecstruct.facts import write_jsonl
from ecstruct.grids import Grid
from ecstruct.grids.combine import combine
from ecstruct.runs.configuration import replay_command
from ecstruct.subnetworks import masks

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES.remove(ROOT / "docs" / "cli.md")  # written from the commands, without values

NOT_RUN = {
    "ecstruct reproduce": (36, "minutes to hours; test_reproduce.py runs it on a tiny model"),
    "ecstruct organism pretrain": (6, "17 minutes; test_pretraining.py runs it on few sentences"),
    "ecstruct demo": (2, "test_cli_demo.py and test_pretrained.py run it"),
    "ecstruct sweep": (4, "minutes, or a cluster; test_grid_sweeps.py and test_grid_slurm.py run it"),
    "ecstruct recall --before smollm2": (1, "asks what SmolLM2 knows; test_recall_cli.py runs tiny models"),
    "ecstruct subnetworks emergence": (3, "of a training; test_subnetworks_emergence.py runs tiny models"),
    "heuristic-core.md|classifiers.md": (16, "hours on MiniLM; test_classifiers.py runs tiny classifiers"),
    "python (-m|tests)|pytest": (19, "measurements, tests and builds"),
}
"""Commands of blocks that are parsed and not run, by page or beginning: how many, and why."""

SHORTER = {
    "finetune": ["--epochs", "2"],
    "fidelity": ["--sample", "2", "--form", "surrogate"],
    "grafts": ["--random-sets", "3", "--random-seeds", "1"],
    "subnetworks prune": ["--seeds", "2", "--steps", "3"],
    "subnetworks core": ["--draws", "1"],
}
"""Options that take the place of those on the page, so that commands end in seconds."""

STANDS_FOR = {
    "MODEL|FOLDER|smollm2|(allenai|meta-llama|EleutherAI)/.*": "organism",
    "Qwen/.*": "chat",
    "heads 20-29": "heads 4-5",
}
"""Words of commands, and what is given in their place."""


class Shown(NamedTuple):
    """A command that a page shows, in a block or within a sentence."""

    page: str
    in_block: bool
    words: tuple[str, ...]


def lines_of(page: Path) -> Iterator[tuple[bool, str]]:
    """Every line of a page's shell blocks, and every span of code outside of blocks."""
    language, prose = None, ""
    for line in page.read_text("utf-8").replace("\\\n", " ").splitlines():
        if fence := re.match(r" *```(\w*)", line):
            language = fence[1] if language is None else None
        elif language in ("", "sh") or (language is None and line.startswith("    ")):
            yield True, line
        elif language is None:
            prose += f"{line} "
    yield from ((False, span) for span in re.findall("`([^`]+)`", prose))


def shown() -> Iterator[Shown]:
    for page in PAGES:
        for in_block, line in lines_of(page):
            for part in line.strip().split(" && "):
                if re.match(r"(torchrun .* -m )?(ecstruct|python|pytest) [\w-]", part):
                    words = shlex.split(part, comments=True)
                    words = words[words.index("-m") + 1 :] if words[0] == "torchrun" else words
                    words = [word.replace("$seed", "0") for word in words]
                    yield Shown(page.relative_to(ROOT).as_posix(), in_block, tuple(words))


SHOWN = list(shown())
IN_BLOCKS: dict[tuple[str, ...], str] = {}
"""The first page that has a command in a block."""
for one in SHOWN:
    if one.in_block:
        IN_BLOCKS.setdefault(one.words, one.page)


def why_not_run(words: tuple[str, ...]) -> str | None:
    """Which entry of NOT_RUN a command of a block falls under."""
    where = f"{IN_BLOCKS[words]}: {' '.join(words)}"
    return next((entry for entry in NOT_RUN if re.search(entry, where)), None)


RUN: dict[str, list[list[str]]] = {}
"""The commands that are run, by the first page that has them; what differs in folders alone runs once."""
kinds = set()
for words, page in IN_BLOCKS.items():
    alike = re.sub(r"--out \S+|\bdata/", "", " ".join(words))
    if why_not_run(words) is None and alike not in kinds:
        RUN.setdefault(page, []).append([*words])
        kinds.add(alike)


@pytest.mark.parametrize("page", dict.fromkeys(one.page for one in SHOWN))
def test_commands_of_a_page_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, in_block, (program, *words) in (one for one in SHOWN if one.page == page):
        if program == "ecstruct":
            understood(words, whole=in_block)
        elif words[0] == "-m" and words[1].split(".")[0] in ("ecstruct", "benchmarks"):
            understood_by_module(words[1], words[2:], monkeypatch)
        else:
            assert all((ROOT / word).exists() for word in words if word.endswith(".py")), words


def understood(words: list[str], *, whole: bool) -> None:
    """Let the command line read its words, of which sentences may leave some out."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    try:
        read = command.make_context(command.name, words)
    except Exception as error:
        left_out = ("MissingParameter", "BadOptionUsage")  # the latter: an option without its value
        assert type(error).__name__ in left_out and not whole, (command.name, words, error)
        return
    if command.name == "reproduce" and read.params["experiments"] != ["share"]:  # of docs/how-to-add.md
        named(read.params["experiments"])


def understood_by_module(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Understood(Exception):
        pass

    def parse(parser: argparse.ArgumentParser, *given: Any) -> None:
        unknown = parser.parse_known_args(words)[1]
        assert not unknown, (name, unknown)
        raise Understood

    spec = find_spec(name)
    spec = find_spec(f"{name}.__main__") if spec and spec.submodule_search_locations else spec
    assert spec and spec.origin, f"there is no module {name}"
    with monkeypatch.context() as patch, pytest.raises(Understood):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        runpy.run_path(spec.origin, run_name="__main__")


def test_what_is_not_run_is_listed() -> None:
    """A command that comes to a page is run, or counted by whom it is added."""
    counts = Counter(filter(None, map(why_not_run, IN_BLOCKS)))
    assert counts == {how: n for how, (n, _) in NOT_RUN.items()}


def told_apart(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Prompts whose options are one another's answers."""
    options = tuple(prompt.answer for prompt in prompts)
    return tuple(replace(prompt, options=options) for prompt in prompts)


def hops(facts: Sequence[Prompt], known: Sequence[Prompt]) -> Iterator[dict[str, str]]:
    """Records of TwoHopFact in words of the organism."""
    for fact, then in zip(facts, known, strict=True):
        yield TWO_HOP_FACT | {
            "e1.value": fact.subject,
            "e2.value": fact.answer,
            "e3.value": then.answer,
            "e2.aliases": "[]",
            "e3.aliases": "[]",
            "r1(e1).prompt": fact.text,
            "r2(e2).prompt": then.text,
            "r2(r1(e1)).prompt": f"The people in the city {fact.subject} is from speak",
        }


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that pages start from."""
    folder = tmp_path_factory.mktemp("begun")
    data = ecstruct.facts.first_hop().subset([0, 2])
    data = replace(data, facts=told_apart(data.facts), implications=told_apart(data.implications))
    known = [
        Prompt(f"The people in {fact.answer} speak", implied.answer, subject=fact.answer)
        for fact, implied in zip(data.facts, data.implications, strict=True)
    ]
    kinds = {"facts": data.facts, "implications": data.implications, "known": known}
    for place in (folder, folder / "data"):
        for name, prompts in kinds.items():
            write_jsonl(prompts, place / f"{name}.jsonl")
    for name, kind in {"prompts": "known", "p": "facts", "known_fact": "known"}.items():
        write_jsonl(kinds[kind], folder / f"{name}.jsonl")
    write_jsonl(data.implications, folder / "known_implication.jsonl")
    jsonl(
        folder / "first-hop.jsonl",
        (
            {**prompt.to_record(), "case": case, "role": role}
            for role, prompts in (("fact", data.facts), ("implication", data.implications))
            for case, prompt in enumerate(prompts)
        ),
    )
    written(folder, "mquake", MQUAKE).rename(folder / "MQuAKE-CF-3k.json")
    written(folder, "twohopfact", *hops(data.facts, known)).rename(folder / "TwoHopFact.csv")
    jsonl(folder / "known_1000.jsonl", [KNOWN_1000])
    jsonl(folder / "lre_relations.jsonl", [LRE])
    save_chat(folder / "chat")
    before = ecstruct.load("organism", device="cpu")
    tuned = ecstruct.finetune(before, data.facts, progress=False)
    tuned.delta.save(folder / "tuned" / "delta.safetensors")
    for name in ("run/checkpoint-1000", "run/checkpoint-2000", "runs/sft", "runs/sft/checkpoint-1000"):
        ecstruct.save_model(before if name.endswith("1000") else tuned.model, folder / name)
    ecstruct.score(before, tuned.model, data.implications).save(folder / "scores" / "scores.nc")
    return folder


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run(
    page: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(begun, tmp_path / "here"))
    monkeypatch.setattr(masks, "TOLERANCE", 1.0)  # of pruning, which a few steps leave unfinished
    for program, *words in RUN[page]:
        if program == "python":
            exec(words[1], {})  # -c
            continue
        shorter = next((SHORTER[n] for k in (1, 2) if (n := " ".join(words[:k])) in SHORTER), [])
        works(*(stand_in(word) for word in words), *shorter)


def stand_in(word: str) -> str:
    return next((there for shown, there in STANDS_FOR.items() if re.fullmatch(shown, word)), word)


def test_a_replay_of_a_folder_with_spaces() -> None:
    assert (
        replay_command(Path("my runs/one"))
        == "ecstruct replay 'my runs/one/config.json' --out 'my runs/one-again'"
    )


def test_a_sweep_is_gone_on_with_from_its_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "my sweep"
    folder.mkdir()
    grid = Grid(["ocr"], models=["nobody/nothing"], learning_rates=[1e-4])
    (folder / "grid.json").write_text(json.dumps(grid.to_dict()))
    combine(folder)
    (command,) = (
        line
        for line in unescape((folder / "report.html").read_text(encoding="utf-8")).splitlines()
        if "ecstruct sweep" in line and not line.lstrip().startswith("<script")
    )
    words = shlex.split(command[command.index("ecstruct sweep") : command.index("--resume")])
    assert words == ["ecstruct", "sweep", "--out", str(folder)]
    # The grid is in the folder: the command needs no other file.
    result = run(*words[1:], "--resume", "--status")
    assert result.exit_code == 0 and "1 missing" in result.stdout
