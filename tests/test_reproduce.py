"""`reproduce`: what it writes, that it replays, and what it refuses."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import run, works
from helpers.folders import contents
from helpers.paper_models import TINY, save_paper_model, small

import ecstruct.experiments
from ecstruct.errors import InputError
from ecstruct.experiments import EXPERIMENTS, reproduce, reproduction
from ecstruct.experiments.reproduction import named
from ecstruct.experiments.result import option_types
from ecstruct.grids import Grid


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_paper_model(tmp_path_factory.mktemp("reproduce") / "model", "llama")


@pytest.fixture(scope="module")
def written(model: Path) -> Path:
    out = model.parent / "out"
    works("reproduce", "ocr", "scores", "--model", model, "--out", out, *TINY)
    return out


def test_what_is_written(written: Path, model: Path) -> None:
    names = [name for name in contents(written) if not name.startswith("cells/")]
    assert names == ["config.json", "report.html", "results.json", "setup.json", "weights.json"]
    assert len(list((written / "cells" / "ocr").iterdir())) == 2
    results = json.loads((written / "results.json").read_text(), parse_constant=pytest.fail)
    assert set(results) == {"ocr", "mass"}
    setup = small(model, device=None).to_dict()
    kept = json.loads((written / "setup.json").read_text())
    assert kept == {key: setup[key] for key in setup.keys() - {"seeds", "repeats", "device"}}
    config = json.loads((written / "config.json").read_text())
    assert config["arguments"] == {"experiments": ["ocr", "scores"], "setup": setup, "options": {}}


def test_a_replay_gives_the_same(written: Path, tmp_path: Path) -> None:
    works("replay", written / "config.json", "--out", tmp_path / "again", "--device", "cpu", "--quiet")
    for name in ("results.json", "config.json", "setup.json"):
        assert (tmp_path / "again" / name).read_bytes() == (written / name).read_bytes()


def test_a_second_run_computes_nothing(written: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (written / "results.json").read_bytes()
    monkeypatch.setattr(ecstruct.experiments.sweep, "load", lambda *args, **options: pytest.fail("loaded"))
    works("reproduce", "ocr", "scores", "--model", model, "--out", written, *TINY)
    assert (written / "results.json").read_bytes() == before


def test_a_second_run_adds_to_the_first(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for names in (["ocr"], ["freezing"]):
        works("reproduce", *names, "--model", model, "--out", out, *TINY)
    works("reproduce", "ocr", "freezing", "--model", model, "--out", tmp_path / "once", *TINY)
    for name in ("results.json", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    page = (out / "report.html").read_text()
    assert "<h1>The paper, reproduced</h1>" in page
    assert page.replace(str(out), "") == (tmp_path / "once/report.html").read_text().replace(
        str(tmp_path / "once"), ""
    )
    # Of more pairings, only what was asked for is computed and shown.
    works("reproduce", "freezing", "--model", model, "--out", out, *TINY, "--repeats", 2)
    assert json.loads((out / "config.json").read_text())["arguments"]["experiments"] == ["freezing"]
    assert len(list((out / "cells" / "ocr").glob("*.json"))) == 2


def test_what_was_not_finished_is_not_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise InputError("it fails")

    with monkeypatch.context() as patch:
        patch.setattr(reproduction, "EXPERIMENTS", {**EXPERIMENTS, "freezing": fails})
        assert (
            run("reproduce", "ocr", "freezing", "--model", model, "--out", tmp_path, *TINY).exit_code == 2
        )
    assert json.loads((tmp_path / "config.json").read_text())["arguments"]["experiments"] == ["ocr"]
    works("reproduce", "scores", "--model", model, "--out", tmp_path, *TINY)
    assert json.loads((tmp_path / "config.json").read_text())["arguments"]["experiments"] == [
        "ocr",
        "scores",
    ]
    assert not (tmp_path / "cells" / "freezing").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ocr", "magic"), "there is no experiment 'magic': choose among ocr, scores, "),
        (("ocr", "--seeds", 0), "seeds=0 runs nothing"),
        (("ocr", "--lr", 0), "lr=0.0 is no learning rate"),
        (("ocr", "--lr", -1), "lr=-1.0 is no learning rate"),
        (("ocr", "--early", 1.5), "early=1.5 leaves no early or no late layers"),
        (("ocr", "--model", "some/model"), "no learning rates are known for some/model"),
        (("ocr", "--lr", 0.5), "holds a part of another run ("),
        (("ocr", "--model", "/nowhere", "--lr", 0.1), "model was "),
    ],
)
def test_what_is_refused_changes_nothing(
    written: Path, model: Path, words: tuple[Any, ...], message: str
) -> None:
    before = {path: path.read_bytes() for path in written.rglob("*") if path.is_file()}
    source = () if "--model" in words else ("--model", model)
    lr = () if {"--lr", "some/model"} & set(words) else ("--lr", 1e-3)
    options = ("--repeats", 1, "--epochs", 1, "--batch-size", 80)
    result = run("reproduce", *words, *source, *lr, *options, "--out", written)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith("error: ")
    assert {path: path.read_bytes() for path in written.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("names", [[], ["ocr", "oops"]])
def test_names_are_checked_at_once(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"choose among ocr, .*all"):
        reproduce(names, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_are_those_of_their_experiment(tmp_path: Path) -> None:
    for options in (
        {"sensitivity": {"grid": 3}},
        {"ocr": {"factors": [1.0]}},
        {"freezing": {"early": 0.5}},
    ):
        with pytest.raises(InputError, match=r"does not run with the option '(grid|factors|early)'"):
            reproduce(["ocr", "sensitivity"], options=options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("sensitivity", "factors", 3),
        ("sensitivity", "factors", ["a"]),
        ("rates", "factors", [0.0]),
        ("rates", "factors", []),
        ("sensitivity", "epochs", [2.5]),
        ("sensitivity", "epochs", [True]),
        ("sensitivity", "words", 1),
        ("built_in", "local_layers", 4),
        ("origin", "steps", "9"),
        ("origin", "snapshots", None),
    ],
)
def test_options_have_the_types_of_their_experiment(
    name: str, option: str, value: Any, tmp_path: Path
) -> None:
    options = {name: {option: value}}
    with pytest.raises(InputError, match=rf"^{name} has {option}(\.0)?="):
        reproduce([name], options=options, out=tmp_path / "out")
    with pytest.raises(InputError, match=rf"^{name} has {option}(\.0)?="):
        Grid.from_dict({"experiments": [name], "options": options})


@pytest.mark.parametrize("argument", ["setup", "out", "progress"])
def test_what_a_run_decides_is_no_option(argument: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    arguments = {"experiments": ["ocr"], "setup": {}, "options": {"ocr": {argument: "x"}}}
    path.write_text(json.dumps({"command": "reproduce", "arguments": arguments}))
    result = run("replay", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"ocr does not run with the option '{argument}': leave it out." in result.stderr


def test_an_option_means_the_same_in_all_experiments() -> None:
    types: dict[str, Any] = {}
    for experiment in named(["all", "beyond", "rates"]).values():
        for option, of in option_types(experiment).items():
            assert types.setdefault(option, of) == of
    assert set(types) == {"epochs", "factors", "local_layers", "snapshots", "steps", "what", "words"}


def test_every_experiment_explains_its_arguments() -> None:
    for name, experiment in named(["all", "beyond", "rates"]).items():
        for argument in signature(experiment).parameters:
            assert f"\n    {argument}: " in (experiment.__doc__ or ""), (name, argument)


def test_the_configuration_of_a_result_replays_its_options(written: Path, tmp_path: Path) -> None:
    setup = json.loads((written / "config.json").read_text())["arguments"]["setup"]
    options = {"sensitivity": {"factors": [2.0], "epochs": [1], "words": "novel"}}
    config = {"experiments": ["sensitivity"], "setup": setup, "options": options}
    path = tmp_path / "by-hand.json"
    path.write_text(json.dumps({"command": "reproduce", "arguments": config}))
    works("replay", path, "--out", tmp_path / "out", "--device", "cpu", "--quiet")
    cells = sorted(path.name for path in (tmp_path / "out" / "cells" / "sensitivity").iterdir())
    assert cells == ["seed=0-repeat=0-factor=2.0-epochs=1-words=novel.json"]


def test_a_configuration_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    arguments = {"experiments": ["ocr"], "setup": {"epochs": "many"}}
    path.write_text(json.dumps({"command": "reproduce", "arguments": arguments}))
    result = run("replay", path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "is no setup" in result.stderr
