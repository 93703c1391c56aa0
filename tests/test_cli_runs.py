"""What finetuning, ranks, scores and fidelity write is what the functions of Python say, and the same again
when it is replayed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.chromium import CHROMIUM, drawn
from helpers.cli_inputs import PROMPTS, finetuned, jsonl, save_inputs, scored
from helpers.command_line import refused, run, works
from helpers.facts_fixtures import FACTS
from helpers.folders import contents, edit_weights
from safetensors.torch import load_file

from ecstruct import ExtractiveScores, mean_rank, ranks
from ecstruct.facts import first_hop, read_jsonl
from ecstruct.models import WeightDelta, load
from ecstruct.models.bridge import named_weights

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Not to be written to."""
    return save_inputs(tmp_path_factory.mktemp("inputs"))


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


def test_weights_after_each_epoch_are_those_of_fewer_epochs(inputs, tmp_path):
    finetuned(inputs, tmp_path / "all", "--save-epochs", "--epochs", 3)
    assert sorted(path.name for path in (tmp_path / "all" / "epochs").iterdir()) == [
        f"{epoch}.safetensors" for epoch in (1, 2, 3)
    ]
    finetuned(inputs, tmp_path / "two", "--epochs", 2)
    kept, fewer, last = (
        load_file(path)
        for path in (
            tmp_path / "all" / "epochs" / "2.safetensors",
            tmp_path / "two" / "delta.safetensors",
            tmp_path / "all" / "epochs" / "3.safetensors",
        )
    )
    assert all(torch.equal(t, kept[name]) for name, t in fewer.items())
    assert all(
        torch.equal(t, last[name]) for name, t in load_file(tmp_path / "all/delta.safetensors").items()
    )
    assert load(str(tmp_path / "all" / "epochs" / "2.safetensors"), device="cpu")
    finetuned(inputs, tmp_path / "whole", "--save-epochs", "--save-model")
    ends = [load(str(tmp_path / "whole" / name), device="cpu") for name in ("model", "epochs@2")]
    weights, again = map(named_weights, ends)
    for name, t in weights.items():
        torch.testing.assert_close(again[name], t)  # the delta is added to the weights, which rounds
    with_lora = run(
        *("finetune", "--model", inputs / "model", "--facts", inputs / "prompts.jsonl", "--lr", 0.01),
        *("--save-epochs", "--lora", "r=2", "--out", tmp_path / "lora"),
    )
    refused(with_lora, "without lora")


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


@pytest.mark.parametrize("quiet", [False, True])
def test_ranking_says_on_a_terminal_whom_it_asks(inputs, monkeypatch, quiet):
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda stream: True)
    words = ("rank", "--model", inputs / "model", "--prompts", inputs / "prompts.jsonl")
    assert ("asking" in works(*words, *["--quiet"] * quiet).stderr) is not quiet


def test_ranks_can_be_read_as_a_table(inputs, tmp_path):
    works("rank", "--model", inputs / "model", "--prompts", inputs / "prompts.jsonl",
          "--out", tmp_path / "r.json", "--quiet")  # fmt: skip
    table = pd.DataFrame(json.loads((tmp_path / "r.json").read_text())["ranks"])
    assert list(table.columns) == ["prompt", "answer", "rank"] and table["rank"].between(0, 5).all()


# Scores


def test_scores_are_those_of_a_folder_and_of_a_delta(inputs, tmp_path):
    before, after = (load(inputs / name, device="cpu") for name in ("model", "after"))
    WeightDelta.between(before, after).save(tmp_path / "d.safetensors")
    assert scored(inputs, tmp_path / "folder").output == ""
    scored(inputs, tmp_path / "delta", after=tmp_path / "d.safetensors")
    assert contents(tmp_path / "folder") == ["config.json", "prompts.jsonl", "report.html", "scores.nc"]
    report = (tmp_path / "folder" / "report.html").read_text()
    for score in ("informative", "downstream"):
        assert f"What the change of the components of highest {score} score writes" in report
    assert "What the OV circuits of the heads of highest downstream score read" in report
    a, b = (ExtractiveScores.load(tmp_path / kind / "scores.nc") for kind in ("folder", "delta"))
    assert float(np.abs(a.mlp).max()) > 0
    np.testing.assert_allclose(a.mlp, b.mlp, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(a.heads, b.heads, rtol=1e-3, atol=1e-5)


def test_scores_of_a_model_by_name(tmp_path):
    jsonl(tmp_path / "p.jsonl", [p.to_record() for p in first_hop().implications[:2]])
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


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_report_of_scores_of_two_templates(inputs, tmp_path):
    halves = [{**record, "template": "ab"[i // 3]} for i, record in enumerate(PROMPTS)]
    jsonl(tmp_path / "two.jsonl", halves)
    works("score", "--before", inputs / "model", "--after", inputs / "after", "--quiet",
          "--prompts", tmp_path / "two.jsonl", "--out", tmp_path / "out")  # fmt: skip
    page = drawn(tmp_path / "out" / "report.html", tmp_path / "browser")
    assert page.count('class="main-svg"') >= 4
    assert "ecstruct replay" in page and "<h2>Template a</h2>" in page and "<h2>Template b</h2>" in page
    assert page.count("mean over 3 prompts, sum over tokens, in logits") == 4  # captions and their labels


# Fidelity


@pytest.fixture(scope="module")
def fidelity(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("fidelity")
    few = jsonl(tmp_path_factory.mktemp("few") / "prompts.jsonl", PROMPTS[:2])
    works("fidelity", "--before", inputs / "model", "--after", inputs / "after", "--prompts",
          few, "--out", out, "--quiet", "--whole",
          "--form", "path", "--form", "surrogate", "--form", "exact")  # fmt: skip
    return out


def test_fidelity_is_written_and_replayed(inputs, fidelity, tmp_path):
    hows = ("causal", "exact", "linear", "path", "surrogate")
    names = ["config.json", "fidelity.json", "report.html", *(f"scores-{how}.nc" for how in hows)]
    assert contents(fidelity) == names
    written = json.loads((fidelity / "fidelity.json").read_text())
    assert set(written) == {"agreement", "path_error", "verdict"}
    assert (fidelity / "report.html").read_text().count("Against interventions, over all components") == 1
    assert written["verdict"].startswith("Against interventions, over all components: Informative scores (")
    config = json.loads((fidelity / "config.json").read_text())
    for name in ("forms", "answer_tokens"):  # which version 0.1.0 did not write
        del config["arguments"][name]
    (tmp_path / "old.json").write_text(json.dumps(config))
    works("replay", tmp_path / "old.json", "--out", tmp_path / "twice", "--quiet")
    for how in hows:
        a, b = (ExtractiveScores.load(run / f"scores-{how}.nc") for run in (fidelity, tmp_path / "twice"))
        assert a.dataset.identical(b.dataset)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_report_of_fidelity(fidelity, tmp_path):
    page = drawn(fidelity / "report.html", tmp_path)
    assert page.count('class="main-svg"') >= 1
    for words in ("informative, path", "upstream, exact", "Against interventions", "ecstruct replay"):
        assert words in page


# Other weights


@pytest.mark.parametrize("command", ["finetune", "score"])
def test_a_run_is_not_replayed_with_other_weights(inputs, tmp_path, command):
    mine = Path(shutil.copytree(inputs, tmp_path / "mine"))
    (finetuned if command == "finetune" else scored)(mine, tmp_path / "once")
    edit_weights(mine / "model", lambda tensors: next(iter(tensors.values())).view(-1)[0].add_(1e-3))
    result = run("replay", tmp_path / "once" / "config.json", "--out", tmp_path / "twice")
    assert "are not those that this configuration was run with" in refused(result)
    assert contents(tmp_path / "twice") == []


# Did it work?


def test_finetuning_and_scoring_say_whether_it_worked(inputs, tmp_path):
    words = ("--facts", inputs / "prompts.jsonl", "--epochs", 2, "--lr", 0.01, "--device", "cpu")
    said = works("finetune", "--model", inputs / "model", *words, "--out", tmp_path / "tuned").output
    delta = tmp_path / "tuned" / "delta.safetensors"
    before = load(inputs / "model", device="cpu")
    models = {"before": before, "after": WeightDelta.load(delta).apply_to(before)}
    of = {state: ranks(model, inputs / "prompts.jsonl") for state, model in models.items()}
    rows = {state: (its.mean(), (its == 0).mean()) for state, its in of.items()}
    n = len({answer for _, answer in FACTS})  # all answers are options where none are given
    rows["chance"] = ((n - 1) / 2, 1 / n)
    both = ("--before", inputs / "model", "--after", delta, "--prompts", inputs / "prompts.jsonl")
    scoring = works("score", *both, "--device", "cpu", "--out", tmp_path / "scores").output
    page = (tmp_path / "scores" / "report.html").read_text()
    for name, (rank, accuracy) in rows.items():
        for shown in (said, scoring):
            assert re.search(rf"{name} +{rank:.2f} +{accuracy:.2f}\n", shown)
        row = rf'<th scope="row">{name}</th>\s*<td class="number">{re.escape(f"{rank:.4g}")}</td>'
        assert re.search(row, page)
    missed = abs(ExtractiveScores.load(tmp_path / "scores" / "scores.nc").completeness).mean()
    for shown in (scoring, page):
        assert "informative" in shown and f"miss its change by {float(missed):.3g}" in shown
    # What is scored is beside the scores, so that the command of the report can be pasted.
    assert read_jsonl(tmp_path / "scores" / "prompts.jsonl") == read_jsonl(inputs / "prompts.jsonl")
    # A single prompt's figure says which it is.
    scores = ExtractiveScores.load(tmp_path / "scores" / "scores.nc")
    (text, answer), before, after = FACTS[2], *(float(of) for of in scores.reward[2])
    title = f"“{text}” → “{answer}”<br>reward {before:.3g} → {after:.3g}".replace("-", "−")
    title += f", rank {of['before'][2]:g} → {of['after'][2]:g}"
    assert f"<b>{title}</b>" in [note.text for note in scores.heatmap(prompt=2).layout.annotations]
