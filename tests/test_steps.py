"""Checkpoints by step: `folder@step` is the subfolder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import command_line
from helpers.facts_fixtures import FACTS
from helpers.folders import contents, edit_weights, save

import ecstruct
from ecstruct.errors import InputError
from ecstruct.facts import Prompt, write_jsonl
from ecstruct.models import load
from ecstruct.models.bridge import named_weights
from ecstruct.models.provenance import provenance

NAMES = {
    100: "checkpoint-100",
    20: "step20",
    3: "step-3",
    4: "step_4",
    5: "global_step5",
    1000: "1000",
    2000: "step2000-tokens8B",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint a name, whose norm gains are its step; what trainers write beside them; no model."""
    folder = tmp_path_factory.mktemp("training") / "run"
    base = save(folder.parent / "base")
    for step, name in NAMES.items():
        shutil.copytree(base, folder / name)
        edit_weights(folder / name, lambda w, step=step: w["model.norm.weight"].fill_(step))
    for name in ("logs", "global_step7", "checkpoint-latest", "run-9", "step"):
        (folder / name).mkdir()  # of no step, or without a model
    (folder / "50").write_text("a file")
    return folder


def step_of(model):
    return int(named_weights(model)["ln_final.weight"][0])


def is_step(source, step):
    model = load(source, device="cpu")
    assert step_of(model) == step
    return model


def test_checkpoints_are_listed_by_step(run):
    found = ecstruct.checkpoints(run)
    assert list(found.items()) == [(step, str(run / NAMES[step])) for step in sorted(NAMES)]
    assert ecstruct.checkpoints(str(run)) == found
    assert ecstruct.checkpoints(run / "logs") == {}
    is_step(found[20], 20)


@pytest.mark.parametrize(
    ("asked", "step"),
    [
        *((name, step) for step, name in NAMES.items()),
        *((str(step), step) for step in NAMES),
        *((f"step-{step}", step) for step in (100, 20)),
        *((f"checkpoint-{step}", step) for step in (20, 3)),
        ("step_0100", 100),
        ("step2000", 2000),
    ],
)
def test_a_step_by_any_name(run, asked, step):
    model = is_step(f"{run}@{asked}", step)
    # What results say is a source of its own.
    assert provenance(model).source == str(run / NAMES[step]) and provenance(model).revision is None


def test_a_step_as_a_path_and_as_a_revision(run, monkeypatch):
    is_step(Path(f"{run}@100"), 100)
    assert step_of(load(run, revision="step-20", device="cpu")) == 20
    monkeypatch.chdir(run.parent)
    is_step("run@100", 100)
    monkeypatch.setenv("HOME", str(run.parent))
    is_step("~/run@100", 100)


def test_a_final_model_beside_its_checkpoints(run, tmp_path):
    folder = shutil.copytree(run / "step20", tmp_path / "run")
    shutil.copytree(run / "checkpoint-100", folder / "checkpoint-100")
    is_step(folder, 20)
    is_step(f"{folder}@100", 100)


def test_an_at_sign_in_a_folder(run, tmp_path):
    folder = shutil.copytree(run / "step20", tmp_path / "me@home" / "run@1")
    is_step(folder, 20)
    shutil.copytree(run / "checkpoint-100", folder / "checkpoint-100")
    is_step(f"{folder}@100", 100)


LISTED = "it has those of the steps 3, 4, 5, ..., 100, 1000, 2000"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("@99", f"run has no checkpoint '99': {LISTED}."),
        ("@main", f"run has no checkpoint 'main': {LISTED}."),
        ("@", f"run has no checkpoint '': {LISTED}."),
        ("@50", f"run has no checkpoint '50': {LISTED}."),
        ("", f"run has no config.json: {LISTED}, so choose one, as in '.*run@2000'"),
        ("/logs", "logs has no config.json: it holds no Hugging Face model"),
        ("/logs@5", "logs has no checkpoint '5': there are no checkpoints by step in it"),
        ("@global_step7", "global_step7 has no config.json"),
    ],
)
@pytest.mark.parametrize("offload", [False, True])
def test_steps_that_are_not_there(run, asked, message, offload):
    with pytest.raises(InputError, match=message):
        if offload:
            ecstruct.score(f"{run}@20", f"{run}{asked}", FACTS, offload=True, progress=False)
        else:
            load(f"{run}{asked}", device="cpu")


def test_two_checkpoints_of_one_step(run, tmp_path):
    for name in ("step5", "checkpoint-5"):
        shutil.copytree(run / "global_step5", tmp_path / name)
    with pytest.raises(InputError, match="two checkpoints of step 5, checkpoint-5 and step5"):
        load(f"{tmp_path}@5", device="cpu")
    is_step(f"{tmp_path}@step5", 5)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        ecstruct.checkpoints(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere is no folder"):
        load(f"{tmp_path}/nowhere@5", device="cpu")


@pytest.mark.parametrize("offload", [False, True])
def test_scores_of_two_steps(run, offload):
    before, after = (f"{run}@{step}" for step in (3, 20))
    scores = ecstruct.score(before, after, FACTS, offload=offload, progress=False)
    expected = ecstruct.score(str(run / NAMES[3]), str(run / NAMES[20]), FACTS, progress=False)
    np.testing.assert_allclose(scores.mlp.values, expected.mlp.values, rtol=1e-5, atol=1e-5)
    assert float(abs(scores.rest).max()) > 1e-3
    assert scores.attrs["before"] == expected.attrs["before"]
    assert scores.attrs["after"] == expected.attrs["after"]


def test_adapters_of_a_run(run, tmp_path):
    base = load(run / "step-3", device="cpu")
    out, facts = tmp_path / "tuned", tmp_path / "facts.jsonl"
    write_jsonl([Prompt(*fact) for fact in FACTS], facts)
    works("finetune", "--model", f"{run}@3", "--facts", facts, "--lora", "r=2", "--lr", "0.1", "--out", out)
    shutil.copytree(out / "adapter", tmp_path / "lora" / "checkpoint-8")
    assert ecstruct.checkpoints(tmp_path / "lora") == {8: str(tmp_path / "lora" / "checkpoint-8")}
    scores = ecstruct.score(base, f"{tmp_path}/lora@8", FACTS, progress=False)
    expected = ecstruct.score(base, str(out / "adapter"), FACTS, progress=False)
    np.testing.assert_array_equal(scores.mlp.values, expected.mlp.values)
    assert float(abs(scores.mlp).max()) > 1e-3
    load(run / "step-3", adapter=f"{tmp_path}/lora@8", device="cpu")


def works(*words):
    command_line.works(*words, "--device", "cpu", "--quiet")


def test_command_line(run, tmp_path):
    facts = tmp_path / "facts.jsonl"
    write_jsonl([Prompt(*fact) for fact in FACTS], facts)
    pair = ("--before", f"{run}@step-3", "--after", f"{run}@20", "--prompts", facts)
    works("score", *pair, "--out", tmp_path / "scores")
    config = json.loads((tmp_path / "scores/config.json").read_text())["arguments"]
    assert (config["before"], config["after"]) == (f"{run}@step-3", f"{run}@20")
    works("replay", tmp_path / "scores/config.json", "--out", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "scores")
    result = command_line.run("rank", "--model", f"{run}@6", "--prompts", str(facts))
    assert result.exit_code == 2 and result.stderr == f"error: {run} has no checkpoint '6': {LISTED}.\n"
