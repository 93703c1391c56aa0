"""Where the command line cannot or must not write, or is stopped: what was there stays, no half is left."""

import os
import signal

import pytest
from helpers.cli_inputs import save_inputs, scored
from helpers.command_line import refused, run
from helpers.folders import contents
from helpers.jobs import until
from helpers.processes import command

from ecstruct import ExtractiveScores

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Not to be written to."""
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def test_an_organism_that_cannot_be_pretrained_is_refused_first(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(run("organism", "pretrain", "--out", tmp_path), "exists and is not empty")
    refused(run("organism", "pretrain", "--out", tmp_path / "notes.txt"), "is a file")
    for option in ("steps", "threads"):
        result = run("organism", "pretrain", "--out", tmp_path / "out", f"--{option}", 0)
        refused(result, f"{option}=0 cannot pretrain an organism")
    assert contents(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("command", ["demo", "finetune", "rank", "score", "replay"])
def test_a_folder_that_cannot_be_written_is_found_out_first(inputs, tmp_path, monkeypatch, command):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "below"
    prompts = ("--prompts", inputs / "prompts.jsonl")
    if command == "replay":
        scored(inputs, tmp_path / "once")
    words = {
        "demo": (),
        "finetune": ("--model", inputs / "model", "--facts", inputs / "prompts.jsonl", "--lr", 1),
        "rank": ("--model", inputs / "model", *prompts),
        "score": ("--before", inputs / "model", "--after", inputs / "after", *prompts),
        "replay": (tmp_path / "once" / "config.json",),
    }[command]
    if command != "rank":
        monkeypatch.setattr("ecstruct.runs.training.load", None)  # found out before a model is loaded
    refused(run(command, *words, "--out", out), f"cannot write.*{out.parent.name}")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_is_not_saved_over_another(inputs, tmp_path, monkeypatch):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "mine").touch()
    monkeypatch.setattr("ecstruct.runs.training.load", None)
    result = run("finetune", "--model", inputs / "model", "--facts", inputs / "prompts.jsonl",
                 "--lr", 1, "--save-model", "--out", tmp_path / "out")  # fmt: skip
    refused(result, "exists and is not empty")
    assert contents(tmp_path) == ["out/model/mine"]


def test_an_interrupted_run_leaves_no_half_written_file(inputs, tmp_path):
    out = tmp_path / "out"
    words = ("--model", inputs / "model", "--facts", inputs / "prompts.jsonl", "--lr", 1e-6, "--out", out)
    running = command("finetune", *words, "--epochs", 1000000)
    until(lambda: "loss" in running.said() or not running.running())  # the progress bar: it is training
    os.kill(running.pid, signal.SIGINT)
    ended = running.ended()
    assert ended.returncode == 130
    assert (
        "Traceback" not in ended.stderr
        and ended.stderr.strip().endswith("interrupted")
        and ended.stdout == ""
    )
    assert contents(out) == []


def test_a_failing_write_leaves_the_files_of_the_last_run(inputs, tmp_path, monkeypatch):
    scored(inputs, tmp_path)
    was = {name: (tmp_path / name).read_bytes() for name in contents(tmp_path)}

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ecstruct.report.page.write_text", full_disk(full))
    monkeypatch.setattr("ecstruct.scores.result.ExtractiveScores.save", full_disk(full))
    result = run("score", "--before", inputs / "model", "--after", inputs / "model", "--quiet",
                 "--prompts", inputs / "prompts.jsonl", "--out", tmp_path)  # fmt: skip
    refused(result, "cannot write .*No space left on device")
    assert {name: (tmp_path / name).read_bytes() for name in contents(tmp_path)} == was


def full_disk(fail):
    from ecstruct.io.files import write_atomically

    return lambda first, second, *_: write_atomically(
        second if isinstance(first, ExtractiveScores) else first, fail
    )
