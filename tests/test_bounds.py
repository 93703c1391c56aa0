"""Options and environments that no run can make sense of: one sentence, at once."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli_inputs import save_inputs
from helpers.command_line import refused, run
from helpers.tiny import PROMPTS, hooked_pair

import ecstruct
from ecstruct.checks import controls
from ecstruct.errors import InputError
from ecstruct.experiments.setup import Setup
from ecstruct.facts import FactSet
from ecstruct.finetuning import finetune
from ecstruct.io import distributed
from ecstruct.io.values import NUMBERS
from ecstruct.models.loading import device_of
from ecstruct.organism import pretrain
from ecstruct.recall import knockout
from ecstruct.subnetworks import prune

pytestmark = pytest.mark.usefixtures("offline")

MANY, LATE = 10**22, 2**64
FACTS = FactSet(PROMPTS, PROMPTS[:2])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


COMMANDS: dict[str, tuple[tuple[str, ...], dict[str, list[Any]]]] = {
    "demo": ((), {"seed": [LATE]}),
    "finetune": (
        ("model", "facts"),
        {
            **{"lr": [1e31, 1e38, 1e39, 1e308, "nan", "inf"], "epochs": [MANY, 10**400]},
            **{"batch-size": [MANY], "accumulate": [MANY], "checkpoint-every": [MANY]},
            **{"seed": [LATE], "lora": [f"r={MANY}", f"r=2,alpha=1{'0' * 310}"]},
        },
    ),
    "score": (
        ("before", "after", "prompts"),
        {"path-steps": [MANY], "batch-size": [MANY], "verify": [MANY]},
    ),
    "fidelity": (
        ("before", "after", "prompts"),
        {"top": [MANY], "sample": [MANY], "memory": [MANY], "seed": [LATE]},
    ),
    "recall": (("before", "prompts"), {"window": [MANY]}),
    "reproduce": (
        (),
        {
            "lr": [1e31, 1e38, 1e308],
            "seeds": [MANY],
            "repeats": [MANY],
            "epochs": [MANY],
            "batch-size": [MANY],
        },
    ),
    "subnetworks prune": (
        ("model", "prompts"),
        {"seeds": [MANY], "steps": [MANY], "batch-size": [MANY], "sparsity": ["nan", "1e308"]},
    ),
    "organism pretrain": ((), {"seed": [LATE], "steps": [MANY], "threads": [1024, 100_000, MANY]}),
}
CASES = [
    pytest.param(command, option, value, id=f"{command} {option} {str(value)[:25]}")
    for command, (_, options) in COMMANDS.items()
    for option, values in options.items()
    for value in values
]


@pytest.mark.parametrize(("command", "option", "value"), CASES)
def test_what_is_too_large_is_refused(
    inputs: Path, tmp_path: Path, command: str, option: str, value: Any
) -> None:
    files = {"model": "model", "before": "model", "after": "after"}
    words = command.split() + ["ocr"] * (command == "reproduce")
    for name in COMMANDS[command][0]:
        words += [f"--{name}", str(inputs / files.get(name, "prompts.jsonl"))]
    refused(run(*words, f"--{option}", value, "--out", tmp_path / "out"), option.replace("-", "."))
    assert not (tmp_path / "out").exists()


def test_the_largest_rate_is_no_traceback(inputs: Path, tmp_path: Path) -> None:
    words = ("--model", inputs / "model", "--facts", inputs / "prompts.jsonl", "--out", tmp_path / "out")
    refused(run("finetune", *words, "--lr", 1e30, "--quiet"), "the loss became nan .* smaller lr=")


def test_rates_of_callers() -> None:
    model = hooked_pair("llama")[0]
    for lr in (1e31, 1e308, float("inf"), float("nan")):
        with pytest.raises(InputError, match="is no learning rate"):
            finetune(model, PROMPTS, lr=lr, progress=False)
        with pytest.raises(InputError, match=f"lr={lr}: it should be".replace("+", r"\+")):
            prune(model, PROMPTS, lr=lr, progress=False)


def documented() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions and methods of the pages on Python, and what makes an engine."""
    for page in sorted((Path(__file__).parents[1] / "docs" / "api").glob("*.md")):
        for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            found = pydoc.locate(name)
            if inspect.isclass(found):
                methods = inspect.getmembers(found, lambda m: inspect.isfunction(m) or inspect.ismethod(m))
                yield from ((f"{name}.{n}", method) for n, method in methods if n[0] != "_")
            elif callable(found):
                yield name, found
    yield "ecstruct.ScoreEngine", ecstruct.ScoreEngine


def too_large(option: str) -> int:
    return LATE if option == "seed" else MANY


OF_OTHERS = (
    *("ecstruct.recall.", "ecstruct.subnetworks.Masks.", "ecstruct.organism.training."),
    *("ecstruct.organism.pretraining.", "ecstruct.experiments.rate_sensitivity."),
)
"""Where the model has a limit of its own, or such a name is of something else, as a list of epochs."""

OPTIONS = [
    pytest.param(function, option, id=f"{name} {option}")
    for name, function in documented()
    for option in sorted(inspect.signature(function).parameters.keys() & NUMBERS.keys())
    if not name.startswith(OF_OTHERS) and (name, option) != ("ecstruct.fidelity", "path_steps")
]


@pytest.mark.parametrize(("function", "option"), OPTIONS)
def test_what_is_too_large_is_refused_of_callers(function: Callable[..., Any], option: str) -> None:
    given = {"data": PROMPTS, "prompts": PROMPTS}
    required = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    value = too_large(option)
    with pytest.raises(InputError, match=f" has {option}={value}: it should be less than"):
        function(**{**{name: given.get(name) for name in required}, option: value})
    if option == "seed":
        with pytest.raises(InputError, match=" has seed=-1: it should be greater than or equal to 0"):
            function(**{**{name: given.get(name) for name in required}, "seed": np.int64(-1)})


def test_the_options_of_callers_are_found() -> None:
    names = {param.id for param in OPTIONS}
    assert len(names) > 35
    assert {"ecstruct.score path_steps", "ecstruct.subnetworks.prune seeds"} <= names
    assert {"ecstruct.scores.result.ExtractiveScores.aggregate resamples"} <= names


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *pair: ecstruct.fidelity(*pair, PROMPTS, path_steps=(1, MANY)), f"path_steps.1={MANY}"),
        (lambda *pair: ecstruct.ScoreEngine(*pair).like(path_steps=MANY), f"path_steps={MANY}"),
        (lambda *pair: prune(pair[0], PROMPTS, seeds=[0, LATE]), f"seed={LATE}"),
        (lambda *pair: finetune(pair[0], PROMPTS, lr=0.1, lora=MANY), f"rank r={MANY}"),
        (
            lambda *pair: controls(*pair, PROMPTS, facts=FACTS, tune={"lr": 0.1, "epochs": MANY}),
            f"tune= has epochs={MANY}",
        ),
        (lambda *pair: FACTS.shuffled(LATE), f"seed={LATE}"),
        (lambda *pair: Setup(seeds=MANY), f"seeds={MANY}"),
        (lambda *pair: Setup(seeds=[0, LATE]), f"seed={LATE}"),
        (lambda *pair: knockout(pair[0], PROMPTS, window=MANY), f"window={MANY}"),
    ],
)
def test_other_ways_to_give_what_is_too_large(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(*hooked_pair("llama"))


def test_threads_of_callers(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(InputError, match="the organism has threads=100000: it should be less than 1024"):
        pretrain(tmp_path / "out", threads=100_000)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["meta", "privateuseone", "hpu", "lazy", "x", "", "cpu:-1"])
def test_devices_that_cannot_compute_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"there is no device '{name}' here: use 'cpu'"):
        device_of(name)


WORLD = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("RANK", value) for value in ("2", "-1", "x", "1" * 30)],
        *[("WORLD_SIZE", value) for value in ("x", "-2", "0", "1" * 30, "2.0")],
        *[("MASTER_PORT", value) for value in ("x", "0", "65536")],
        ("LOCAL_RANK", "7"),
    ],
)
def test_a_world_that_cannot_be_is_refused(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for key, given in (WORLD | {name: value}).items():
        monkeypatch.setenv(key, given)
    words = (
        "--before",
        inputs / "model",
        "--after",
        inputs / "after",
        "--prompts",
        inputs / "prompts.jsonl",
    )
    message = f"the environment says {name}='{value}', which is no number from"
    refused(run("score", *words, "--out", tmp_path / "out"), message)
    refused(run("demo", "--out", tmp_path / "out"), message)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ranks_that_nobody_meets_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    for key, given in (WORLD | {"RANK": rank, "MASTER_PORT": "29517"}).items():
        monkeypatch.setenv(key, given)
    monkeypatch.setattr(distributed, "_MEETING", distributed.timedelta(seconds=1))
    message = "the 2 processes that WORLD_SIZE says do not meet at localhost:29517 within"
    with pytest.raises(InputError, match=message), distributed.ranks("cpu"):
        pass
    shared = "several processes share GPUs or the CPU, not 'meta'"
    with pytest.raises(InputError, match=shared), distributed.ranks("meta"):
        pass
