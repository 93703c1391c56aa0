"""`ecstruct doctor`: what it finds, where all is well and where something is not."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from helpers import command_line
from helpers.facts_fixtures import save_tiny
from packaging.specifiers import SpecifierSet

from ecstruct import doctor
from ecstruct.errors import InputError
from ecstruct.models import WeightDelta

SECTIONS = {"versions", "devices", "memory", "extras", "hub"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module", params=["llama", "gpt2", "neox"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model; two of the families fuse query, key and value in their checkpoints."""
    return save_tiny(tmp_path_factory.mktemp("model") / request.param, request.param)


run = partial(command_line.run, "doctor")


def by_name(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def test_a_sound_installation_and_the_embedded_model() -> None:
    result = run()
    assert result.exit_code == 0, (result.output, result.exception)
    lines = result.stdout.splitlines()
    assert {line for line in lines if not line.startswith(" ")} >= SECTIONS | {"organism"}
    assert lines[-1].startswith("problems: 0, warnings: ") and result.stderr == ""


def test_as_json(folder: Path) -> None:
    result = run("--json", "--model", folder)
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(result.stdout)
    assert {each["section"] for each in found} == SECTIONS | {str(folder)}
    assert {each["state"] for each in found} <= {"ok", "warning"}
    assert all(set(each) == {"section", "name", "state", "text"} for each in found)


def test_the_model_computes_what_its_checkpoint_does(folder: Path) -> None:
    found = by_name(list(doctor.model(str(folder), "cpu")))
    assert [*found] == ["loaded", "walk", "parity", "forward"]
    assert {each.state for each in found.values()} == {"ok"}
    assert found["walk"].text == "the logits are those of the hooked model's own forward"  # bit for bit


def test_a_model_that_does_not_is_a_problem(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """One weight of one layer is another one when ecstruct loads it."""
    load = doctor.load

    def wrong(source: str, **options: Any) -> Any:
        model = load(source, **options)
        with torch.no_grad():
            model.blocks[1].mlp.out.weight.view(-1)[0].add_(1.0)
        return model

    monkeypatch.setattr(doctor, "load", wrong)
    result = run("--model", folder)
    assert result.exit_code == 1, (result.output, result.exception)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("  problem")]
    assert "parity" in line and "the logits differ by" in line
    assert result.stdout.splitlines()[-1].startswith("problems: 1, ")


@pytest.mark.parametrize(
    ("error", "state"),
    [(0.0, "ok"), (9e-6, "ok"), (1e-4, "warning"), (1.0, "problem"), (torch.nan, "problem")],
)
def test_how_far_logits_may_be_apart(error: float, state: str) -> None:
    ids = torch.zeros((1, 2), dtype=torch.long)
    batch = doctor.Batch(ids, torch.tensor([1]), ids[:, :1], ids[:, :1])
    theirs = torch.tensor([[[1.0, -2.0], [9.0, 9.0]]])
    ours = theirs + 2 * error * torch.tensor([[[1.0, 0.0], [7.0, 7.0]]])  # padding does not count
    found = doctor._logits_finding("m", "parity", ours, theirs, batch, "another")
    assert found.state == state


def test_a_model_that_cannot_be_loaded_is_bad_input(tmp_path: Path) -> None:
    result = run("--model", tmp_path)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "has no config.json" in line
    WeightDelta({}, {"before": "organism"}).save(tmp_path / "delta.safetensors")
    with pytest.raises(InputError, match=r"is a weight delta: check the model that it changes, organism\."):
        doctor.examine(str(tmp_path / "delta.safetensors"))
    with pytest.raises(InputError, match="no device"):
        doctor.examine(device="cuda:77")


@pytest.mark.parametrize(
    ("found", "asked", "state", "text"),
    [
        ("2.6.1", ">=2.6,<3", "ok", "2.6.1"),
        ("2.5", ">=2.6", "problem", "2.5, but >=2.6 is needed"),
        ("3.0.0rc1", ">=2.6", "ok", "3.0.0rc1"),
        (None, ">=2.6", "problem", "not installed, but >=2.6 is needed"),
        ("1", "", "ok", "1"),
    ],
)
def test_versions_against_what_is_asked_for(found: str | None, asked: str, state: str, text: str) -> None:
    finding = doctor._versioned("x", found, SpecifierSet(asked))
    assert (finding.state, finding.text) == (state, text)


def test_versions_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=2", "no-such-package>1", 'extra-package; extra == "dev"', 'x; python_version < "3"']
    monkeypatch.setattr(doctor, "requires", lambda _: needs)
    found = by_name(list(doctor.versions()))
    assert [*found] == ["ecstruct", "python", "torch", "no-such-package"]
    assert found["torch"].state == "ok" and found["no-such-package"].state == "problem"


class Session:
    def __init__(self, answer: int | Exception) -> None:
        self.answer, self.asked = answer, []

    def head(self, url: str, timeout: float) -> Any:
        self.asked.append((url, timeout))
        if isinstance(self.answer, Exception):
            raise self.answer
        return type("Response", (), {"status_code": self.answer})()


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        (200, "ok", "can be reached"),
        (503, "warning", "answers with 503"),
        (ConnectionError("no route"), "warning", "cannot be reached (ConnectionError)"),
    ],
)
def test_the_hub_is_asked_once_and_not_waited_for(
    answer: Any, state: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(answer)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    found = doctor.hub()
    assert found.state == state and says in found.text
    assert "logged in" in found.text and "secret" not in found.text
    ((url, timeout),) = session.asked
    assert url == huggingface_hub.constants.ENDPOINT and timeout <= 5


def test_offline_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_session", None)
    assert doctor.hub().state == "warning" and "HF_HUB_OFFLINE" in doctor.hub().text


def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    room = shutil.disk_usage(".")._replace(free=10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: room)
    found = by_name(list(doctor.memory()))
    assert found["disk"].state == "warning" and found["disk"].text.startswith("0.9 GiB of ")


def test_what_is_missing_for_some_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    found = by_name(list(doctor.extras()))
    assert found["figures"].state == "warning" and "pip install kaleido" in found["figures"].text
    assert found["slurm"].state == "ok" and "no sbatch" in found["slurm"].text
    monkeypatch.setattr(doctor, "find_spec", lambda _: object())
    monkeypatch.setattr(doctor, "_browser", lambda: None)
    assert "plotly_get_chrome" in by_name(list(doctor.extras()))["figures"].text
