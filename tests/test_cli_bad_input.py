"""What the command line cannot work with: status 2 and one sentence that says why, and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cli_inputs import PROMPTS, jsonl, save_inputs
from helpers.command_line import refused, run
from helpers.folders import contents, edit_weights, save, save_llama, truncate
from helpers.processes import command

from ecstruct.errors import InputError
from ecstruct.models import WeightDelta

pytestmark = pytest.mark.usefixtures("offline")

NAN = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Not to be written to."""
    return save_inputs(tmp_path_factory.mktemp("inputs"))


# Prompts


def facts_with(**change):
    return [{**PROMPTS[0], **change}, *PROMPTS[1:]]


def text(content):
    return lambda path: path.write_text(content)


def records(*rows):
    return lambda path: jsonl(path, rows)


LINES = "".join(json.dumps(record) + "\n" for record in PROMPTS[:2])
PROMPT_FILES = {
    "no file": (lambda path: None, "cannot be read"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
    "empty list": (text(""), "is empty"),
    "blank lines": (text("\n \n"), "is empty"),
    "answer not an option": (
        records(*facts_with(options=["Paris", "Rome"])), "'Tokyo'.*is not among its options"
    ),
    "options clash": (
        records(*facts_with(options=["Tokyo", "Addis Ababa", "Addis Rome"])), "Addis Ababa.*Addis Rome"
    ),
    "one option": (records(*facts_with(options=["Tokyo"])), "line 1: .*at least two"),
    "no options": (records(PROMPTS[0]), "options"),
    "answer without tokens": (records(*facts_with(answer="\u200b")), "the answer .*token"),
    "empty answer": (records(*facts_with(answer="")), "line 1: .*is empty"),
    "malformed line": (text(LINES + '{"prompt": "Mia"\n'), r"prompts\.jsonl, line 3: this is not JSON"),
    "a list": (text(LINES + "[1, 2]\n"), r"prompts\.jsonl, line 3: .*not an object"),
    "a key is missing": (text(LINES + '{"text": "Mia"}\n'), r"line 3: there is no 'prompt'"),
    "number": (records(*facts_with(answer=3)), "line 1: .*of type int"),
    "null": (records(*facts_with(prompt=None)), "line 1: .*of type NoneType"),
    "options no list": (records(*facts_with(options="Tokyo")), "line 1: .*list of strings"),
    "not UTF-8": (lambda path: path.write_bytes(LINES.encode() + b"\xff\xfe\n"), "line 3: .*not UTF-8"),
    "too long": (records(*facts_with(prompt="lives in " * 30 + "Rome")), "the model's context has 24"),
    "empty text": (records(*facts_with(prompt=" ")), "line 1: the text of a prompt is empty"),
}  # fmt: skip
NEEDS_OPTIONS = {"options clash", "no options"}


@pytest.mark.parametrize("command", ["finetune", "rank", "score"])
@pytest.mark.parametrize("what", PROMPT_FILES)
def test_bad_prompts_are_refused_in_one_sentence(inputs, tmp_path, command, what):
    if command == "finetune" and what in NEEDS_OPTIONS:
        pytest.skip("facts need no options")
    write, message = PROMPT_FILES[what]
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    write(path)
    model = inputs / "model"
    result = {
        "finetune": lambda: run("finetune", "--model", model, "--facts", path, "--out", out, "--lr", 1e-3),
        "rank": lambda: run("rank", "--model", model, "--prompts", path, "--out", out / "ranks.json"),
        "score": lambda: run(
            "score", "--before", model, "--after", inputs / "after", "--prompts", path, "--out", out
        ),
    }[command]()
    refused(result, message)
    assert not out.exists() or contents(out) == []


# Models


def damaged(change):
    def make(inputs, folder):
        copy = Path(shutil.copytree(inputs / "model", folder / "broken"))
        change(copy)
        return copy

    return make


def other(**config):
    return lambda _inputs, folder: save_llama(folder / "other", **config)


def put_nan(folder):
    edit_weights(folder, lambda tensors: tensors[NAN].view(-1)[0].fill_(torch.nan))


def delta(tensors):
    def make(_inputs, folder):
        WeightDelta(tensors).save(folder / "d.safetensors")
        return folder / "d.safetensors"

    return make


def file(name, content):
    def make(_inputs, folder):
        (folder / name).write_text(content)
        return folder / name

    return make


MODELS = {
    "unknown id": (lambda *_: "nobody/has-this-model", "'nobody/has-this-model' is no local folder"),
    "a missing folder": (lambda _, folder: folder / "nowhere", "is no folder"),
    "no weights": (damaged(lambda f: (f / "model.safetensors").unlink()), "no .*safetensors weights"),
    "truncated": (damaged(lambda f: truncate(f / "model.safetensors")), "corrupt or truncated"),
    "NaN": (damaged(put_nan), "NaN or infinite values"),
    "missing tensor": (
        damaged(lambda f: edit_weights(f, lambda t: t.pop(NAN))), "no weights of the right shape"
    ),
    "no tokenizer": (damaged(lambda f: (f / "tokenizer.json").unlink()), "no usable tokenizer"),
    "a file": (file("notes.txt", "x"), "is no folder"),
}  # fmt: skip
AFTERS = {
    **{what: model for what, model in MODELS.items() if what != "no tokenizer"},
    "another architecture": (lambda _, folder: save(folder / "gpt2", "gpt2"), "the models differ in"),
    "another vocabulary": (other(vocab_size=20), r"the models differ in embed\.weight"),
    "another depth": (other(num_hidden_layers=1), r"the models differ in blocks\.1\."),
    "a truncated delta": (file("d.safetensors", "half"), "cannot be read"),
    "a delta of another model": (
        delta({"blocks.0.mlp.in.weight": torch.ones(2, 2)}), "does not fit the model in blocks.0.mlp.in"
    ),
    "a delta with NaN": (delta({"blocks.0.ln1.weight": torch.tensor([torch.nan])}), "NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("what", AFTERS)
def test_a_bad_model_after_is_refused_in_one_sentence(inputs, tmp_path, what):
    make, message = AFTERS[what]
    after, out = make(inputs, tmp_path), tmp_path / "out"
    result = run("score", "--before", inputs / "model", "--after", after, "--out", out,
                 "--prompts", inputs / "prompts.jsonl")  # fmt: skip
    refused(result, message)
    assert not out.exists() or contents(out) == []


@pytest.mark.parametrize("what", MODELS)
def test_a_bad_model_is_refused_in_one_sentence(inputs, tmp_path, what):
    make, message = MODELS[what]
    model = make(inputs, tmp_path)
    refused(run("rank", "--model", model, "--prompts", inputs / "prompts.jsonl"), message)


# Options


ARGUMENTS = {
    "negative rate": ("finetune", ["--lr", "-1"], "lr=-1.0 is no learning rate"),
    "rate is nan": ("finetune", ["--lr", "nan"], "lr=nan: it should be"),
    "no rate": ("finetune", [], "no learning rate is known for .*: pass lr="),
    "no epochs": ("finetune", ["--lr", "1", "--epochs", "0"], "epochs=0: it should be greater"),
    "no such kind": ("finetune", ["--lr", "1", "--freeze-kinds", "mpl"], "unknown kind of weight 'mpl'"),
    "no such layers": ("finetune", ["--lr", "1", "--freeze-layers", "a-b"], "takes layers as 0-3,7"),
    "no name": ("finetune", ["--lr", "1", "--evaluate", "x.jsonl"], "--evaluate takes NAME=FILE"),
    "no such device": ("finetune", ["--lr", "1", "--device", "cuda:77"], "no device 'cuda:77'"),
    "no path": ("score", ["--path-steps", "0"], "path_steps=0: it should be greater than or equal to 1"),
    "little memory": ("fidelity", ["--memory", "7"], "memory=7 bytes are too few for one intervention"),
    "no top": ("fidelity", ["--top", "0"], "top=0: it should be greater than or equal to 1"),
    "batches of none": (
        "score",
        ["--batch-size", "0"],
        "batch_size=0: it should be greater",
    ),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_bad_options_are_refused_in_one_sentence(inputs, tmp_path, what):
    command, words, message = ARGUMENTS[what]
    files = {
        "finetune": ("--model", inputs / "model", "--facts", inputs / "prompts.jsonl"),
        "score": ("--before", inputs / "model", "--after", inputs / "after",
                  "--prompts", inputs / "prompts.jsonl"),
    }  # fmt: skip
    files = files["score" if command == "fidelity" else command]
    refused(run(command, *files, "--out", tmp_path / "out", *words), message)
    assert contents(tmp_path) == []


# Configurations


CONFIGS = {
    "no file": None,
    "no JSON": "{",
    "a list": "[]",
    "no command": "{}",
    "unknown command": '{"command": "fly", "arguments": {}}',
    "arguments no object": '{"command": "demo", "arguments": 3}',
    "lacks an argument": '{"command": "score", "arguments": {"before": "organism"}}',
    "unknown argument": '{"command": "demo", "arguments": {"seed": 0, "speed": 1}}',
}


@pytest.mark.parametrize("what", CONFIGS)
def test_what_is_no_configuration_is_not_replayed(tmp_path, what):
    path = tmp_path / "config.json"
    if CONFIGS[what] is not None:
        path.write_text(CONFIGS[what])
    line = refused(run("replay", path, "--out", tmp_path / "out"))
    assert str(path) in line
    assert not (tmp_path / "out").exists()


# Processes


def test_a_real_process_says_one_sentence(inputs, tmp_path):
    words = ("rank", "--model", "nobody/has-this", "--prompts", inputs / "prompts.jsonl")
    result = command(*words).ended()
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: 'nobody/has-this'")


def test_debug_shows_the_traceback():
    result = run("replay", "nowhere.json", "--out", "nowhere", "--debug")
    assert result.exit_code == 1 and isinstance(result.exception, InputError)  # Python shows it
