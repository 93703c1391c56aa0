import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
import torch
from facts_fixtures import FACTS
from folders import contents, edit_weights, save, save_llama, truncate
from safetensors.torch import load_file
from typer.main import get_command
from typer.testing import CliRunner

from ecstruct import ExtractiveScores, mean_rank
from ecstruct.cli import app
from ecstruct.errors import InputError
from ecstruct.facts import first_hop
from ecstruct.models import WeightDelta, load

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PROMPTS = [{"prompt": text, "answer": answer} for text, answer in FACTS]
NAN = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # --quiet sets it; restored after the test


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def works(*words):
    result = run(*words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def process(*words, **options):
    """A real process, with the network off."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ecstruct", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False, **options
    )


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def drop_from_text(path, character):
    """Let a tokenizer see nothing where this character is."""
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": character}, "content": ""}
    path.write_text(json.dumps(tokenizer))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model, another of the same kind, and prompts. Not to be written to."""
    folder = tmp_path_factory.mktemp("inputs")
    save(folder / "model")
    drop_from_text(folder / "model" / "tokenizer.json", "\u200b")
    shutil.copytree(folder / "model", folder / "after")
    edit_weights(folder / "after", lambda tensors: [t.mul_(1.01) for t in tensors.values()])
    jsonl(folder / "prompts.jsonl", PROMPTS)
    return folder


def finetuned(inputs, out, *words):
    files = ("--model", inputs / "model", "--facts", inputs / "prompts.jsonl")
    return works("finetune", *files, "--out", out, "--lr", 0.01, "--epochs", 2, "--quiet", *words)


def scored(inputs, out, *words, after=None):
    files = ("--before", inputs / "model", "--after", after or inputs / "after")
    return works("score", *files, "--prompts", inputs / "prompts.jsonl", "--out", out, "--quiet", *words)


# The demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    start = time.monotonic()
    result = process("demo", "--out", out, "--seed", 0)
    assert result.returncode == 0, result.stderr
    return out, time.monotonic() - start, result


def test_the_demo_is_quick_and_writes_what_it_says(demo):
    out, seconds, result = demo
    assert seconds <= 90
    names = ["config.json", "report.html", "scores-first-hop.nc", "scores-second-hop.nc", "summary.json"]
    assert contents(out) == names
    assert str(out / "report.html") in result.stdout
    for words in ("first-hop facts", "second-hop implications", "before", "after", "downstream", "MLP"):
        assert words in result.stdout
    config = json.loads((out / "config.json").read_text())
    assert config["command"] == "demo" and config["arguments"] == {"seed": 0}
    assert "finetune" in result.stderr and "Warning" not in result.stderr


def test_the_demo_learns_the_facts_and_generalises(demo):
    summary = json.loads((demo[0] / "summary.json").read_text())
    assert set(summary) == {"first_hop", "second_hop", "seconds"}
    assert 0 < summary["seconds"] <= 90
    for hop, limit in (("first_hop", 0.5), ("second_hop", 2.5)):
        assert set(summary[hop]) == {"fact", "implication"}
        for before, _ in summary[hop].values():
            assert 7.5 < before < 11.5
        assert summary[hop]["fact"][1] <= 0.3
        assert summary[hop]["implication"][1] < limit


def test_the_scores_of_the_demo_can_be_read(demo):
    for hop in ("first-hop", "second-hop"):
        scores = ExtractiveScores.load(demo[0] / f"scores-{hop}.nc")
        assert dict(scores.mlp.sizes) | {"token": 0} == {"score": 3, "prompt": 20, "layer": 6, "token": 0}
        assert scores.heads.sizes["head"] == 4
        assert np.isfinite(scores.top(5, "informative")["value"]).all()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_report_of_the_demo(demo, tmp_path):
    page = drawn(demo[0] / "report.html", tmp_path)
    assert page.count('class="main-svg"') >= 2
    assert page.count('class="heatmaplayer mlayer"') + page.count('class="hm"') >= 12
    assert page.count("scatterlayer") >= 1 and "first-hop" in page and "second-hop" in page


def test_the_demo_again_gives_the_same_scores(demo, tmp_path):
    result = works("replay", demo[0] / "config.json", "--out", tmp_path / "again", "--quiet")
    assert result.output == ""
    for hop in ("first-hop", "second-hop"):
        old, new = (ExtractiveScores.load(f / f"scores-{hop}.nc") for f in (demo[0], tmp_path / "again"))
        assert old.dataset.equals(new.dataset)


def drawn(path, folder):
    """The page as a browser without a network leaves it."""
    result = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=8000", "--dump-dom",
            path.resolve().as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return result.stdout


# Finetuning


def test_finetuning_writes_a_delta_and_a_history(inputs, tmp_path):
    evaluate = ("--evaluate", f"again={inputs / 'prompts.jsonl'}")
    result = finetuned(inputs, tmp_path / "out", "--save-model", "--seed", 3, *evaluate)
    assert result.output == ""
    out = tmp_path / "out"
    assert {"config.json", "delta.safetensors", "history.json"} == {p.name for p in out.glob("*.*")}
    history = json.loads((out / "history.json").read_text())
    assert len(history["loss"]) == 2 and len(history["ranks"]["again"]) == 3
    assert history["loss"][1] < history["loss"][0]
    moved = WeightDelta.load(out / "delta.safetensors").apply_to(load(inputs / "model", device="cpu"))
    whole = load(out / "model", device="cpu")
    ids = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(moved(ids), whole(ids), rtol=1e-4, atol=1e-4)
    assert mean_rank(whole, inputs / "prompts.jsonl") == history["ranks"]["again"][-1]


def test_options_of_finetuning_arrive(inputs, tmp_path):
    words = ("--freeze-layers", "0", "--freeze-kinds", "mlp,attn", "--train-embeddings", "--batch-size", 3)
    finetuned(inputs, tmp_path, *words, "--accumulate", 2, "--schedule", "linear")
    arguments = json.loads((tmp_path / "config.json").read_text())["arguments"]
    assert arguments["freeze"] == {"layers": [0], "kinds": ["attn", "mlp"], "names": None}
    given = {"train_embeddings": True, "batch_size": 3, "accumulate": 2, "schedule": "linear", "lr": 0.01}
    assert given.items() <= arguments.items()
    tensors = WeightDelta.load(tmp_path / "delta.safetensors").tensors
    assert "embed.weight" in tensors and "blocks.1.attn.q.weight" in tensors
    assert "blocks.0.attn.q.weight" not in tensors


def test_finetuning_again_gives_the_same_weights(inputs, tmp_path):
    finetuned(inputs, tmp_path / "once")
    (tmp_path / "once" / "config.json").rename(tmp_path / "moved.json")
    works("replay", tmp_path / "moved.json", "--out", tmp_path / "twice", "--quiet")
    once, twice = (load_file(tmp_path / run / "delta.safetensors") for run in ("once", "twice"))
    assert list(once) == list(twice)
    for name, t in once.items():
        assert torch.equal(t, twice[name]), name
    histories = [(tmp_path / run / "history.json").read_text() for run in ("once", "twice")]
    assert histories[0] == histories[1]


# Ranks


def test_ranks_are_printed_and_written(inputs, tmp_path):
    words = ("rank", "--model", inputs / "model", "--prompts", inputs / "prompts.jsonl")
    expected = mean_rank(load(inputs / "model", device="cpu"), inputs / "prompts.jsonl")
    full = works(*words, "--out", tmp_path / "ranks.json").stdout
    assert full.splitlines()[-1] == f"mean rank {expected:.3f}"
    assert "Grace Miller lives in" in full and "Sao Paulo" in full
    assert works(*words, "--quiet").output == f"mean rank {expected:.3f}\n"
    written = json.loads((tmp_path / "ranks.json").read_text())
    assert written["mean_rank"] == expected and written["model"] == str(inputs / "model")
    assert [row["answer"] for row in written["ranks"]] == [answer for _, answer in FACTS]


# Scores


def test_scores_are_those_of_a_folder_and_of_a_delta(inputs, tmp_path):
    before, after = (load(inputs / name, device="cpu") for name in ("model", "after"))
    WeightDelta.between(before, after).save(tmp_path / "d.safetensors")
    assert scored(inputs, tmp_path / "folder").output == ""
    scored(inputs, tmp_path / "delta", after=tmp_path / "d.safetensors")
    assert contents(tmp_path / "folder") == ["config.json", "report.html", "scores.nc"]
    a, b = (ExtractiveScores.load(tmp_path / kind / "scores.nc") for kind in ("folder", "delta"))
    assert float(np.abs(a.mlp).max()) > 0
    np.testing.assert_allclose(a.mlp, b.mlp, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(a.heads, b.heads, rtol=1e-3, atol=1e-5)


def test_scores_of_a_model_by_name(tmp_path):
    jsonl(tmp_path / "p.jsonl", [p.to_record() for p in first_hop().implications])
    works("score", "--before", "organism", "--after", "organism", "--prompts", tmp_path / "p.jsonl",
          "--out", tmp_path / "out", "--quiet")  # fmt: skip
    scores = ExtractiveScores.load(tmp_path / "out" / "scores.nc")
    assert not np.nan_to_num(scores.mlp).any() and not np.nan_to_num(scores.heads).any()


def test_options_of_scoring_arrive(inputs, tmp_path):
    options = {
        "reward": "logprob", "answer_tokens": "all", "baseline": "mean", "convention": "reference",
        "batch_size": 2,
    }  # fmt: skip
    words = [w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", value)]
    scored(inputs, tmp_path, *words)
    attrs = ExtractiveScores.load(tmp_path / "scores.nc").attrs
    assert options.items() <= attrs["options"].items()
    assert attrs["after"]["source"] == str(inputs / "after")


def test_scoring_again_gives_the_same_arrays(inputs, tmp_path):
    scored(inputs, tmp_path / "once", "--baseline", "mean", "--batch-size", 4)
    works("replay", tmp_path / "once" / "config.json", "--out", tmp_path / "twice", "--quiet")
    a, b = (ExtractiveScores.load(tmp_path / run / "scores.nc") for run in ("once", "twice"))
    assert a.dataset.identical(b.dataset)


@pytest.fixture(scope="module")
def fidelity(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("fidelity")
    works("fidelity", "--before", inputs / "model", "--after", inputs / "after", "--prompts",
          inputs / "prompts.jsonl", "--out", out, "--quiet")  # fmt: skip
    return out


def test_fidelity_is_written_and_replayed(inputs, fidelity, tmp_path):
    hows = ("causal", "exact", "linear", "path")
    names = ["config.json", "fidelity.json", "report.html", *(f"scores-{how}.nc" for how in hows)]
    assert contents(fidelity) == names
    written = json.loads((fidelity / "fidelity.json").read_text())
    assert set(written) == {"agreement", "path_error", "verdict"}
    assert written["verdict"].startswith("Against interventions, over all components: Informative scores (")
    works("replay", fidelity / "config.json", "--out", tmp_path / "twice", "--quiet")
    for how in hows:
        a, b = (ExtractiveScores.load(run / f"scores-{how}.nc") for run in (fidelity, tmp_path / "twice"))
        assert a.dataset.identical(b.dataset)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_report_of_fidelity(fidelity, tmp_path):
    page = drawn(fidelity / "report.html", tmp_path)
    assert page.count('class="main-svg"') >= 1
    for words in ("informative, path", "upstream, exact", "Against interventions", "ecstruct replay"):
        assert words in page


@pytest.mark.parametrize("command", ["finetune", "score"])
def test_a_run_is_not_replayed_with_other_weights(inputs, tmp_path, command):
    mine = Path(shutil.copytree(inputs, tmp_path / "mine"))
    (finetuned if command == "finetune" else scored)(mine, tmp_path / "once")
    edit_weights(mine / "model", lambda tensors: next(iter(tensors.values())).view(-1)[0].add_(1e-3))
    result = run("replay", tmp_path / "once" / "config.json", "--out", tmp_path / "twice")
    assert "are not those that this configuration was run with" in refused(result)
    assert contents(tmp_path / "twice") == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_report_of_scores_of_two_templates(inputs, tmp_path):
    halves = [{**record, "template": "ab"[i // 3]} for i, record in enumerate(PROMPTS)]
    jsonl(tmp_path / "two.jsonl", halves)
    works("score", "--before", inputs / "model", "--after", inputs / "after", "--quiet",
          "--prompts", tmp_path / "two.jsonl", "--out", tmp_path / "out")  # fmt: skip
    page = drawn(tmp_path / "out" / "report.html", tmp_path / "browser")
    assert page.count('class="main-svg"') >= 4
    assert "ecstruct replay" in page and "<h2>a</h2>" in page and "<h2>b</h2>" in page
    assert page.count("mean over 3 prompts, sum over tokens, in logits") == 4  # captions and their labels


# Help


def commands():
    root = get_command(app)
    found = dict(root.commands)
    groups = {
        name: found.pop(name).commands for name in root.commands if hasattr(root.commands[name], "commands")
    }
    return {f"{group} {n}": c for group, its in groups.items() for n, c in its.items()} | found


@pytest.mark.parametrize("name", commands())
def test_help_has_a_sentence_for_everything(name):
    result = works(*name.split(), "--help")
    assert "Usage:" in result.stdout
    command = commands()[name]
    assert command.help and command.help.strip().endswith(".")
    for parameter in command.params:
        assert parameter.help, f"{name} says nothing about {parameter.name}"
    if name not in ("rank", "doctor"):
        assert "--out" in result.stdout
    assert "--debug" in result.stdout
    if name not in ("facts show", "doctor"):  # which are there to print
        assert "--quiet" in result.stdout


def test_help_names_every_command():
    text = works("--help").stdout
    for name in ("demo", "finetune", "rank", "score", "replay", "organism"):
        assert name in text


# Bad input


def refused(result):
    """The one sentence on stderr."""
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    line = lines[0]
    assert line.startswith("error: ") and line.endswith("."), line
    assert "Traceback" not in line and "Error" not in line and "  " not in line, line
    assert result.stdout == ""
    return line


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
    assert_refused(result, message)
    assert not out.exists() or contents(out) == []


def assert_refused(result, message):
    line = refused(result)
    assert re.search(message, line), line
    print(line)


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
    **MODELS,
    "another architecture": (lambda _, folder: save(folder / "gpt2", "gpt2"), "the models differ in"),
    "another vocabulary": (other(vocab_size=99), r"the models differ in embed\.weight"),
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
    assert_refused(result, message)
    assert not out.exists() or contents(out) == []


@pytest.mark.parametrize("what", MODELS)
def test_a_bad_model_is_refused_in_one_sentence(inputs, tmp_path, what):
    make, message = MODELS[what]
    model = make(inputs, tmp_path)
    assert_refused(run("rank", "--model", model, "--prompts", inputs / "prompts.jsonl"), message)


ARGUMENTS = {
    "negative rate": ("finetune", ["--lr", "-1"], "lr=-1.0 is no learning rate"),
    "rate is nan": ("finetune", ["--lr", "nan"], "lr=nan is no learning rate"),
    "no rate": ("finetune", [], "no learning rate is known for .*: pass lr="),
    "no epochs": ("finetune", ["--lr", "1", "--epochs", "0"], "epochs=0 is too few"),
    "no such kind": ("finetune", ["--lr", "1", "--freeze-kinds", "mpl"], "unknown kind of weight 'mpl'"),
    "no such layers": ("finetune", ["--lr", "1", "--freeze-layers", "a-b"], "takes layers as 0-3,7"),
    "no name": ("finetune", ["--lr", "1", "--evaluate", "x.jsonl"], "--evaluate takes NAME=FILE"),
    "no such device": ("finetune", ["--lr", "1", "--device", "cuda:77"], "no device 'cuda:77'"),
    "no path": ("score", ["--path-steps", "0"], "path_steps is at least 1, not 0"),
    "little memory": ("fidelity", ["--memory", "7"], "memory=7 bytes are too few for one intervention"),
    "no top": ("fidelity", ["--top", "0"], "top=0 is no number of components"),
    "batches of none": ("score", ["--batch-size", "0"], "batch_size is at least 1, not 0"),
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
    assert_refused(run(command, *files, "--out", tmp_path / "out", *words), message)
    assert contents(tmp_path) == []


def test_an_organism_that_cannot_be_pretrained_is_refused_first(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert_refused(run("organism", "pretrain", "--out", tmp_path), "is not empty; empty it")
    assert_refused(run("organism", "pretrain", "--out", tmp_path / "notes.txt"), "is a file")
    for option in ("steps", "threads"):
        result = run("organism", "pretrain", "--out", tmp_path / "out", f"--{option}", 0)
        assert_refused(result, f"{option}=0 cannot pretrain an organism")
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
    assert_refused(run(command, *words, "--out", out), f"cannot write.*{out.parent.name}")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_is_not_saved_over_another(inputs, tmp_path, monkeypatch):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "mine").touch()
    monkeypatch.setattr("ecstruct.runs.training.load", None)
    result = run("finetune", "--model", inputs / "model", "--facts", inputs / "prompts.jsonl",
                 "--lr", 1, "--save-model", "--out", tmp_path / "out")  # fmt: skip
    assert_refused(result, "exists and is not empty")
    assert contents(tmp_path) == ["out/model/mine"]


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


def test_a_real_process_says_one_sentence(inputs, tmp_path):
    words = ("rank", "--model", "nobody/has-this", "--prompts", inputs / "prompts.jsonl")
    result = process(*words)
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: 'nobody/has-this'")


def test_debug_shows_the_traceback():
    result = run("replay", "nowhere.json", "--out", "nowhere", "--debug")
    assert result.exit_code == 1 and isinstance(result.exception, InputError)  # Python shows it


def test_an_interrupted_run_leaves_no_half_written_file(inputs, tmp_path):
    out = tmp_path / "out"
    words = ("--model", inputs / "model", "--facts", inputs / "prompts.jsonl", "--lr", 1e-6, "--out", out)
    command = [sys.executable, "-m", "ecstruct", "finetune", *map(str, words), "--epochs", "1000000"]
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below nohup or &
    )
    seen = b""
    while b"step" not in seen or b"loss" not in seen:  # the progress bar: it is training
        chunk = os.read(running.stderr.fileno(), 4096)
        assert chunk, seen
        seen += chunk
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert b"Traceback" not in stderr and stderr.strip().endswith(b"interrupted") and stdout == b""
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
    assert_refused(result, "cannot write .*No space left on device")
    assert {name: (tmp_path / name).read_bytes() for name in contents(tmp_path)} == was


def full_disk(fail):
    from ecstruct.files import write_atomically

    return lambda first, second, *_: write_atomically(
        second if isinstance(first, ExtractiveScores) else first, fail
    )


def test_ranks_can_be_read_as_a_table(inputs, tmp_path):
    works("rank", "--model", inputs / "model", "--prompts", inputs / "prompts.jsonl",
          "--out", tmp_path / "r.json", "--quiet")  # fmt: skip
    table = pd.DataFrame(json.loads((tmp_path / "r.json").read_text())["ranks"])
    assert list(table.columns) == ["prompt", "answer", "rank"] and table["rank"].between(0, 5).all()
